"""Opening a store: its folder, locks, state, index and segments, and what its size may be."""

from __future__ import annotations

import logging
import math
import os
import re
from contextlib import ExitStack, suppress
from fractions import Fraction
from types import TracebackType

import numpy as np

from ...config import PooledOptions
from ...errors import ConfigError, DamagedError, FileError
from .counters import Counters
from .folder import is_gone, open_file, open_folder
from .index import LEAST_ROOM, Index
from .locks import Locks
from .segments import Segments, name_of
from .state import MEBIBYTE, MOST_SEGMENTS, State, boot_id
from .state import NAME as STATE

logger = logging.getLogger(__name__)

GIBIBYTE = 1 << 30
SEGMENT_BYTES = 256 * MEBIBYTE
USUAL_SEGMENTS = 128  # with larger capacities the segments are larger, so that descriptors stay few


class Store:
    """An open store; ``close`` ends all of it.

    Parameters
    ----------
    storage_dir : str
        The storage folder; the store is a folder in it.
    options : PooledOptions
    shared : bool
        Whether others may write to the folder.

    Attributes
    ----------
    state, index, segments, locks, counters
        Its parts.

    Raises
    ------
    ConfigError, NewerFormatError, DamagedError, FileError
        When it cannot be used.
    """

    def __init__(self, storage_dir: str, options: PooledOptions, shared: bool = False):
        with ExitStack() as stack:
            self.path, self.dir_fd = open_folder(storage_dir, shared)
            stack.callback(os.close, self.dir_fd)
            try:
                self._open(stack, options)
            except FileError as error:
                raise ConfigError(f"storage folder {self.path}: {error}") from error
            min_free = int(options.min_free_gb * GIBIBYTE)
            self.segments = Segments(self.dir_fd, self.state, self.locks, 0, min_free)
            stack.callback(self.segments.close)
            self.counters = Counters(self.state, self.locks, self.segments)
            stack.callback(self.counters.close)
            self._end = stack.pop_all()

    def _open(self, stack: ExitStack, options: PooledOptions) -> None:
        """Open locks, state and index, as the only one who does."""
        self.locks = Locks(self.dir_fd)
        stack.callback(self.locks.close)
        with self.locks.index():
            alone = self.locks.join()
            self.state, set_aside = self._open_state(alone)
            stack.callback(self.state.close)
            self.index = Index(self.dir_fd, self.state, self.locks)
            stack.callback(self.index.close)
            if self.state.is_new:
                if remove_remains(self.dir_fd) and not set_aside:
                    logger.error("the state of the store in %s is lost, so it starts empty", self.path)
                size, count = geometry(options, self.dir_fd)
                self.state.begin(size, count)
                self.index.start(0, LEAST_ROOM)
            elif alone and self.state.is_other_boot():
                self._after_boot()
            self._resize(options)
        if self.state.in_place:
            logger.warning(
                "the store in %s is on btrfs: where others fill the disk or the quota, its mapped files cannot be "
                "changed, which may kill or stop this process; use ext4, XFS or tmpfs",
                self.path,
            )

    def _open_state(self, alone: bool) -> tuple[State, bool]:
        """Open the state; one that is damaged is set aside, unless another process uses it.

        Returns the state, and whether another was set aside.
        """
        try:
            return State(self.dir_fd), False
        except DamagedError as error:
            if not alone:
                raise
            logger.error(
                "the state of the store in %s is lost, so it starts empty: %s; kept as %s.damaged",
                self.path,
                error,
                STATE,
            )
        os.rename(STATE, f"{STATE}.damaged", src_dir_fd=self.dir_fd, dst_dir_fd=self.dir_fd)
        return State(self.dir_fd), True

    def _after_boot(self) -> None:
        """Trust nothing that was written before: after a power cut not all of it need be on the disk.

        Its pages are compared with their checksums, whatever ``verify`` says, and no generation is given twice.
        """
        try:
            written = self.index.largest_generation()
        except (FileError, DamagedError) as error:
            if not is_gone(error):
                raise
            logger.error("the index of the store is lost, so it starts empty: %s", error)
            self.index.start(self.state["index"] + 1, LEAST_ROOM)
            written = 0
        largest = max(written, int(self.state.generations.max()), self.state["next_generation"] - 1)
        self.state["next_generation"] = self.state["verified_below"] = largest + 1
        self.state.segments["open"] = 0
        self.state["boot"] = boot_id()

    def _resize(self, options: PooledOptions) -> None:
        """Give the store the capacity of the options; the last one to open a store with a capacity wins."""
        size = self.state["segment_bytes"]
        if options.segment_mb and options.segment_mb * MEBIBYTE != size:
            raise ConfigError(
                f"segment_mb: the store in {self.path} has segments of {size / MEBIBYTE:g} MiB; "
                "omit it, or use another folder"
            )
        if not options.capacity_gb:
            self._warn_of_room(options)
            return
        count = segments_in(min(options.capacity_gb, MOST_SEGMENTS * size / GIBIBYTE), size)
        beyond = np.flatnonzero(self.state.generations[count:]) + count
        with ExitStack() as unused:
            for segment in beyond.tolist():
                self._refuse_used(segment, unused)
            for segment in beyond.tolist():
                self._give_up(segment)
        if len(beyond):
            logger.warning(
                "capacity_gb %g is less than the store had: %d segments of %d MiB, with the pages in them, are given up",
                options.capacity_gb,
                len(beyond),
                size >> 20,
            )
        self.state["segments"] = count
        self._warn_of_room(options)

    def _warn_of_room(self, options: PooledOptions) -> None:
        """Say if the disk has room for no page, or for less than the capacity: then the oldest pages go earlier."""
        size, space = self.state["segment_bytes"], os.fstatvfs(self.dir_fd)
        room = space.f_bavail * space.f_frsize - int(options.min_free_gb * GIBIBYTE)
        room += size * np.count_nonzero(self.state.generations[: self.state["segments"]])
        if room < size:
            logger.warning(
                "no page can be stored in %s: a segment of %d MiB would leave less than min_free_gb %g free",
                self.path,
                size >> 20,
                options.min_free_gb,
            )
        elif options.capacity_gb and self.state["segments"] * size > room:
            logger.warning(
                "capacity_gb %g is more than the file system of %s has room for, %s GiB with min_free_gb %g: the store "
                "will not become larger than that",
                options.capacity_gb,
                self.path,
                gibibytes(max(room, 0)),
                options.min_free_gb,
            )

    def _refuse_used(self, segment: int, unused: ExitStack) -> None:
        """Keep others from writing a segment until the end of ``unused``; ConfigError if one writes or reads it."""
        owned = self.locks.own(segment)
        if owned:
            unused.callback(self.locks.disown, segment)
        with self.locks.unread(segment) as unread:
            if not owned or not unread:
                raise ConfigError(
                    f"capacity_gb: less than what another process uses of the store in {self.path}; "
                    "end it first, or omit capacity_gb"
                )

    def _give_up(self, segment: int) -> None:
        """Drop the pages of a segment, and give its room back; who reads it now finds other bytes, and says so."""
        self.state.give_up(segment)
        try:
            fd = open_file(self.dir_fd, name_of(segment), os.O_RDWR)
        except FileError as error:
            logger.warning("the room of segment %d is not given back: %s", segment, error)
            return
        os.ftruncate(fd, 0)
        os.close(fd)

    def check_pages(self, *calls: tuple[int, int]) -> None:
        """Raise ``ConfigError`` if a page is larger than a segment, or calls may need too many segments.

        Parameters
        ----------
        calls : (int, int)
            The bytes and the number of the pages of a call; one for each host pool.
        """
        size, count = self.segments.bytes, self.state["segments"]
        filled = Fraction(0)
        for page_bytes, most in calls:
            if page_bytes > size:
                least = -(-page_bytes // MEBIBYTE)
                raise ConfigError(
                    f"segment_mb: a page has {page_bytes / MEBIBYTE:g} MiB, and the segments of the store in "
                    f"{self.path} {size / MEBIBYTE:g}; in another folder, use a segment_mb of at least {least} and a "
                    f"capacity_gb of at least {gibibytes(max(2, most) * least * MEBIBYTE)}"
                )
            # the first segment may have room for a single page
            filled += Fraction(most if filled else most - 1, size // page_bytes)
        needed = 1 + math.ceil(filled)
        if needed > count:
            listed = " and ".join(
                f"{most} pages of {page_bytes / MEBIBYTE:g} MiB" for page_bytes, most in calls
            )
            raise ConfigError(
                f"capacity_gb: a call of {listed} may need {needed} segments, and the store in {self.path} has {count}; "
                f"use a capacity_gb of at least {gibibytes(needed * size)}"
            )

    def close(self) -> None:
        """Leave the own segment to others, and close all files.  May be called twice."""
        self._end.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def remove_remains(dir_fd: int) -> bool:
    """Remove the segments and tables of a store whose state is lost: nothing lists their pages any more.

    Returns whether there were any.
    """
    found = False
    for name in os.listdir(dir_fd):
        if re.fullmatch(r"segment-\d{4}|index\.\d+", name):
            with suppress(OSError):  # a folder, for example, which is not ours
                os.unlink(name, dir_fd=dir_fd)
                found = True
    return found


def geometry(options: PooledOptions, dir_fd: int) -> tuple[int, int]:
    """Return bytes of a segment and number of segments for a new store.

    Without ``capacity_gb`` it may use half of the free space of its file system.  The size of a segment suits what there
    is room for.
    """
    space = os.fstatvfs(dir_fd)
    free = space.f_bavail * space.f_frsize
    capacity_gb = options.capacity_gb or free / 2 / GIBIBYTE
    capacity = int(min(capacity_gb * GIBIBYTE, max(free - options.min_free_gb * GIBIBYTE, 2 * MEBIBYTE)))
    if options.segment_mb:
        size = options.segment_mb * MEBIBYTE
    else:
        most = max(capacity // 4 // MEBIBYTE, 1) * MEBIBYTE  # a store of few segments recycles much at a time
        size = min(max(SEGMENT_BYTES, -(-capacity // USUAL_SEGMENTS // MEBIBYTE) * MEBIBYTE), most)
    if not options.segment_mb:  # more than there is room for
        capacity_gb = min(capacity_gb, MOST_SEGMENTS * size / GIBIBYTE)
    return size, segments_in(capacity_gb, size)


def gibibytes(size: int) -> str:
    """Return bytes in GiB, rounded up: what is used as ``capacity_gb`` has room for them.

    Examples
    --------
    >>> gibibytes(3 << 20), gibibytes(5 << 30)
    ('0.003', '5')
    """
    return f"{-(-size * 10**4 // GIBIBYTE) / 10**4:.4f}".rstrip("0").rstrip(".")


def segments_in(capacity_gb: float, size: int) -> int:
    """Return how many segments a capacity has room for; ConfigError if too few or too many."""
    count = int(capacity_gb * GIBIBYTE) // size
    if count < 2:
        raise ConfigError(
            f"capacity_gb: {capacity_gb:g} is less than two segments of {size / MEBIBYTE:g} MiB, one to write and "
            f"one to read; use at least {gibibytes(2 * size)}, or a smaller segment_mb"
        )
    if count > MOST_SEGMENTS:
        raise ConfigError(
            f"segment_mb: {count} segments, and there may be {MOST_SEGMENTS}; "
            f"use at least {-(-int(capacity_gb * 1024) // MOST_SEGMENTS)}"
        )
    return count
