"""Counts that rise in steps and never fall: the sign of page files that nobody closes.

HiCache opens page files at the beginning of a call and is done with them at its end.  SGLang runs two calls at
most at the same time, one that sets and one that gets, so of ``STEPS`` separate rises one at least belongs to a
call that has ended: with no fall between them its files were left open.  That is known after three calls, long
before there are floors to compare (see ``growing``).

It holds for page files alone.  Regular files of other kinds, such as logs, libraries and databases, are opened one
by one and kept.  A pool of page files that is opened once is one step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from scipy.stats import chi2

from ..lab.statistics import CONFIDENCE, Estimate

STEPS = 3
SETTLED = 10  # times the usual time from step to step, without one: no more are to come


@dataclass(frozen=True)
class Stairs:
    """What the counts of a series did since the watch began.

    Attributes
    ----------
    began, now : float
        Seconds of the first and the latest sample.
    first, last : float
        Their counts.
    samples : int
    steps : int
        Separate rises: samples that rise one after the other, as when one falls into a call, are one.
    rose_at : float
        Seconds of the latest rise, ``began`` without one.
    fell : bool
        Whether a count was ever lower than the one before.
    """

    began: float
    now: float
    first: float
    last: float
    samples: int = 1
    steps: int = 0
    rose_at: float = 0.0
    fell: bool = False

    @classmethod
    def at(cls, seconds: float, count: float) -> Stairs:
        """Begin with a first sample."""
        return cls(seconds, seconds, count, count, rose_at=seconds)

    def then(self, seconds: float, count: float) -> Stairs:
        """Return what it is with one sample more.

        Examples
        --------
        >>> stairs = Stairs.at(0, 7)
        >>> for second, count in enumerate([7, 9, 10, 10, 12], start=1):
        ...     stairs = stairs.then(second, count)
        >>> stairs.steps, stairs.fell
        (2, False)
        """
        rises, goes_on = count > self.last, self.rose_at == self.now and self.steps > 0
        return replace(
            self,
            now=seconds,
            last=count,
            samples=self.samples + 1,
            steps=self.steps + (rises and not goes_on),
            rose_at=seconds if rises else self.rose_at,
            fell=self.fell or count < self.last,
        )

    @property
    def rising(self) -> bool:
        """Whether something was opened, nothing was closed, and too little time has passed to call that all.

        It is all when ``SETTLED`` times the time per step went by without one.
        """
        if self.fell or self.steps == 0:
            return False
        return self.now - self.rose_at < SETTLED * (self.rose_at - self.began) / self.steps

    def told(self) -> str:
        """Say from where to where it went.

        Examples
        --------
        >>> Stairs.at(0, 256).then(1, 256).then(2, 768).told()
        'rose from 256 to 768 in 1 step'
        """
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        return f"rose from {self.first:,.0f} to {self.last:,.0f} in {steps}"

    def growth(self) -> Estimate:
        """Return the growth per minute; the interval is the exact one of a number of calls at random times."""
        minutes, each = (self.now - self.began) / 60, (self.last - self.first) / self.steps
        tail = (1 - CONFIDENCE) / 2
        low = chi2.ppf(tail, 2 * self.steps) / 2
        high = chi2.ppf(1 - tail, 2 * self.steps + 2) / 2
        counts = (float(calls * each / minutes) for calls in (self.steps, low, high))
        return Estimate(*counts, self.samples)
