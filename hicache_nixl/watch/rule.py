"""When counts that go up and down are a leak: the rule, on samples of any process.

A live server opens files during a call and closes them after it, so that a count alone says nothing.  What
counts is the floor: what stays open between the calls.

**The rule.**  A stretch of samples is cut into five.  It shows a leak when

- the floor (lowest count) of every fifth lies above the floor of the fifth before: a single step, such as a
  pool that is opened once, is no leak; and
- the floor of every fifth lies above the mean of the fifth but one before: what goes up and down within its
  usual range is no leak; and
- the growth of the floors (see ``growth``) has an interval of 95 % that lies above zero.

It is applied to everything watched, from ``MIN_SAMPLES`` on, and to its later half, quarter, and so on while there are
``LOOK_BACK`` samples in it: a leak that begins after an idle night must not wait for four more nights.  It has to
hold at ``IN_A_ROW`` samples in a row, and for ``HOLD`` of the stretch's length: every sample is another look, and
counts that wander look like a leak now and then.  From then on the leak stays found, also when the traffic
that made it ends, unless the count falls back to its mean before the growth: what was closed again has not leaked.

Storage files have a second, sooner sign: steps without a fall (see ``stairs``).

A process that opens one file after the other and keeps them, as a server does while it starts, looks the same:
watch a server that has warmed up.  Files that are kept for minutes, about as long as the watch, may look so too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import sem, t

from ..lab.statistics import CONFIDENCE, Estimate, slope
from .stairs import STEPS, Stairs

MIN_SAMPLES = 10  # two to a fifth
IN_A_ROW = 3
NEEDED = MIN_SAMPLES + IN_A_ROW - 1  # samples before a leak can be found
HOLD = 0.1  # of the length of a stretch
PAUSE = 2  # times the longest time from rise to rise, without one: the growth has ended
LOOK_BACK = 60
HELD = 600
FLOORS = 20  # at least so many, where there are as many samples, and fewer than twice as many


@dataclass(frozen=True)
class Stretch:
    """Samples of one series, or of several side by side: when, the lowest count and the mean.

    Attributes
    ----------
    seconds : numpy.ndarray
        When each sample was taken.
    low, mean : numpy.ndarray
        A row per sample; the same until samples are merged.
    """

    seconds: np.ndarray
    low: np.ndarray
    mean: np.ndarray

    def column(self, number: int) -> Stretch:
        """Return one of several series."""
        return Stretch(self.seconds, self.low[:, number], self.mean[:, number])

    def views(self) -> Iterator[Stretch]:
        """Return this stretch, its later half, the later half of that, down to ``LOOK_BACK`` samples."""
        first = 0
        while True:
            yield Stretch(self.seconds[first:], self.low[first:], self.mean[first:])
            first += (len(self.seconds) - first) // 2
            if len(self.seconds) - first < LOOK_BACK:
                return


class Samples:
    """Samples of several counts, in bounded memory however long the watch.

    Beyond ``HELD`` samples neighbours are merged in twos, which keeps the lower count as the floor and the
    mean; later ones wait until there are as many to merge.  Each row stands for as many samples
    as every other: the lowest of many is lower than the lowest of a few, and that would look like growth.
    The latest ``HELD`` samples are kept as they are besides, for what happens now.
    """

    def __init__(self, held: int = HELD):
        self._held = held
        self._rows: list[tuple[float, np.ndarray, np.ndarray]] = []
        self._waiting: list[tuple[float, np.ndarray, np.ndarray]] = []
        self._recent: deque[tuple[float, np.ndarray, np.ndarray]] = deque(maxlen=held)
        self._per_row = 1
        self._whole: Stretch | None = None
        self.count = 0

    def add(self, seconds: float, counts: Sequence[int]) -> None:
        """Keep a sample."""
        values = np.asarray(counts, dtype=float)
        row = (seconds, values, values)
        self.count += 1
        self._recent.append(row)
        self._waiting.append(row)
        if len(self._waiting) < self._per_row:
            return
        self._rows.append(_merged(self._waiting))
        self._waiting, self._whole = [], None
        if len(self._rows) >= self._held:
            pairs = zip(self._rows[::2], self._rows[1::2], strict=True)
            self._rows = [_merged(pair) for pair in pairs]
            self._per_row *= 2

    def whole(self) -> Stretch:
        """Return everything watched."""
        self._whole = self._whole or _stretch(self._rows)
        return self._whole

    def stretches(self) -> list[Stretch]:
        """Return everything watched and, where that has been merged, what came last."""
        return [self.whole()] if self._per_row == 1 else [self.whole(), _stretch(self._recent)]


class Track:
    """What the rule says about one series, sample by sample.

    Parameters
    ----------
    page_files : bool
        Whether steps without a fall are a leak.

    Attributes
    ----------
    leaks : bool
        Whether the rule holds at this sample.
    found_at : float or None
        The seconds at which a leak was found that has not been closed again.
    found : Estimate or None
        Its growth per minute while it grew: over the longest stretch that showed it.
    growing : bool
        Whether what was found still grew of late.
    closed_at : float or None
        The seconds at which what had been found was closed again.
    stairs : Stairs or None
        What the counts did since the first.
    """

    def __init__(self, page_files: bool = False) -> None:
        self.leaks = False
        self.growing = False
        self.found_at: float | None = None
        self.found: Estimate | None = None
        self.closed_at: float | None = None
        self.stairs: Stairs | None = None
        self._page_files = page_files
        self._whole: Stretch | None = None
        self._shown: Estimate | None = None
        self._since: float | None = None  # when the rule began to hold
        self._in_a_row = 0
        self._stairs_in_a_row = 0
        self._longest = 0.0  # seconds of the stretch of ``found``
        self._before = 0.0

    def update(self, seconds: float, count: float, stretches: Sequence[Stretch]) -> None:
        """Take in the latest sample; ``stretches`` are those of this series, the whole one first."""
        if self.found_at is not None and count <= self._before:
            self.found_at, self.found, self.closed_at, self._longest = None, None, seconds, 0.0
        self.stairs = self.stairs.then(seconds, count) if self.stairs else Stairs.at(seconds, count)
        self._whole = stretches[0]
        leak = _leak(stretches)
        self.leaks, self._shown = leak is not None, leak and leak[1]
        self._in_a_row = self._in_a_row + 1 if self.leaks else 0
        self._since = None if leak is None else seconds if self._since is None else self._since
        self._climb(seconds, count, stretches[0])
        if leak is not None:
            self._keep(seconds, *leak)
        self.growing = self.found_at is not None and not has_ended(stretches[-1])

    def _climb(self, seconds: float, count: float, whole: Stretch) -> None:
        """Take steps without a fall for a leak, and for no more once a file was closed that made it one."""
        stairs = self.stairs
        shown = self._page_files and stairs is not None and not stairs.fell and stairs.steps >= STEPS
        self._stairs_in_a_row = self._stairs_in_a_row + 1 if shown else 0
        if self._stairs_in_a_row < IN_A_ROW or stairs is None or stairs.samples < NEEDED or self._longest:
            return
        if self.found_at is None:
            self.found_at, self._before = seconds, count - 1
        if self.found is None or not has_ended(whole):
            self.found = stairs.growth()

    def _keep(self, seconds: float, stretch: Stretch, grown: Estimate) -> None:
        """Take in that a stretch shows a leak."""
        length = float(stretch.seconds[-1] - stretch.seconds[0])
        holds = self._in_a_row >= IN_A_ROW and seconds - (self._since or 0.0) >= HOLD * length
        if self.found_at is None and not holds:
            return
        if self._longest == 0.0:
            self._before = float(stretch.mean[: len(stretch.mean) // 5].mean())
        if self.found_at is None:
            self.found_at = seconds
        if self._longest == 0.0 or (length >= self._longest and not has_ended(stretch)):
            self.found, self._longest = grown, length

    @property
    def growth(self) -> Estimate | None:
        """Growth per minute; None for fewer than ``MIN_SAMPLES``.

        Over the stretch that shows a leak, else over everything watched.
        """
        if self._whole is None or len(self._whole.seconds) < MIN_SAMPLES:
            return None
        return self._shown or growth(self._whole)

    @property
    def unsettled(self) -> tuple[float, float] | None:
        """From where to where the lowest count rose, when it may be a leak that began, or one under load.

        The floors of the fifths never fall, the last lies above the second, which is past the beginning, and
        above the mean of the first.
        """
        if self._whole is None or len(self._whole.seconds) < MIN_SAMPLES:
            return None
        floors, means = _fifths(self._whole)
        may = (floors[1:] >= floors[:-1]).all() and floors[-1] > max(floors[1], means[0])
        return (float(floors[0]), float(floors[-1])) if may else None


def _leak(stretches: Sequence[Stretch]) -> tuple[Stretch, Estimate] | None:
    """Return everything watched, or else the shortest stretch, if it shows a leak, and its growth."""
    # Where the last count is the lowest, no view of the stretch rises: most kinds never change.
    rising = [stretch for stretch in stretches if stretch.low[-1] > stretch.low.min()]
    views = [view for stretch in rising for view in stretch.views()]
    start = stretches[0].seconds[0]
    for view in sorted(views, key=lambda view: (view.seconds[0] > start, view.seconds[-1] - view.seconds[0])):
        if rises(view) and (grown := growth(view)).low > 0:
            return view, grown
    return None


def rises(series: Stretch) -> bool:
    """Tell whether the floors of the fifths rise one by one, each above the mean of the fifth but one before.

    Examples
    --------
    >>> stairs, seconds = np.repeat([0, 256, 512, 768, 1024], 4), np.arange(20)
    >>> rises(Stretch(seconds, stairs, stairs)), rises(Stretch(seconds, stairs % 512, stairs % 512))
    (True, False)
    """
    each = len(series.seconds) // 5
    if each < MIN_SAMPLES // 5:
        return False
    floors, means = _fifths(series)
    return bool((floors[1:] > floors[:-1]).all() and (floors[2:] > means[:-2]).all())


def growth(series: Stretch) -> Estimate:
    """Return the growth of the floor per minute, with its interval of 95 %.

    A floor is the lowest of so many neighbouring samples that there are 20 to 39 of them.  The slope is the
    one of Theil and Sen, which calls that reach into a floor hardly move.  Its own interval takes the
    deviations from the line to be independent, and those of bursts are not: what a burst leaves stays.  So the
    interval also holds the one of Student over what was added from floor to floor, which are independent.
    (Of bursts at random times the first alone holds the true rate one time in three.)
    """
    if series.low.min() == series.low.max():
        return Estimate(0.0, 0.0, 0.0, len(series.low))
    each = max(1, len(series.low) // FLOORS)
    floors = len(series.low) // each
    first = len(series.low) - floors * each
    counts = series.low[first:].reshape(floors, each).min(axis=1)
    minutes = series.seconds[first::each] / 60
    found = slope(pd.DataFrame({"minute": minutes, "count": counts}), "count", over="minute")
    added = np.diff(counts)
    per_minute = (floors - 1) / (minutes[-1] - minutes[0])
    mean, reach = added.mean(), t.ppf((1 + CONFIDENCE) / 2, len(added) - 1) * sem(added)
    low, high = (mean - reach) * per_minute, (mean + reach) * per_minute
    return Estimate(found.median, min(found.low, low), max(found.high, high), len(series.low))


def has_ended(series: Stretch) -> bool:
    """Tell whether what stays open has not risen for ``PAUSE`` times the longest time from rise to rise.

    Examples
    --------
    >>> stairs, seconds = np.repeat([0, 256, 512, 768, 1024], 4), np.arange(20)
    >>> later = np.concatenate([stairs, np.full(20, 1024)])
    >>> has_ended(Stretch(seconds, stairs, stairs)), has_ended(Stretch(np.arange(40), later, later))
    (False, True)
    """
    stays = np.minimum.accumulate(series.low[::-1])[::-1]
    rises_at = np.flatnonzero(np.diff(stays)) + 1
    if not len(rises_at):
        return True
    longest = np.diff(rises_at, prepend=0).max()
    return bool(len(stays) - 1 - rises_at[-1] > PAUSE * longest)


def _fifths(series: Stretch) -> tuple[np.ndarray, np.ndarray]:
    """Return the floors and the means of five equal parts, the oldest samples left out."""
    each = len(series.seconds) // 5
    floors = series.low[-5 * each :].reshape(5, each).min(axis=1)
    return floors, series.mean[-5 * each :].reshape(5, each).mean(axis=1)


def _merged(rows: Sequence[tuple[float, np.ndarray, np.ndarray]]) -> tuple[float, np.ndarray, np.ndarray]:
    lows, means = [row[1] for row in rows], [row[2] for row in rows]
    return rows[0][0], np.min(lows, axis=0), np.mean(means, axis=0)


def _stretch(rows: Sequence[tuple[float, np.ndarray, np.ndarray]]) -> Stretch:
    seconds, lows, means = zip(*rows, strict=True)
    return Stretch(np.array(seconds), np.array(lows), np.array(means))
