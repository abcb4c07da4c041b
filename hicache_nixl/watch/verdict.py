"""Watching the descriptors of a process over time: samples, and what they say.

Where the samples come from is ``subjects``; the rules that call a growth a leak are ``growing`` and ``stairs``; the
CSV that keeps them is ``recording``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from ..lab.statistics import Estimate
from .rule import NEEDED, Samples, Track

KINDS = ("regular", "folder", "device", "socket", "pipe", "eventfd", "epoll", "io_uring", "timerfd", "other")
COUNTS = ("open_fds", "storage_fds", *KINDS)
COLUMNS = ("time", "seconds", *COUNTS, "limit")
NAMES = {
    "open_fds": "all descriptors",
    "storage_fds": "storage files",
    "regular": "regular files",
    "folder": "folders",
    "device": "devices",
    "socket": "sockets",
    "pipe": "pipes",
    "eventfd": "eventfds",
    "epoll": "epolls",
    "io_uring": "io_urings",
    "timerfd": "timerfds",
    "other": "others",
}
UNITS = ((86400, "days"), (3600, "h"), (60, "min"))
AT_LIMIT = 0.99  # of the limit; a call that does not fit gives back what it had opened


@dataclass(frozen=True)
class Sample:
    """The descriptors of a process at one moment.

    Attributes
    ----------
    time : datetime
        In UTC.
    seconds : float
        Since the watch began.
    storage_fds : int or None
        Files below the storage folder; None when no folder was named.
    kinds : mapping
        All others, by ``KINDS``.
    limit : int or None
        The soft RLIMIT_NOFILE of the process; None when it has none.
    """

    time: datetime
    seconds: float
    storage_fds: int | None
    kinds: Mapping[str, int]
    limit: int | None

    @property
    def counts(self) -> dict[str, int]:
        """Return the count of every column of ``COUNTS``; without a storage folder 0 lie below it."""
        storage = self.storage_fds or 0
        return {"open_fds": storage + sum(self.kinds.values()), "storage_fds": storage, **self.kinds}

    def line(self) -> str:
        """Return the sample as a line of the CSV; empty where there is no storage folder or no limit."""
        counts: dict[str, Any] = {**self.counts, "storage_fds": self.storage_fds}
        told = [counts[name] for name in COUNTS] + [self.limit]
        values = ["" if value is None else str(value) for value in told]
        time = self.time.isoformat(timespec="milliseconds")
        return ",".join([time, f"{self.seconds:.6f}", *values]) + "\n"


class Watch:
    """What a series of samples says, sample by sample, in bounded memory.

    Leaks are judged on the storage files where a folder was named, else on the regular files.
    """

    def __init__(self) -> None:
        self._samples = Samples()
        self._tracks = {name: Track(page_files=name == "storage_fds") for name in COUNTS}
        self._most = dict.fromkeys(COUNTS, 0)
        self.first: Sample | None = None
        self.last: Sample | None = None

    @classmethod
    def of(cls, table: pd.DataFrame) -> Watch:
        """Judge a table of ``read_watch`` as it would have been judged live."""
        watch = cls()
        for row in table.to_dict("records"):
            storage, limit = (
                None if pd.isna(row[name]) else int(row[name]) for name in ("storage_fds", "limit")
            )
            kinds = {kind: int(row[kind]) for kind in KINDS}
            watch.add(Sample(row["time"], row["seconds"], storage, kinds, limit))
        return watch

    def add(self, sample: Sample) -> None:
        """Take in a sample."""
        counts = sample.counts
        self.first = self.first or sample
        self.last = sample
        self._samples.add(sample.seconds, [counts[name] for name in COUNTS])
        stretches = self._samples.stretches()
        for number, (name, track) in enumerate(self._tracks.items()):
            self._most[name] = max(self._most[name], counts[name])
            track.update(sample.seconds, counts[name], [stretch.column(number) for stretch in stretches])

    @property
    def count(self) -> int:
        """The number of samples."""
        return self._samples.count

    @property
    def judged(self) -> str:
        """The column that a leak is judged on."""
        return "regular" if self.last is None or self.last.storage_fds is None else "storage_fds"

    @property
    def found(self) -> bool:
        """Whether a leak was found, and has not been closed again."""
        return self.grows(self.judged)

    @property
    def settled(self) -> bool:
        """Whether the answer is yes or no: a leak was found, or none is to be seen in enough samples."""
        return self.found or not (self.at_limit() or self.count < NEEDED or self._unsettled())

    @property
    def leak(self) -> Estimate | None:
        """The growth per minute of what is judged: while it leaked if a leak was found, else over all."""
        return self._tracks[self.judged].found or self.growth(self.judged)

    def growth(self, column: str = "open_fds") -> Estimate | None:
        """Return the growth per minute of a column now; None for too few samples."""
        return self._tracks[column].growth

    def most(self, column: str) -> int:
        """Return the highest count of a column so far."""
        return self._most[column]

    def grows(self, column: str) -> bool:
        """Tell whether the rule found a column to grow."""
        return self._tracks[column].found_at is not None

    def shown(self) -> list[str]:
        """Return the columns that have something to tell, all descriptors last."""
        names = [name for name in COUNTS[1:] if self._most[name] or name == self.judged]
        return [*names, "open_fds"]

    def table(self) -> pd.DataFrame:
        """Return a row per kind: ``now``, ``most``, ``per_minute`` with ``low`` and ``high``, ``grows``."""
        rows = []
        for name in self.shown():
            now, grown = self.last.counts[name] if self.last else 0, self.growth(name)
            told = (grown.median, grown.low, grown.high) if grown else (None, None, None)
            rows.append((NAMES[name], now, self.most(name), *told, self.grows(name)))
        columns = ["descriptors", "now", "most", "per_minute", "low", "high", "grows"]
        return pd.DataFrame(rows, columns=columns)

    def seconds_left(self) -> Estimate | None:
        """Return the seconds until the limit at the growth that was found; None without such growth.

        Kinds that still grow count together.  When none does any more, it is the growth that there was.
        """
        grown = [track for name, track in self._tracks.items() if name != "open_fds" and track.found]
        rates = [track.found for track in grown if track.growing] or [track.found for track in grown]
        told = [rate for rate in rates if rate is not None]
        if self.last is None or self.last.limit is None or not told:
            return None
        median, low, high = (sum(getattr(rate, name) for rate in told) for name in ("median", "low", "high"))
        free = 60 * max(0, self.last.limit - self.last.counts["open_fds"])
        return Estimate(free / median, free / high, free / low, min(rate.count for rate in told))

    def growing(self) -> bool:
        """Tell whether any kind that was found to grow still does."""
        return any(track.growing for name, track in self._tracks.items() if name != "open_fds")

    def at_limit(self) -> bool:
        """Tell whether the process has next to no descriptor left."""
        last = self.last
        return (
            last is not None and last.limit is not None and last.counts["open_fds"] >= AT_LIMIT * last.limit
        )

    def limit_told(self) -> str:
        """Say how far the limit is."""
        if self.last is None or self.last.limit is None:
            return "no limit"
        told = f"{self.last.counts['open_fds']} of {self.last.limit} (its soft RLIMIT_NOFILE)"
        if self.at_limit():
            return f"{told}: at the limit, where nothing more can be opened"
        left = self.seconds_left()
        if left is None:
            return told
        low, high = span(left.low, left.median), span(left.high, left.median)
        how = "" if self.growing() else "grows no more, at that rate "
        return f"{told}; {how}{span(left.median)} left [{low}, {high}]"

    def answer(self) -> str:
        """Say in one line whether there is a leak."""
        track, name = self._tracks[self.judged], NAMES[self.judged]
        if track.found_at is not None and track.found is not None:
            return f"leak: {name} grow by {rate(track.found)}, found after {span(track.found_at)}"
        if self.at_limit():
            return "not judged: at the limit no growth can be seen; watch it from its start"
        if self.count < NEEDED:
            return f"not judged: {samples(self.count)}, and it takes {NEEDED}"
        if unsettled := self._unsettled():
            return f"not settled: {unsettled}; watch longer (about ten calls)"
        seen = f"no leak seen in {span(self.last.seconds if self.last else 0.0)}"
        if track.closed_at is not None:
            return f"{seen}: {name} grew, and were closed again after {span(track.closed_at)}"
        if (stairs := track.stairs) is not None and stairs.steps and not stairs.fell:
            return f"{seen}: {name} {stairs.told()} until {span(stairs.rose_at)}, and not since"
        now = self.last.counts[self.judged] if self.last else 0
        return f"{seen}: no growth of {name} that stays (now {now}, at most {self.most(self.judged)})"

    def _unsettled(self) -> str | None:
        """Say what may be a leak, and is not enough to call it one."""
        track, name = self._tracks[self.judged], NAMES[self.judged]
        if track.stairs is not None and not track.stairs.fell:
            return f"{name} {track.stairs.told()} and none was closed" if track.stairs.rising else None
        if track.unsettled is None:
            return None
        low, high = track.unsettled
        return f"the lowest count of {name} rose from {low:,.0f} to {high:,.0f}"

    def others(self) -> str:
        """Name the other kinds that grow too."""
        grown = {
            name: track.found
            for name, track in self._tracks.items()
            if name not in (self.judged, "open_fds") and track.found is not None
        }
        return "; ".join(f"{NAMES[name]} by {rate(found)}" for name, found in grown.items())


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
    """Write a time as people say it, in the unit of ``like`` when that is given.

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
