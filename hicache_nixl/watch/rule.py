"""When counts that go up and down are a leak: the rule, applied to the samples of one count.

A server opens files during a call and closes them after it, so that a single count says nothing.  What matters is
what stays open between the calls: the **floor**, the lowest count of a part of the samples.

**Rising floors.**  A view (everything watched, its later half, the later half of that, ...) is cut into five parts.
It shows a leak when the floor of each part is above that of the part before, and the growth of the floors has an
interval of 95 % above zero.  So a single step, such as a pool that is opened once, is not a leak, nor is a load that
varies.  The views let a leak that begins after an idle night be found without waiting for four more nights.

**Steps without a fall**, for page files only.  A call opens page files and closes them at its end, and SGLang runs
at most two calls at the same time, one that sets and one that gets.  So after ``STEPS`` separate increases without
any decrease at least one call has ended and left its files open.  This is known after three calls, long before there
are floors to compare.  Other regular files, such as logs and libraries, are opened one by one and kept.

Every sample is another look at counts that vary, and some of many looks show a leak by chance.  So a leak is found
when a sign is seen ``IN_A_ROW`` times, and rising floors for ``HOLD`` of the view's samples.  It stays found when the
traffic ends, until the count falls back to where it was before: what was closed has not leaked.

A process that opens one file after the other and keeps them, as a server does at its start, looks the same, so watch
a server that has warmed up.  Files that are kept for minutes, about as long as the watch, may look so too: in 14 of
200 simulated watches of 20 minutes, with a file opened every 15 s and closed after 5 minutes on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaincinv, stdtrit  # many times faster than the distributions of scipy.stats

from ..lab.statistics import CONFIDENCE, Estimate
from .series import Series

PARTS = 5
STEPS = 3
MIN_SAMPLES = 2 * PARTS
IN_A_ROW = 3
NEEDED = MIN_SAMPLES + IN_A_ROW - 1  # samples before a leak can be found
HOLD = 0.2
PAUSE = 2  # times the longest time between two increases, without one: the growth has ended
SETTLED = 10  # times the mean time between two steps, without one: no more are expected
FLOORS = 20  # in an estimate of growth at least so many, where there are as many samples


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
        return self._now - self.rose_at < SETTLED * (self.rose_at - self._began) / self.count

    def growth(self) -> Estimate:
        """Return the growth per minute; the interval is the exact one for calls at random times."""
        per_step = 60 * (self.last - self.first) / self.count / (self._now - self._began)
        tail = (1 - CONFIDENCE) / 2
        low, high = gammaincinv(self.count, tail), gammaincinv(self.count + 1, 1 - tail)
        return Estimate(per_step * self.count, float(per_step * low), float(per_step * high), self.samples)


class Track:
    """What the rule says about one count, sample by sample.

    Parameters
    ----------
    page_files : bool
        Whether steps without a fall are a leak.

    Attributes
    ----------
    found_at : float or None
        The seconds at which a leak was found that has not been closed again.
    found : Estimate or None
        Its growth per minute while it grew.
    growing : bool
        Whether what was found still grew of late.
    closed_at : float or None
        The seconds at which what had been found was closed again.
    steps : Steps
        The increases of the count.
    """

    def __init__(self, page_files: bool = False) -> None:
        self.found_at: float | None = None
        self.found: Estimate | None = None
        self.growing = False
        self.closed_at: float | None = None
        self.steps = Steps()
        self._page_files = page_files
        self._whole: Series | None = None
        self._in_a_row = 0
        self._floors_rose = False  # since then the growth is that of the floors
        self._before = 0.0

    def update(self, seconds: float, count: float, views: Sequence[Series]) -> None:
        """Add the latest sample; ``views`` are those of this count, everything watched first."""
        if self.found_at is not None and count <= self._before:
            self.found_at, self.found, self.closed_at, self._floors_rose = None, None, seconds, False
        self.steps.add(seconds, count)
        self._whole = views[0]
        view, grown = next(((view, grown) for view in views if (grown := rising(view))), (views[0], None))
        steps = self._page_files and self.steps.samples >= MIN_SAMPLES
        steps = steps and self.steps.count >= STEPS and not self.steps.fell
        self._in_a_row = self._in_a_row + 1 if grown or steps else 0
        enough = IN_A_ROW if steps else max(IN_A_ROW, HOLD * len(view) * view.per_row)
        if self._in_a_row >= enough and self.found_at is None:
            self.found_at = seconds
        if self.found_at is not None and (grown or steps):
            self._estimate(view, grown)
        self.growing = self.found_at is not None and not has_ended(views[0])

    def _estimate(self, view: Series, grown: Estimate | None) -> None:
        """Update the growth of what was found; the one of rising floors is better than the one of steps."""
        if self.found is None or (grown and not self._floors_rose):
            self._before = float(_floors(view)[0]) if grown else self.steps.last - 1
            self._floors_rose = grown is not None
        elif self._floors_rose != (grown is not None) or has_ended(view):
            return
        self.found = grown or self.steps.growth()

    @property
    def growth(self) -> Estimate | None:
        """Growth per minute over everything watched; None for fewer than ``MIN_SAMPLES``."""
        if self._whole is None or len(self._whole) < MIN_SAMPLES:
            return None
        return growth(self._whole)

    @property
    def floors(self) -> tuple[float, float]:
        """The floors of the first and the last part of everything watched."""
        floors = _floors(self._whole) if self._whole is not None else np.zeros(PARTS)
        return float(floors[0]), float(floors[-1])

    @property
    def unsettled(self) -> bool:
        """Whether what was seen may be a leak that began, or one under load.

        Without a fall, when more steps may come.  Otherwise when the floors never fall, and the last is above the
        second, which is past the beginning, and above the usual count of the first part.
        """
        if not self.steps.fell:
            return self.steps.may_go_on
        if self._whole is None or len(self._whole) < MIN_SAMPLES:
            return False
        floors = _floors(self._whole)
        usual = self._whole.low[: len(self._whole) // PARTS].mean()
        return bool((floors[1:] >= floors[:-1]).all() and floors[-1] > max(floors[1], usual))


def rising(view: Series) -> Estimate | None:
    """Return the growth of a view whose floors rise, None for any other.

    Examples
    --------
    >>> stairs, seconds = np.repeat([0, 256, 512, 768, 1024], 4), np.arange(20)
    >>> rising(Series(seconds, stairs)) is None, rising(Series(seconds, stairs % 512)) is None
    (False, True)
    """
    if len(view) < MIN_SAMPLES or view.low[-1] == view.low.min():  # most kinds never change
        return None
    floors = _floors(view)
    if not (floors[1:] > floors[:-1]).all():
        return None
    grown = growth(view)
    return grown if grown.low > 0 else None


def growth(view: Series) -> Estimate:
    """Return the growth of the floor per minute, with its interval of 95 %.

    Here a floor is the lowest of so many neighbouring samples that there are 20 to 39 of them.  The growth is the mean
    difference between neighbouring floors, with the interval of Student: the differences are independent, whereas
    the deviations from a line through the floors are not, since what a burst of calls leaves open stays.
    """
    if view.low.min() == view.low.max():
        return Estimate(0.0, 0.0, 0.0, len(view))
    each = max(1, len(view) // FLOORS)
    floors = len(view) // each
    first = len(view) - floors * each
    counts = view.low[first:].reshape(floors, each).min(axis=1)
    minutes = view.seconds[first::each] / 60
    added = np.diff(counts) * (floors - 1) / (minutes[-1] - minutes[0])
    error = added.std(ddof=1) / np.sqrt(len(added))
    mean, reach = added.mean(), stdtrit(len(added) - 1, (1 + CONFIDENCE) / 2) * error
    return Estimate(float(mean), float(mean - reach), float(mean + reach), len(view))


def has_ended(view: Series) -> bool:
    """Return whether what stays open has not increased for ``PAUSE`` times the longest time between increases.

    Examples
    --------
    >>> stairs, seconds = np.repeat([0, 256, 512, 768, 1024], 4), np.arange(20)
    >>> later = np.concatenate([stairs, np.full(20, 1024)])
    >>> has_ended(Series(seconds, stairs)), has_ended(Series(np.arange(40), later))
    (False, True)
    """
    stays = np.minimum.accumulate(view.low[::-1])[::-1]
    increases = np.flatnonzero(np.diff(stays))
    longest = np.diff(increases).max(initial=1)
    return not len(increases) or bool(len(stays) - 2 - increases[-1] > PAUSE * longest)


def _floors(view: Series) -> np.ndarray:
    """Return the floors of five equal parts, without the oldest samples that do not fit."""
    each = len(view) // PARTS
    return view.low[-PARTS * each :].reshape(PARTS, each).min(axis=1)
