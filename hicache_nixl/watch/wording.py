"""What a watch has seen, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lab.statistics import Estimate
from .rule import NEEDED
from .sample import NAMES

if TYPE_CHECKING:
    from .verdict import Watch

UNITS = ((86400, "days"), (3600, "h"), (60, "min"))


def answer(watch: Watch) -> str:
    """Say in one line whether there is a leak."""
    track, name = watch.track(), NAMES[watch.judged]
    if track.found_at is not None and track.found is not None:
        return f"leak: {name} grow by {rate(track.found)}, found after {span(track.found_at)}"
    if watch.at_limit():
        return "undecided: the process is at its limit, where growth cannot be seen; watch it from its start"
    if watch.count < NEEDED:
        return f"undecided: {samples(watch.count)} of the {NEEDED} that are needed"
    if unsettled := _unsettled(watch):
        return f"undecided: {unsettled}; watch longer (about ten calls)"
    seen = f"no leak seen in {span(watch.seconds)}"
    if track.closed_at is not None:
        return f"{seen}: {name} grew, and were closed again after {span(track.closed_at)}"
    if track.steps.count and not track.steps.fell:
        return f"{seen}: {name} {_steps(watch)} until {span(track.steps.rose_at)}, and not since"
    now = watch.last.counts[watch.judged] if watch.last else 0
    return f"{seen}: {name} do not grow (now {now}, highest {watch.most(watch.judged)})"


def limit(watch: Watch) -> str:
    """Say how far the limit of open files is."""
    if watch.last is None or watch.last.limit is None:
        return "no limit"
    used = f"{watch.last.counts['open_fds']} of {watch.last.limit} descriptors open (soft RLIMIT_NOFILE)"
    if watch.at_limit():
        return f"{used}: at the limit, where nothing more can be opened"
    left = watch.seconds_left()
    if left is None:
        return used
    low, high = span(left.low, left.median), span(left.high, left.median)
    how = "" if watch.growing() else "no longer growing; at the earlier rate "
    return f"{used}; {how}{span(left.median)} left [{low}, {high}]"


def other_kinds(watch: Watch) -> str:
    """Name the kinds that grow besides the one that is judged."""
    grown = {
        name: found
        for name in NAMES
        if name not in (watch.judged, "open_fds") and (found := watch.track(name).found) is not None
    }
    return "; ".join(f"{NAMES[name]} by {rate(found)}" for name, found in grown.items())


def _unsettled(watch: Watch) -> str | None:
    """Say what may be a leak, and is not enough to call it one."""
    track, name = watch.track(), NAMES[watch.judged]
    if not track.unsettled:
        return None
    if not track.steps.fell:
        return f"{name} {_steps(watch)} and none was closed"
    low, high = track.floors
    return f"the lowest count of {name} rose from {low:,.0f} to {high:,.0f}"


def _steps(watch: Watch) -> str:
    steps = watch.track().steps
    times = "1 step" if steps.count == 1 else f"{steps.count} steps"
    return f"rose from {steps.first:,.0f} to {steps.last:,.0f} in {times}"


def rate(grown: Estimate) -> str:
    """Write a growth with its interval.

    Examples
    --------
    >>> rate(Estimate(1920.4, 1904.0, 1935.0, 60))
    '1,920 per minute [1,904, 1,935]'
    """
    return f"{_number(grown.median)} per minute [{_number(grown.low)}, {_number(grown.high)}]"


def samples(count: int) -> str:
    """Write a number of samples."""
    return "1 sample" if count == 1 else f"{count:,} samples"


def span(seconds: float, like: float | None = None) -> str:
    """Write a duration in the unit that suits it, or in the unit that suits ``like``.

    Examples
    --------
    >>> [span(seconds) for seconds in (11.2, 2460, 4 * 3600, 5 * 86400)]
    ['11 s', '41 min', '4.0 h', '5.0 days']
    >>> span(100, like=2460)
    '1.7 min'
    """
    chosen = seconds if like is None else like
    size, unit = next(((size, unit) for size, unit in UNITS if chosen >= 2 * size), (1, "s"))
    value = seconds / size
    return f"{value:,.0f} {unit}" if unit == "s" or value >= 10 else f"{value:.1f} {unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 or value == 0 else f"{value:.2g}"
