"""Watching the descriptors of a process over time: samples, the answer, and the CSV that keeps them.

Where the samples come from is ``subjects``; the rule that calls a growth a leak is ``growing``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import ConfigError, FileError
from .growing import IN_A_ROW, MIN_SAMPLES, Samples, Track
from .statistics import Estimate

KINDS = ("regular", "folder", "device", "socket", "pipe", "eventfd", "epoll", "io_uring", "timerfd", "other")
COUNTS = ("open_fds", "storage_fds", *KINDS)
COLUMNS = ("time", "seconds", *COUNTS, "limit")
NEEDED = MIN_SAMPLES + IN_A_ROW - 1  # samples before a leak can be found
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


class WatchFileError(ConfigError):
    """A file that is not, or cannot become, the CSV of a watch."""


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
        self._tracks = {name: Track() for name in COUNTS}
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
        """Return the seconds until the limit, at the growth of all descriptors; None without such growth."""
        grown = self.growth()
        if self.last is None or self.last.limit is None or grown is None or grown.low <= 0:
            return None
        free = 60 * max(0, self.last.limit - self.last.counts["open_fds"])
        return Estimate(free / grown.median, free / grown.high, free / grown.low, grown.count)

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
        return f"{told}; {span(left.median)} left [{low}, {high}]"

    def answer(self) -> str:
        """Say in one line whether there is a leak."""
        track, name = self._tracks[self.judged], NAMES[self.judged]
        if track.found_at is not None and track.found is not None:
            return f"leak: {name} grow by {rate(track.found)}, found after {span(track.found_at)}"
        if self.at_limit():
            return "not judged: at the limit no growth can be seen; watch it from its start"
        if self.count < NEEDED:
            return f"not judged: {samples(self.count)}, and it takes {NEEDED}"
        if track.closed_at is not None:
            return f"no leak: {name} grew, and were closed again after {span(track.closed_at)}"
        now = self.last.counts[self.judged] if self.last else 0
        return f"no leak: no growth of {name} that stays (now {now}, at most {self.most(self.judged)})"

    def others(self) -> str:
        """Name the other kinds that grow too."""
        grown = {
            name: track.found
            for name, track in self._tracks.items()
            if name not in (self.judged, "open_fds") and track.found is not None
        }
        return "; ".join(f"{NAMES[name]} by {rate(found)}" for name, found in grown.items())


class WatchFile:
    """The CSV of a watch, with every sample in it from the moment it was taken.

    Raises
    ------
    WatchFileError
        When the file exists already, or cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        try:
            self._file = open(self.path, "xb", buffering=0)
        except FileExistsError:
            raise WatchFileError(f"--csv {path} exists already and is a record; name another file") from None
        except OSError as error:
            raise WatchFileError(f"--csv {path}: {error.strerror}; it takes a new file in a folder") from None
        self._size = 0
        self._write(",".join(COLUMNS) + "\n")

    def write(self, sample: Sample) -> None:
        """Write one sample, whole or not at all.

        Raises
        ------
        FileError
            When the disk is full, for instance; the samples before this one are in the file.
        """
        self._write(sample.line())

    def _write(self, line: str) -> None:
        data = line.encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise FileError.of(error, str(self.path)) from error
        self._size = self._file.tell()

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def __enter__(self) -> WatchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_watch(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read the CSV of ``hicache-nixl watch``.

    Returns
    -------
    pandas.DataFrame
        ``COLUMNS``; ``storage_fds`` is missing where no folder was named, ``limit`` where there is none.

    Raises
    ------
    WatchFileError
        When it is no such file.
    """
    try:
        table = pd.read_csv(Path(path), dtype=str)  # a path alone: pandas takes URLs as well
    except (OSError, ValueError) as error:  # ValueError: no columns, not a CSV, not text
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise WatchFileError(f"{path}: {reason}; it takes a CSV of hicache-nixl watch") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise WatchFileError(f"{path}: no column {', '.join(missing)}; it takes a CSV of hicache-nixl watch")
    if table.empty:
        raise WatchFileError(f"{path}: it has no samples")
    table["time"] = pd.to_datetime(table["time"], utc=True, errors="coerce", format="ISO8601")
    for name in COLUMNS[1:]:
        whole = "" if name == "seconds" else " whole"
        numbers = pd.to_numeric(table[name], errors="coerce")
        optional = table[name].isna() & (name in ("storage_fds", "limit"))
        wrong = ~optional & (numbers.isna() | (numbers < 0) | (bool(whole) & (numbers % 1 != 0)))
        if wrong.any():
            line = int(wrong.idxmax())
            told = "missing" if pd.isna(table[name][line]) else repr(table[name][line])
            raise WatchFileError(f"{path}: line {line + 2}: {name} is {told}, not a{whole} number")
        table[name] = numbers.astype("float64" if name == "seconds" else "Int64")
    if table["time"].isna().any():
        raise WatchFileError(f"{path}: line {int(table['time'].isna().idxmax()) + 2}: time is not a time")
    if not table["seconds"].is_monotonic_increasing or not table["seconds"].is_unique:
        raise WatchFileError(f"{path}: seconds do not rise from line to line")
    return table[list(COLUMNS)]


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
