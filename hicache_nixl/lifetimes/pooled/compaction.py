"""Freeing segments that are mostly dead: their pages are stored again elsewhere, also beside live servers.

A segment is owned meanwhile as by a writer, its pages are listed at their new places, and only then it is given up.
So a server finds each page at every moment, and a process that is killed in between loses none.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...config import PooledOptions
from ...errors import ConfigError, DamagedError, FileError
from .facts import Segment
from .folder import NAME
from .inspection import Inspection, Progress
from .locks import Locks
from .opening import Store
from .row import Rows
from .segments import name_of

BATCH_BYTES = 16 << 20
PATIENCE = 2.0  # seconds for the loads of other processes that read a segment


@dataclass
class Compacted:
    """What was done.

    Attributes
    ----------
    freed : int
        Segments whose room can be used again, and was given back to the file system.
    moved, moved_bytes : int
        Pages that were stored again elsewhere.
    damaged : int
        Pages that were given up, because they had other bytes than were stored.
    kept : str
        Why a segment that is mostly dead was kept; empty if none was.
    """

    freed: int = 0
    moved: int = 0
    moved_bytes: int = 0
    damaged: int = 0
    kept: str = ""


def to_compact(segments: list[Segment]) -> list[Segment]:
    """Return the segments that are mostly dead, those with the fewest bytes to move first."""
    return sorted((one for one in segments if 2 * one.live < one.used), key=lambda one: one.live)


def compact(inspection: Inspection, progress: Progress = lambda size: None) -> Compacted:
    """Free the segments of a store that are mostly dead and have no writer.

    No page is dropped for that: it ends where there is no other room for pages.

    Raises
    ------
    ConfigError, DamagedError, FileError
        When the store cannot be opened, or fails.
    """
    if inspection.path.name != NAME:
        raise ConfigError(
            f"{inspection.path}: expected the name {NAME}; rename it, and no server may use it meanwhile"
        )
    segments = to_compact(inspection.facts().segments)
    done = Compacted()
    if not segments:
        return done
    # Who else may write to the folder is a matter of the servers; every page is compared with its checksum.
    with Store(str(inspection.path.parent), PooledOptions(), shared=True) as store:
        store.segments.recycles = False
        compaction = Compaction(inspection, store, done, progress)
        try:
            for segment in compaction.owned(segments):
                compaction.free(segment)
        finally:
            compaction.close()
    return done


class Compaction:
    """The locks of the segments that are to be freed are not those of the store that pages are moved to."""

    def __init__(self, inspection: Inspection, store: Store, done: Compacted, progress: Progress):
        self._inspection, self._store, self._done, self._progress = inspection, store, done, progress
        self._locks = Locks(store.dir_fd)

    def close(self) -> None:
        """Release what is locked."""
        self._locks.close()

    def owned(self, segments: list[Segment]) -> list[Segment]:
        """Become the writer of segments, so that no pages are moved to them; return those that have no other writer."""
        owned = [one for one in segments if self._locks.own(one.number)]
        if len(owned) < len(segments):
            self._done.kept = "a server writes to it"
        return owned

    def free(self, segment: Segment) -> None:
        """Move the pages of an owned segment, and free it, unless it is in use."""
        try:
            if self._store.state.segments["generation"][segment.number] == segment.generation:
                self._move(self._listed_in(segment))
                self._give_up(segment)
        except NoRoomError as error:
            self._done.kept = str(error)
        finally:
            self._locks.disown(segment.number)

    def _listed_in(self, segment: Segment) -> Rows:
        rows = self._store.index.live()
        return rows[(rows["segment"] == segment.number) & (rows["generation"] == segment.generation)]

    def _move(self, rows: Rows) -> None:
        rows = rows[np.lexsort((rows["offset"], rows["size"], rows["space"]))]
        for batch in _alike(rows):
            pages, good = [], np.zeros(len(batch), np.bool_)
            for number, row in enumerate(batch):
                try:
                    pages.append(self._inspection.pieces(row))
                    good[number] = True
                except (DamagedError, FileError):
                    self._done.damaged += int(self._store.index.listed(batch[number : number + 1])[0])
            if not good.all():
                self._store.index.remove(batch[~good])
            if pages:
                self._store_again(batch[good], pages)
            self._progress(int(batch["size"].sum()))

    def _store_again(self, rows: Rows, pages: list[list[bytes]]) -> None:
        """Append pages with pieces of one size, and list them there if they are still listed where they were."""
        slot, pieces, size = len(pages[0][0]), len(pages[0]), int(rows["size"][0])
        moved = rows.copy()
        try:
            with self._store.segments.placed(len(rows), size) as places:
                for place in places:
                    part = moved[place.pages]
                    part["segment"], part["generation"] = place.segment, place.generation
                    part["offset"] = place.offset + np.arange(place.count) * slot
                    part["step"] = place.count * slot
                    ours = pages[place.pages]
                    content = b"".join(page[piece] for piece in range(pieces) for page in ours)
                    _write(self._store.segments.fd(place.segment), content, place.offset)
                with self._store.locks.index():
                    same = self._store.index.listed(rows)
                    self._store.index.put(moved[same])
                    for place in places:
                        self._store.segments.published(place, size)
        except FileError as error:
            full = "all segments hold pages" if error.errno == errno.EBUSY else str(error)
            raise NoRoomError(f"there is no room to move its pages to: {full}") from error
        self._done.moved += int(same.sum())
        self._done.moved_bytes += int(same.sum()) * size

    def _give_up(self, segment: Segment) -> None:
        end = time.monotonic() + PATIENCE
        while not self._given_up(segment):
            if time.monotonic() > end:
                self._done.kept = "a server reads from it"
                return
            time.sleep(0.01)

    def _given_up(self, segment: Segment) -> bool:
        """Free a segment, if nobody reads it; keep it if its last writer has listed pages meanwhile."""
        with self._store.locks.index(), self._locks.unread(segment.number) as unread:
            if not unread:
                return False
            if not len(self._listed_in(segment)):
                self._store.state.give_up(segment.number)
                os.truncate(f"/proc/self/fd/{self._store.dir_fd}/{name_of(segment.number)}", 0)
                self._done.freed += 1
            return True


class NoRoomError(Exception):
    """There is no room for pages, except in place of others."""


def _alike(rows: Rows) -> Iterator[Rows]:
    """Yield rows of one space and size, of about ``BATCH_BYTES`` together."""
    if not len(rows):
        return
    changes = (np.diff(rows["space"]) != 0) | (np.diff(rows["size"]) != 0)
    for group in np.split(rows, np.flatnonzero(changes) + 1):
        most = max(1, BATCH_BYTES // int(group["size"][0]))
        yield from (group[first : first + most] for first in range(0, len(group), most))


def _write(fd: int, content: Any, offset: int) -> None:
    """Write all bytes, of which a write may take a part."""
    left = memoryview(content)
    while left:
        try:
            written = os.pwrite(fd, left, offset)
        except OSError as error:
            raise FileError.of(error, "segment") from error
        left, offset = left[written:], offset + written
