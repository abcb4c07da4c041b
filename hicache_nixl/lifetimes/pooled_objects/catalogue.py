"""Which pages of a space are in which segments: the indexes of all segments, read once each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ...errors import AwayError, DamagedError, MissingError, StoreError
from ...transport.bucket import Bucket
from .gathered import MANY, Gathered, Requests
from .segment import Name, folder_of, read_head, since

logger = logging.getLogger(__name__)

SECOND = 10**9  # nanoseconds
OVERLAP = 10 * SECOND  # that clocks of servers may differ, and that a request may take
ALL_AFTER = (
    300 * SECOND
)  # now and then all segments are listed: some may be gone, or of a clock that is far behind
FRESH = 5 * SECOND  # that a segment is taken to be there, after it was seen or loaded
UNREAD = 10 * SECOND  # after which an index is read again that is there and could not be read
READ = 1000  # indexes at a time


@dataclass(eq=False)
class Segment:
    """A segment whose index is known.

    Attributes
    ----------
    name : Name
    keys : list of bytes
    checks : numpy.ndarray
        uint64, (n,): checksums of its pages.
    seen : int
        When it was there, by ``time.monotonic_ns``; not before it is stored and added to the catalogue.
    """

    name: Name
    keys: list[bytes]
    checks: np.ndarray
    seen: int = 0


Place = tuple[Segment, int]  # a segment, and which of its pages


class Catalogue:
    """The pages of one space.

    Parameters
    ----------
    space : int
    bucket : Bucket
    requests : Requests
    """

    def __init__(self, space: int, bucket: Bucket, requests: Requests):
        self.space, self._bucket, self._requests = space, bucket, requests
        self._gathered = Gathered(space, bucket, requests)
        self._lock, self._refreshing = threading.Lock(), threading.Lock()
        self._pages: dict[bytes, Place] = {}
        self._segments: dict[str, Segment] = {}
        self.stored = 0  # bytes of the segments that are known
        self._unread: dict[str, Name] = {}  # segments whose index could not be read
        self._again = 0  # when they are read again
        self._refreshed, self._listed = 0, 0  # when, and when all of them, by ``time.monotonic_ns``
        self._newest = 0  # by the clocks of the writers

    def find(self, keys: Sequence[bytes], page_bytes: int) -> list[Place | None]:
        """Return where pages of this size, or of any with 0, are, as far as is known without a request."""
        with self._lock:
            places = [self._pages.get(key) for key in keys]
        return [
            place if place is not None and page_bytes in (0, place[0].name.page_bytes) else None
            for place in places
        ]

    def refresh(self) -> None:
        """Learn of segments that others have stored before this call.

        Raises
        ------
        StoreError
            When the store refuses or does not answer, or an index could not be read; the others are known then.
        """
        called = time.monotonic_ns()
        with self._refreshing:
            if self._refreshed > called:  # another call has asked meanwhile
                return
            now = time.monotonic_ns()
            if not self._listed or now - self._listed > ALL_AFTER:
                error = self._refresh_all(now)
            else:
                names = self._names(since(self.space, self._newest - OVERLAP))
                _, error = self._read(names)
                self._advance(names)
            self._refreshed = now
        if error is not None:
            raise error

    def _refresh_all(self, now: int) -> Exception | None:
        """List all segments: forget those that are gone, and read those that are new; return as ``_read``."""
        names, first = self._names(), not self._listed
        there = {name.base for name in names}
        with self._lock:
            gone = [
                segment
                for base, segment in self._segments.items()
                if base not in there and segment.seen < now
            ]
        for segment in gone:
            self.forget(segment)
        self._unread = {base: name for base, name in self._unread.items() if base in there}
        if first and len(names) >= MANY:
            gathered = self._gathered.load(there, tidy=True)
            for name in names:
                if name.base in gathered:
                    self._note(name, gathered[name.base])
        read, error = self._read(names)
        self._advance(names)
        self._listed = now
        if first:
            self._gathered.keep(read)
        return error

    def _names(self, after: str | None = None) -> list[Name]:
        listed = [Name.read(self.space, path) for path in self._bucket.names(folder_of(self.space), after)]
        return [name for name in listed if name is not None]

    def _advance(self, names: Sequence[Name]) -> None:
        """Note how far the segments are read; a clock that is ahead must not hide what others store."""
        if names:
            self._newest = max(self._newest, min(names[-1].time, time.time_ns()))

    def _read(self, names: Sequence[Name]) -> tuple[list[tuple[Name, bytes]], Exception | None]:
        """Read the indexes of segments that are not known, and note them.

        Returns
        -------
        read : list of (Name, bytes)
        error : Exception or None
            Why an index could not be read.  It is read again later, at once if the store was away.
        """
        due = time.monotonic_ns() >= self._again
        known = self._segments, self._unread
        new = {name.base: name for name in names if not any(name.base in some for some in known)}
        wanted = [*(self._unread.values() if due else ()), *new.values()]
        self._unread |= new
        read: list[tuple[Name, bytes]] = []
        error = None
        for first in range(0, len(wanted), READ):
            before, some = len(read), wanted[first : first + READ]
            contents = self._requests.read([(name.path, name.head_bytes) for name in some])
            for name, content in zip(some, contents, strict=True):
                if isinstance(content, bytes):
                    self._note(name, content)
                    read.append((name, content))
                elif not isinstance(content, MissingError):
                    error = error or content
                    continue
                del self._unread[name.base]
            if error is not None and len(read) == before:
                break
        if error is not None and not isinstance(error, AwayError):
            self._again = time.monotonic_ns() + UNREAD
        return read, error

    def _note(self, name: Name, head: bytes) -> None:
        """Add a segment, without pages if its index is damaged."""
        try:
            self.add(Segment(name, *read_head(name, head)))
        except DamagedError as error:
            logger.warning("a segment is passed over: %s", error)
            self.add(Segment(name, [], np.empty(0, np.uint64)))

    def add(self, segment: Segment) -> None:
        """Note a segment; of the places of a page, the one that was written last counts."""
        with self._lock:
            if segment.name.base in self._segments:
                return
            segment.seen = time.monotonic_ns()
            self._segments[segment.name.base] = segment
            self.stored += segment.name.size
            for number, key in enumerate(segment.keys):
                known = self._pages.get(key)
                if known is None or known[0].name.base < segment.name.base:
                    self._pages[key] = (segment, number)

    def check(self, segments: Iterable[Segment]) -> bool:
        """Return whether segments are there, and forget those that are not; asks only for those not seen lately."""
        now = time.monotonic_ns()
        old = [segment for segment in segments if now - segment.seen > FRESH]
        sizes = self._bucket.sizes([segment.name.path for segment in old]) if old else []
        for segment, size in zip(old, sizes, strict=True):
            if size is None:
                self.forget(segment)
            else:
                segment.seen = now
        return None not in sizes

    def forget_page(self, place: Place) -> None:
        """Forget a page whose bytes are not as they were stored."""
        with self._lock:
            key = place[0].keys[place[1]]
            if self._pages.get(key) == place:
                del self._pages[key]

    def forget(self, segment: Segment) -> None:
        """Forget a segment that was removed; an older copy of a page is not looked for, the page is missing then."""
        with self._lock:
            if self._segments.pop(segment.name.base, None) is None:
                return
            self.stored -= segment.name.size
            for number, key in enumerate(segment.keys):
                if self._pages.get(key, (None, 0))[0] is segment and self._pages[key][1] == number:
                    del self._pages[key]

    def remove_beyond(self, capacity: int) -> None:
        """Remove the oldest segments until the rest has at most nine tenths of a capacity, once it has more than that."""
        if self.stored <= capacity and self._listed:
            return
        self.refresh()
        if self.stored <= capacity:
            return
        with self._lock:
            oldest = sorted(self._segments.values(), key=lambda segment: segment.name.base)
        left, removed = self.stored, []
        for segment in oldest[:-1]:
            if left <= 0.9 * capacity:
                break
            left -= segment.name.size
            removed.append(segment)
        self._bucket.remove([segment.name.path for segment in removed])
        for segment in removed:
            self.forget(segment)

    def clear(self) -> int:
        """Remove all segments; return how many pages there were."""
        with suppress(StoreError):  # segments that cannot be read are removed as well, but not counted
            self.refresh()
        with self._lock:
            pages = len(self._pages)
            self._pages, self._segments, self.stored = {}, {}, 0
        self._bucket.remove(self._bucket.names(folder_of(self.space)))
        self._gathered.clear()
        return pages
