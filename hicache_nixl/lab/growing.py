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
hold at ``IN_A_ROW`` samples in a row.  From then on the leak stays found, also when the traffic that made it
ends, unless the count falls back to its mean before the growth: what was closed again has not leaked.

A process that opens one file after the other and keeps them, as a server does while it starts, looks the same:
watch a server that has warmed up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import sem, t

from .statistics import CONFIDENCE, Estimate, slope

MIN_SAMPLES = 10  # two to a fifth
IN_A_ROW = 3
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

    Attributes
    ----------
    leaks : bool
        Whether the rule holds at this sample.
    found_at : float or None
        The seconds at which a leak was found that has not been closed again.
    found : Estimate or None
        Its growth per minute while it grew: the estimate with the narrowest interval so far.
    closed_at : float or None
        The seconds at which what had been found was closed again.
    """

    def __init__(self) -> None:
        self.leaks = False
        self.found_at: float | None = None
        self.found: Estimate | None = None
        self.closed_at: float | None = None
        self._whole: Stretch | None = None
        self._shown: Estimate | None = None
        self._in_a_row = 0
        self._before = 0.0

    def update(self, seconds: float, count: float, stretches: Sequence[Stretch]) -> None:
        """Take in the latest sample; ``stretches`` are those of this series, the whole one first."""
        if self.found_at is not None and count <= self._before:
            self.found_at, self.found, self.closed_at = None, None, seconds
        self._whole = stretches[0]
        leak = _leak(stretches)
        self.leaks, self._shown = leak is not None, leak and leak[1]
        self._in_a_row = self._in_a_row + 1 if self.leaks else 0
        if leak is None:
            return
        stretch, grown = leak
        if self.found_at is None and self._in_a_row >= IN_A_ROW:
            self.found_at = seconds
            self._before = float(stretch.mean[: len(stretch.mean) // 5].mean())
        if self.found_at is not None and (self.found is None or _spread(grown) <= _spread(self.found)):
            self.found = grown

    @property
    def growth(self) -> Estimate | None:
        """Growth per minute; None for fewer than ``MIN_SAMPLES``.

        Over the stretch that shows a leak, else over everything watched.
        """
        if self._whole is None or len(self._whole.seconds) < MIN_SAMPLES:
            return None
        return self._shown or growth(self._whole)


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
    floors = series.low[-5 * each :].reshape(5, each).min(axis=1)
    means = series.mean[-5 * each :].reshape(5, each).mean(axis=1)
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


def _spread(grown: Estimate) -> float:
    return (grown.high - grown.low) / grown.low


def _merged(rows: Sequence[tuple[float, np.ndarray, np.ndarray]]) -> tuple[float, np.ndarray, np.ndarray]:
    lows, means = [row[1] for row in rows], [row[2] for row in rows]
    return rows[0][0], np.min(lows, axis=0), np.mean(means, axis=0)


def _stretch(rows: Sequence[tuple[float, np.ndarray, np.ndarray]]) -> Stretch:
    seconds, lows, means = zip(*rows, strict=True)
    return Stretch(np.array(seconds), np.array(lows), np.array(means))
