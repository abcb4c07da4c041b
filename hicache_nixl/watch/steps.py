"""Separate increases of a count, and whether their time is over."""

from __future__ import annotations

import math
from functools import cache

from scipy.special import gammaincinv  # many times faster than the distributions of scipy.stats

from ..lab.statistics import CONFIDENCE, Estimate

SURE = 0.01  # the probability of saying that growth has ended while it goes on


@cache
def events(count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact interval of the expected number of events at random times, when so many were seen.

    Examples
    --------
    >>> [round(bound, 2) for bound in (*events(0), *events(3))]
    [0.0, 3.69, 0.62, 8.77]
    """
    tail = (1 - confidence) / 2
    low = float(gammaincinv(count, tail)) if count else 0.0
    return low, float(gammaincinv(count + 1, 1 - tail))


def has_ended(last: float, count: int) -> bool:
    """Return whether increases at random times have ended, when the last of ``count`` came at this part of the time.

    If they went on, each would be anywhere in the time watched, and the probability that all are in its first part
    would be ``last`` to the power of ``count``.

    Examples
    --------
    >>> has_ended(0.1, 1), has_ended(0.1, 2), has_ended(0.9, 40), has_ended(0.9, 50)
    (False, True, False, True)
    """
    return count > 0 and (last <= 0 or count * math.log(last) <= math.log(SURE))


class Steps:
    """The increases of a count since the watch began.

    Attributes
    ----------
    count : int
        Separate increases; samples that rise one after the other, as during a call, are one.
    first, last : float
        The first and the latest count.
    rose_at : float
        Seconds of the latest increase.
    fell : bool
        Whether the count ever decreased.
    """

    def __init__(self) -> None:
        self.samples = self.count = 0
        self.first = self.last = self.rose_at = self._began = self._now = 0.0
        self.fell = self._goes_on = False

    def add(self, seconds: float, count: float) -> None:
        """Add a sample."""
        if self.samples == 0:
            self._began, self.first, self.last = seconds, count, count
        increases = count > self.last
        self.count += increases and not self._goes_on
        self.rose_at = seconds if increases else self.rose_at
        self.fell = self.fell or count < self.last
        self._goes_on, self._now, self.last = increases, seconds, count
        self.samples += 1

    @property
    def may_go_on(self) -> bool:
        """Whether there were steps only, and so lately that more may come."""
        if self.fell or self.count == 0:
            return False
        return not has_ended((self.rose_at - self._began) / (self._now - self._began), self.count)

    def growth(self) -> Estimate:
        """Return the growth per minute; the interval is the exact one for calls at random times."""
        per_step = 60 * (self.last - self.first) / self.count / (self._now - self._began)
        low, high = events(self.count)
        return Estimate(per_step * self.count, per_step * low, per_step * high, self.samples)
