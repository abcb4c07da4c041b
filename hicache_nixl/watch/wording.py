"""What a watch has seen, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..lab.statistics import Estimate
from .rule import NEEDED
from .sample import NAMES

if TYPE_CHECKING:
    from .verdict import Watch

UNITS = ((86400, "days"), (3600, "h"), (60, "min"))


def answer(watch: Watch) -> str:
    """Say in one line whether there is a leak."""
    if leaks := watch.leaks:
        growing = [f"{NAMES[name]} grow by {rate(found)}" for name in leaks if (found := watch.growth(name))]
        since = min(at for name in leaks if (at := watch.track(name).found_at) is not None)
        return f"leak: {'; '.join(growing)}, found after {span(since)}"
    if question := open_question(watch):
        return f"undecided: {question}"
    name, counts = watch.kinds[0], watch.last.counts if watch.last else {}
    now = f"now {counts.get(name, 0)}, highest {watch.most(name)}"
    return (
        f"no leak seen in {span(watch.seconds)}: {NAMES[name]} do not grow ({now}), nor does any other kind"
    )


def open_question(watch: Watch) -> str | None:
    """Say why there is no answer yet, and how to get one; None where there is one."""
    if watch.at_limit():
        return "the process is at its limit, where growth cannot be seen; watch it from its start"
    if watch.count < NEEDED:
        return f"{samples(watch.count)} of the {NEEDED} that are needed"
    if watch.never_opened() and "storage_fds" not in watch.kinds:
        return (
            "nothing was seen to be opened or closed: was there traffic? With --storage-dir, calls shorter than --interval "
            "are seen too"
        )
    if watch.never_opened():
        return (
            "no storage file was seen open, so nothing shows whether they leak; watch while the server "
            "stores and loads pages"
        )
    track = watch.track("storage_fds")
    if track.unsettled:
        return f"storage files {_steps(watch)} and none was closed; watch longer (about ten calls)"
    if (name := watch.may_leak()) and (grown := watch.growth(name)):
        return (
            f"too early to tell, watch about {span(max(1, watch.seconds_to_find(name)))} more; "
            f"{NAMES[name]} grow by {rate(grown)}"
        )
    name = watch.not_excluded()
    grown = watch.growth(name) if name else None
    if name is None or grown is None:
        return None
    matters = f"{number(watch.matters)} per minute would reach the limit within {span(3600 * watch.horizon)}"
    return (
        f"too early to tell, watch about {span(watch.seconds_to_decide(name))} more; "
        f"{NAMES[name]} may grow by up to {number(grown.high)} per minute, and {matters}"
    )


def limit(watch: Watch) -> str:
    """Say how far the limit of open files is."""
    if watch.last is None or watch.last.limit is None:
        return "no limit"
    used = f"{watch.last.counts['open_fds']} of {watch.last.limit} descriptors open (soft RLIMIT_NOFILE)"
    if watch.last.counts["open_fds"] > watch.last.limit:
        return f"{used}: some were opened before the limit was lowered, and nothing more can be opened"
    if watch.at_limit():
        return f"{used}: at the limit, where nothing more can be opened"
    left = watch.seconds_left()
    if left is None:
        return used
    low, high = span(left.low, left.median), span(left.high, left.median)
    return f"{used}; {span(left.median)} left [{low}, {high}]"


def ended(watch: Watch) -> str:
    """Name the kinds that grew, and do so no longer; empty where there are none."""
    said = []
    for name in watch.kinds:
        track = watch.track(name)
        if track.ended_at is not None and track.found is not None and watch.last is not None:
            now, most = watch.last.counts[name], watch.most(name)
            said.append(
                f"{NAMES[name]} grew by {rate(track.found)} and grow no longer (now {now}, highest {most})"
            )
    return "; ".join(said)


def idle(watch: Watch) -> str | None:
    """Say that an all-clear is about a process that may have had nothing to do."""
    if watch.found or watch.never_opened() or not watch.is_idle():
        return None
    return (
        "no file was seen to be opened or closed; whether the server stored or loaded pages meanwhile can only be told "
        "with --storage-dir"
    )


def _steps(watch: Watch) -> str:
    steps = watch.track("storage_fds").steps
    times = "1 step" if steps.count == 1 else f"{steps.count} steps"
    return f"rose from {steps.first:.0f} to {steps.last:.0f} in {times}"


def rate(grown: Estimate) -> str:
    """Write a growth with its interval.

    Examples
    --------
    >>> rate(Estimate(1920.4, 1904.0, 1935.0, 60))
    '1920 per minute [1904, 1935]'
    """
    return f"{number(grown.median)} per minute [{number(grown.low)}, {number(grown.high)}]"


def samples(count: int) -> str:
    """Write a number of samples."""
    return "1 sample" if count == 1 else f"{count} samples"


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
    if math.isinf(chosen):
        return "ever"
    size, unit = next(((size, unit) for size, unit in UNITS if chosen >= 2 * size), (1, "s"))
    value = seconds / size
    return f"{value:.0f} {unit}" if unit == "s" or value >= 10 else f"{value:.1f} {unit}"


def number(value: float) -> str:
    """Write a number of descriptors: whole, or two digits of a small one."""
    return f"{value:.0f}" if abs(value) >= 10 or value == 0 else f"{value:.2g}"
