"""Which pages a full store should give up: a simulation of policies over one trace."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

import pandas as pd

from ...lifetimes.pooled.segments import OLD_SHARE

LRU = "least recently used page"
FIFO = "oldest segment"
RENEWED = "oldest segment, pages in use renewed"


def evictions(trace: Sequence[Sequence[str]], capacities: Sequence[int], segments: int = 64) -> pd.DataFrame:
    """Simulate each policy with each capacity.

    A request loads the leading pages that are stored, and stores the others.  Evicting the least recently used page is
    the policy to compare with: a store of segments cannot do it without rewriting segments.

    Parameters
    ----------
    trace : sequence of sequence of str
        The keys of each request, see ``conversations``.
    capacities : sequence of int
        Pages that the store has room for.
    segments : int
        The number of segments in which they are.

    Returns
    -------
    pandas.DataFrame
        A row per capacity and policy: ``capacity``; ``share``, of the different pages of the trace; ``policy``;
        ``hit_rate``, the share of pages that were loaded; ``rewritten``, pages that were stored again in order to stay,
        for each page that was stored.
    """
    different = len({key for request in trace for key in request})
    rows = []
    for capacity in capacities:
        for policy in (LRU, FIFO, RENEWED):
            store = _Lru(capacity) if policy == LRU else _Segments(capacity, segments, policy == RENEWED)
            hits = sum(_leading(store, request) for request in trace)
            asked = sum(map(len, trace))
            rows.append((capacity, capacity / different, policy, hits / asked, store.renewed / store.stored))
    return pd.DataFrame(rows, columns=["capacity", "share", "policy", "hit_rate", "rewritten"])


def _leading(store: _Lru | _Segments, request: Sequence[str]) -> int:
    """Load the leading pages of a request and store the others; return how many were loaded."""
    hits = next((place for place, key in enumerate(request) if key not in store.pages), len(request))
    for key in reversed(
        request[:hits]
    ):  # the first pages of a request are worth most: without them no other is loaded
        if key in store.pages:
            store.load(key)
    for key in request[hits:]:
        store.store(key)
    return hits


class _Lru:
    """A store that evicts single pages."""

    renewed = 0

    def __init__(self, capacity: int):
        self._capacity, self.stored = capacity, 0
        self.pages: OrderedDict[str, None] = OrderedDict()

    def load(self, key: str) -> None:
        self.pages.move_to_end(key)

    def store(self, key: str) -> None:
        self.pages[key] = None
        self.pages.move_to_end(key)
        self.stored += 1
        if len(self.pages) > self._capacity:
            self.pages.popitem(last=False)


class _Segments:
    """A store that evicts the oldest segment, and may append pages again that are loaded from the oldest ones."""

    def __init__(self, capacity: int, segments: int, renews: bool):
        self._size, self._most, self._renews = max(1, capacity // segments), segments, renews
        self.pages: dict[str, int] = {}  # the generation of the segment of each page
        self._segments: deque[list[str]] = deque([[]])
        self._newest = self.stored = self.renewed = 0

    def load(self, key: str) -> None:
        age = self.pages[key] - (self._newest - len(self._segments) + 1)  # 0 is recycled next
        if self._renews and len(self._segments) == self._most and age < self._most // OLD_SHARE:
            self.renewed += 1
            self._append(key)

    def store(self, key: str) -> None:
        self.stored += 1
        self._append(key)

    def _append(self, key: str) -> None:
        if len(self._segments[-1]) >= self._size:
            if len(self._segments) == self._most:
                oldest = self._newest - self._most + 1
                for old in self._segments.popleft():
                    if self.pages.get(old) == oldest:
                        del self.pages[old]
            self._segments.append([])
            self._newest += 1
        self._segments[-1].append(key)
        self.pages[key] = self._newest
