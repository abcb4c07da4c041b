"""Which pages of a space are in which segments: the indexes of all segments, read once each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import DamagedError
from ...transport.bucket import Bucket
from .gathered import MANY, Gathered, Requests
from .segment import Name, folder_of, read_head, since

logger = logging.getLogger(__name__)

SECOND = 10**9  # nanoseconds
OVERLAP = 10 * SECOND  # that clocks of servers may differ, and that a request may take
LOOK_BACK = 900 * SECOND  # now and then: what came later than that
NOW_AND_THEN = 60 * SECOND
FRESH = 5 * SECOND  # that a segment is taken to be there, after it was seen or loaded


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
        When it was there, by ``time.monotonic_ns``.
    """

    name: Name
    keys: list[bytes]
    checks: np.ndarray
    seen: int = field(default_factory=time.monotonic_ns)


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
        self._space, self._bucket, self._requests = space, bucket, requests
        self._gathered = Gathered(space, bucket, requests)
        self._lock, self._refreshing = threading.Lock(), threading.Lock()
        self._pages: dict[bytes, Place] = {}
        self._segments: dict[str, Segment] = {}
        self.stored = 0  # bytes of the segments that are known
        self._refreshed, self._looked_back = 0, 0  # when, by ``time.monotonic_ns``
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
            When the store refuses or does not answer.
        """
        called = time.monotonic_ns()
        with self._refreshing:
            if self._refreshed > called:  # another call has asked meanwhile
                return
            now = time.monotonic_ns()
            self._read(self._new(now))
            self._refreshed = now

    def _new(self, now: int) -> list[Name]:
        """List the segments that are not known yet."""
        look_back = now - self._looked_back > NOW_AND_THEN
        after = None  # all, at first
        if self._newest:
            after = since(self._space, self._newest - (LOOK_BACK if look_back else OVERLAP))
        if look_back:
            self._looked_back = now
        listed = [Name.read(self._space, path) for path in self._bucket.names(folder_of(self._space), after)]
        names = [name for name in listed if name is not None]
        if names:  # a clock that is ahead must not hide what others store
            self._newest = max(self._newest, min(names[-1].time, time.time_ns()))
        return [name for name in names if name.base not in self._segments]

    def _read(self, names: Sequence[Name]) -> None:
        """Read the indexes of new segments; of many at the start, those that were gathered with few requests."""
        known = self._gathered.load({name.base for name in names}) if len(names) >= MANY else {}
        alone = [name for name in names if name.base not in known]
        read = self._requests.read([(name.path, name.head_bytes) for name in alone])
        heads = [(name, head) for name, head in zip(alone, read, strict=True) if head is not None]
        # One that could not be read was removed meanwhile, or a later refresh will find it.
        for name, head in [*((name, known[name.base]) for name in names if name.base in known), *heads]:
            try:
                self.add(Segment(name, *read_head(name, head)))
            except DamagedError as error:
                logger.warning("a segment is passed over: %s", error)
                self.add(Segment(name, [], np.empty(0, np.uint64)))
        self._gathered.keep(heads)

    def add(self, segment: Segment) -> None:
        """Note a segment; of the places of a page, the one that was written last counts."""
        with self._lock:
            if segment.name.base in self._segments:
                return
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
        """Forget a segment that was removed."""
        with self._lock:
            if self._segments.pop(segment.name.base, None) is None:
                return
            self.stored -= segment.name.size
            for number, key in enumerate(segment.keys):
                if self._pages.get(key, (None, 0))[0] is segment and self._pages[key][1] == number:
                    del self._pages[key]

    def remove_beyond(self, capacity: int) -> None:
        """Remove the oldest segments until the rest has at most nine tenths of a capacity, once it has more than that."""
        if self.stored <= capacity:
            return
        self.refresh()
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
        self.refresh()
        with self._lock:
            pages = len(self._pages)
            self._pages, self._segments, self.stored = {}, {}, 0
        self._bucket.remove(self._bucket.names(folder_of(self._space)))
        self._gathered.clear()
        return pages
