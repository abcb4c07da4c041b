"""Samples of several counts, in bounded memory however long the watch is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

HELD = 600  # rows kept
LOOK_BACK = 24  # samples in the shortest view

Row = tuple[float, np.ndarray]  # seconds, counts


@dataclass(frozen=True)
class Series:
    """Samples of one count, or of several side by side.

    Attributes
    ----------
    seconds : numpy.ndarray
        When each sample was taken.
    low : numpy.ndarray
        The count; the lowest one where several samples were merged.
    per_row : int
        How many samples were merged into each row.
    """

    seconds: np.ndarray
    low: np.ndarray
    per_row: int = 1

    def __len__(self) -> int:
        return len(self.seconds)

    def column(self, number: int) -> Series:
        """Return one of several counts."""
        return Series(self.seconds, self.low[:, number], self.per_row)

    def views(self) -> Iterator[Series]:
        """Return this series, its later half, the later half of that, and so on down to ``LOOK_BACK`` rows."""
        first = 0
        while True:
            yield Series(self.seconds[first:], self.low[first:], self.per_row)
            first += (len(self) - first) // 2
            if len(self) - first < LOOK_BACK:
                return


class Samples:
    """Samples of several counts.

    From ``HELD`` samples on, neighbours are merged in pairs, which keeps the lower count.  Every row stands for
    equally many samples: the lowest of many is lower than the lowest of a few, which would look like growth.  The
    latest ``HELD`` samples are kept unmerged as well, for what happens now.
    """

    def __init__(self, held: int = HELD):
        self._held = held
        self._rows: list[Row] = []
        self._waiting: list[Row] = []
        self._recent: deque[Row] = deque(maxlen=held)
        self._per_row = 1
        self.count = 0

    def add(self, seconds: float, counts: Sequence[float]) -> None:
        """Keep a sample."""
        row = (seconds, np.asarray(counts, dtype=float))
        self.count += 1
        self._recent.append(row)
        self._waiting.append(row)
        if len(self._waiting) < self._per_row:
            return
        self._rows.append(_merged(self._waiting))
        self._waiting = []
        if len(self._rows) >= self._held:
            self._rows = [_merged(pair) for pair in zip(self._rows[::2], self._rows[1::2], strict=True)]
            self._per_row *= 2

    def views(self) -> list[Series]:
        """Return everything watched, and then what came later, from the longest view to the shortest."""
        views = list(_series(self._rows, self._per_row).views())
        if self._per_row > 1:
            views += _series(self._recent).views()
        return sorted(views, key=lambda view: float(view.seconds[0]))


def _merged(rows: Sequence[Row]) -> Row:
    return rows[0][0], np.min([counts for _, counts in rows], axis=0)


def _series(rows: Sequence[Row], per_row: int = 1) -> Series:
    seconds, lows = zip(*rows, strict=True)
    return Series(np.array(seconds), np.array(lows), per_row)
