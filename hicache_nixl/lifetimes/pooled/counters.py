"""Hits and misses: counted in each process, and added to the state of the store about once a second."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import numpy as np

from ...errors import DamagedError
from .locks import Locks
from .segments import Segments
from .state import COUNTERS, State

INTERVAL = 1.0  # seconds between additions to the state


class Counters:
    """What this process has done with a store since it was last added to the state.

    A call costs a microsecond.  No call waits for another process: where that one adds its own counts at the
    moment, these are added later, at ``close`` at the latest.  A process that is killed loses its last second.

    Parameters
    ----------
    state : State
    locks : Locks
    segments : Segments
        They know how many were recycled.
    """

    def __init__(self, state: State, locks: Locks, segments: Segments):
        self._state, self._locks, self._segments = state, locks, segments
        self._counting = threading.Lock()
        self._counts = [0] * len(COUNTERS)
        self._recycled = 0  # how many of them are in the state
        self._next = time.monotonic() + INTERVAL

    def got(self, found: np.ndarray, sizes: np.ndarray) -> None:
        """Count a get: which of its pages were found, and the bytes of each page, one number if all are alike."""
        pages = int(np.count_nonzero(found))
        size = int(sizes[found].sum()) if sizes.ndim else pages * int(sizes)
        with self._counting:
            counts = self._counts
            counts[0] += 1
            counts[1] += len(found)
            counts[2] += pages
            counts[3] += size
        if time.monotonic() > self._next:
            self.add()

    def stored(self, pages: int, size: int) -> None:
        """Count a set: pages that were stored, and their bytes."""
        with self._counting:
            counts = self._counts
            counts[4] += 1
            counts[5] += pages
            counts[6] += size
        if time.monotonic() > self._next:
            self.add()

    def add(self) -> bool:
        """Add all counts to the state; return False if another process does that at the moment."""
        with self._counting, self._locks.counters() as mine:
            self._next = time.monotonic() + INTERVAL
            if mine:
                with suppress(DamagedError):  # the next call of the store tells
                    self._state.check()
                    recycled = self._segments.recycled
                    self._counts[-1] = recycled - self._recycled
                    self._state.header["counters"][0] += np.array(self._counts, np.uint64)
                    self._counts, self._recycled = [0] * len(COUNTERS), recycled
        return mine

    def close(self) -> None:
        """Add what was not added yet."""
        for _ in range(100):
            if self.add():
                break
            time.sleep(1e-3)
