"""Whether a count grows now, and how fast: the rule, applied to the samples of one count.

A server opens files during a call and closes them after it, so that a single count says nothing.  What matters is
what stays open between the calls: the **floor**, the lowest count of a part of the samples.

**Growth** is the mean difference between neighbouring floors, with its interval (``floors``).

**Now** (``current``).  A leak may begin after an idle night, and a cache that has been filled grows no longer.  So the
growth is that of the longest recent stretch that no shorter one contradicts (Lepski's method; a contradiction is one of
intervals of 99 %), without what came before a plateau (``plateau``).  A shorter stretch is taken instead if it shows
growth where the longest does not, by an interval of 99.9 %, since there are several.

**Steps without a fall**, for page files only.  A call opens page files and closes them at its end, and SGLang runs
at most two calls at the same time, one that sets and one that gets.  So after ``STEPS`` separate increases without
any decrease at least one call has ended and left its files open.  This is known after three calls, long before there
are floors to compare.  Other regular files, such as logs and libraries, are opened one by one and kept.

A leak is found when the interval of the current growth is above zero, or after such steps.  Every sample is another
look, and some of many looks show a leak by chance, so a sign is needed ``IN_A_ROW`` times, and growth of the floors for
``HOLD`` of the stretch.  It is withdrawn when the signs end.

``simulation`` shows how often the interval holds the true growth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..lab.statistics import Estimate
from .floors import Floors, floors_of, is_constant
from .series import Samples, Series
from .steps import Steps, has_ended

FINE = 100  # floors, at least, to see a plateau, where there are as many samples
LATE = 3  # of them, in which a rise may be that of a call which has not ended
STEPS = 3
MIN_SAMPLES = 10
IN_A_ROW = 3
NEEDED = MIN_SAMPLES + IN_A_ROW - 1  # samples before a leak can be found
HOLD = 0.2
CONTRADICTION = 0.99  # of the intervals of two stretches
CLEAR = 0.999  # of the interval of a stretch that is not the longest
LOOK, MOST_LOOKS = 5, 250  # after so many samples only every fifth is a look, to save time


class Track:
    """What the rule says about one count, sample by sample.

    Parameters
    ----------
    page_files : bool
        Whether steps without a fall are a leak.

    Attributes
    ----------
    now : Estimate or None
        The current growth per minute; None for fewer than ``MIN_SAMPLES``.
    since : float
        The seconds from which on the current growth was measured.
    found_at : float or None
        The seconds at which a leak was found that still grows.
    found : Estimate or None
        The growth per minute of the latest leak, also when it grows no longer.
    ended_at : float or None
        The seconds at which the latest leak was found to grow no longer.
    steps : Steps
        The increases of the count.
    unsettled : bool
        Whether page files were opened in steps, without a fall, and so lately that more may come.
    """

    def __init__(self, page_files: bool = False) -> None:
        self.now: Estimate | None = None
        self.since = 0.0
        self.found_at: float | None = None
        self.found: Estimate | None = None
        self.ended_at: float | None = None
        self.steps = Steps()
        self.unsettled = False
        self._page_files = page_files
        self._in_a_row = 0  # samples with a sign; without one where negative
        self._looked = 0  # at so many samples

    def update(self, seconds: float, count: float, views: Sequence[Series], full: bool = False) -> None:
        """Add the latest sample.

        Parameters
        ----------
        views : sequence of Series
            Of this count, everything watched first; none when this is no look.
        full : bool
            Whether the process is at its limit, where nothing can grow: then no leak is withdrawn.
        """
        self.steps.add(seconds, count)
        if not views or self.steps.samples < MIN_SAMPLES or (full and self.found_at is not None):
            return
        view = current(views)
        self.now, self.since = Floors(view).growth(), float(view.seconds[0])
        self.unsettled = self._page_files and self.steps.may_go_on and self.since < self.steps.rose_at
        steps = self.unsettled and self.steps.count >= STEPS
        if steps and self.now.low <= 0:
            self.now = self.steps.growth()
        new = self.steps.samples - self._looked if self._looked else 1
        self._looked = self.steps.samples
        self._judge(seconds, new, IN_A_ROW if steps else max(IN_A_ROW, HOLD * len(view) * view.per_row))

    def _judge(self, seconds: float, new: int, enough: float) -> None:
        sign = _is_sign(self.now)
        self._in_a_row = max(self._in_a_row, 0) + new if sign else min(self._in_a_row, 0) - new
        if self._in_a_row >= enough and self.found_at is None:
            self.found_at, self.ended_at = seconds, None
        if self._in_a_row <= -IN_A_ROW and self.found_at is not None:
            self.found_at, self.ended_at = None, seconds
        if self.found_at is not None and sign:
            self.found = self.now


def look(samples: Samples) -> list[Series]:
    """Return the views of all counts; none when it is not time to look."""
    return samples.views() if samples.count <= MOST_LOOKS or samples.count % LOOK == 0 else []


def current(views: Sequence[Series]) -> Series:
    """Return the longest recent stretch that no shorter one contradicts, without what came before a plateau.

    Parameters
    ----------
    views : sequence of Series
        Everything watched, and then ever shorter stretches of it.

    Examples
    --------
    >>> filled = Series(np.arange(80.0), np.minimum(np.arange(80), 30))
    >>> float(current([filled]).seconds[0])
    30.0
    """
    if is_constant(views[0].low):
        return views[0]
    measured = [Floors(view) for view in views]
    size = measured[0].size
    low, high, agree = -math.inf, math.inf, [measured[-1]]
    for one in reversed(measured):
        found = one.growth(CONTRADICTION, size)
        low, high = max(low, found.low), min(high, found.high)
        if low > high:
            break
        agree.append(one)
    chosen = agree.pop()
    if chosen.growth().low <= 0:
        chosen = next((one for one in reversed(agree) if one.growth(CLEAR, size).low > 0), chosen)
    return plateau(chosen.view) or chosen.view


def plateau(view: Series) -> Series | None:
    """Return what came after the last rise of the floor if the growth has ended, else None."""
    floors = floors_of(view.low, max(1, len(view) // max(1, len(view) // FINE)))
    stays = np.minimum.accumulate(floors[::-1])[::-1]
    rises = np.flatnonzero(stays[1:-LATE] > stays[: -LATE - 1])
    if not len(rises) or not has_ended((rises[-1] + 1) / len(floors), len(rises)):
        return None
    each = len(view) // len(floors)
    first = len(view) - (len(floors) - int(rises[-1]) - 1) * each
    if len(view) - first < NEEDED:
        return None
    return Series(view.seconds[first:], view.low[first:], view.per_row)


def _is_sign(now: Estimate | None) -> bool:
    return now is not None and now.low > 0
