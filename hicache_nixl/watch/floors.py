"""The growth of what stays open, with its interval.

The samples are cut into eight equal parts, and the floor of a part is its lowest count.  The growth is the mean
difference between neighbouring floors, with the interval of Student.  The differences are independent where what was
left open stays; where the floors vary around a level they are negatively correlated, which makes the interval wider than
it need be, never narrower.  A line fitted through the floors would be sure of too much: their deviations from it are not
independent.

Where a part has no rise, growth comes in few steps, and seven differences are no normal sample.  The interval then also
holds the exact one for events at random times, each as large as the count usually rises at once.  So a count that did
not rise at all has an upper bound, too: 3.7 such events in the time watched.  And descriptors are whole, so a growth is
known to one descriptor in the time watched at best.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy.special import stdtrit  # many times faster than the distributions of scipy.stats

from ..lab.statistics import CONFIDENCE, Estimate
from .series import Series
from .steps import events

PARTS = 8
CHOICE = 0.6  # of what may lie outside an interval; the rest is left to the choice of the stretch (``rule``)


class Floors:
    """The floors of the parts of a view.

    Parameters
    ----------
    view : Series
        ``PARTS`` samples or more; the oldest that do not fit into equal parts are left out.

    Attributes
    ----------
    size : float
        How much the count rises at once: its samples or its floors, whichever is more.

    Examples
    --------
    >>> stairs, seconds = np.repeat(256 * np.arange(9), 8), np.arange(72)
    >>> Floors(Series(seconds, stairs)).growth().low > 0, Floors(Series(seconds, stairs % 512)).growth().low > 0
    (True, False)
    """

    def __init__(self, view: Series):
        self.view = view
        each = len(view) // PARTS
        floors = floors_of(view.low, PARTS)
        added = floors[1:] - floors[:-1]
        self._minutes = float(view.seconds[-each] - view.seconds[len(view) - each * PARTS]) / 60
        self._mean = float(floors[-1] - floors[0]) / self._minutes
        spread = math.sqrt(float(((added - added.mean()) ** 2).sum()) / (PARTS - 2))
        self._error = spread * math.sqrt(PARTS - 1) / self._minutes
        self._rises = int((added > 0).sum())
        self._rise = _rise(added)
        self.size = max(self._rise, _rise(view.low[1:] - view.low[:-1]))

    def growth(self, confidence: float = CONFIDENCE, size: float = 0.0) -> Estimate:
        """Return the growth per minute.

        Parameters
        ----------
        confidence : float
            Of the interval.
        size : float
            How much the count rises at once at least, from what is known beyond this view.
        """
        reach = max(_student(confidence) * self._error, bool(self._rises) / self._minutes)
        low, high = self._mean - reach, self._mean + reach
        if self._rises < PARTS - 1:
            least, most = events(self._rises, confidence)
            watched = self._minutes * PARTS / (PARTS - 1)
            low = min(low, least * self._rise / watched)
            high = max(high, most * max(size, self.size) / watched)
        return Estimate(self._mean, low, high, len(self.view))


def floors_of(counts: np.ndarray, parts: int) -> np.ndarray:
    """Return the floors of equal parts, without the oldest samples that do not fit."""
    each = len(counts) // parts
    return counts[-parts * each :].reshape(parts, each).min(axis=1)


def is_constant(counts: np.ndarray) -> bool:
    """Return whether counts never change, as most kinds do."""
    return bool(counts[0] == counts[-1] and counts.min() == counts.max())


def _rise(added: np.ndarray) -> float:
    """Return the size of the rise that a descriptor came with, on average; 1, the least there is, without a rise."""
    added = added[added > 0]
    return float((added * added).sum() / added.sum()) if len(added) else 1.0


@cache
def _student(confidence: float) -> float:
    return float(stdtrit(PARTS - 2, 1 - CHOICE * (1 - confidence) / 2))
