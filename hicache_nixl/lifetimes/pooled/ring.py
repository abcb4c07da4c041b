"""The rows of a table: a ring, in which new rows are written in the place of stale ones."""

from __future__ import annotations

import numpy as np

from .row import GENERATION, SEGMENT, Words
from .words import Flags, Numbers

CHUNK = 1 << 14  # rows that are looked at together


class Ring:
    """Mapped rows; the oldest are the first that are stale.

    Parameters
    ----------
    rows : numpy.ndarray of uint64, shape (room, 12)
    head : numpy.ndarray of uint64, shape (1,)
        The place that is written next.
    """

    def __init__(self, rows: Words, head: Words):
        self._rows, self._head, self._room = rows, head, len(rows)

    def append(self, rows: Words, generations: Words) -> Numbers:
        """Write rows to the next places whose rows are stale.

        Parameters
        ----------
        rows : numpy.ndarray of uint64, shape (n, 12)
        generations : numpy.ndarray of uint64, shape (segments,)
            The generation of each segment.

        Returns
        -------
        numpy.ndarray of int64, shape (n,)
            The places; -1 for rows for which there is none.
        """
        count, head = len(rows), int(self._head[0]) % self._room
        end = head + count
        if end <= self._room and stale(self._rows[head:end], generations).all():
            self._rows[head:end] = rows
            self._head[0] = end
            return np.arange(head, end)
        found = self._search(head, count, generations)
        self._rows[found] = rows[: len(found)]
        if len(found):
            self._head[0] = found[-1] + 1
        return np.append(found, np.full(count - len(found), -1))

    def _search(self, head: int, count: int, generations: Words) -> Numbers:
        """Return up to so many places of stale rows, from ``head`` on once around the ring."""
        found = np.zeros(0, np.int64)
        for start, end in ((head, self._room), (0, head)):
            for first in range(start, end, CHUNK):
                if len(found) >= count:
                    break
                part = self._rows[first : min(first + CHUNK, end)]
                found = np.append(found, stale(part, generations).nonzero()[0] + first)
        return found[:count]

    def free(self, places: Numbers) -> None:
        """Make rows stale."""
        self._rows[places, GENERATION] = 0


def stale(rows: Words, generations: Words) -> Flags:
    """Tell which rows, shape (n, 12), are not of the generation that their segment has, or of none."""
    segments, written = rows[:, SEGMENT], rows[:, GENERATION]
    unknown: Flags = segments >= len(generations)
    now = generations.take(np.where(unknown, 0, segments).astype(np.int64))
    return unknown | (now != written) | (written == 0)
