"""Schedules: the calls of a server to its storage, and how many descriptors they should leave open."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product, takewhile
from pathlib import Path
from typing import TextIO

import pandas as pd

from ...errors import ConfigError
from ...resources import resource
from .server_log import EXAMPLE, calls_of

OPERATIONS = ("set", "get", "exists")
MOST_CALLS, MOST_KEYS = 1_000_000, 1_000_000  # far beyond any server: SGLang puts 128 keys into a call
HEADER = 10_000  # characters of a first line
RECORDED_LOG = "data/pr24671_log.csv"
RECORDED_BASELINE = 135  # descriptors of the PR's server before the first call: 167 - 2 x 16
RECORDED_CALLS = (1, 10, 21)  # which calls of Schedule.pr24671() the log's three lines follow


class ScheduleError(ConfigError):
    """A schedule that cannot be replayed."""


@dataclass(frozen=True)
class Call:
    """One batch call: an operation on a number of keys (pages)."""

    operation: str
    keys: int


@dataclass(frozen=True)
class Schedule:
    """A list of calls.

    A set stores pages that were not stored before.  A get and an exists ask for the pages stored last, and
    begin with the first again when they ask for more than there are.  A get before any set, as in a log that was
    rotated, asks for pages that a replay stores beforehand and does not count.

    Raises
    ------
    ScheduleError
        For an unknown operation, a number of keys below one, or more than ``MOST_CALLS`` calls.

    Examples
    --------
    >>> len(Schedule.pr24671()), Schedule.pr24671().total("set"), Schedule.pr24671().calls[-1]
    (21, 1888, Call(operation='get', keys=128))
    """

    calls: tuple[Call, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        if len(self.calls) > MOST_CALLS:
            raise ScheduleError(f"{self.name}: {len(self.calls)} calls; expected at most {MOST_CALLS}")
        for number, call in enumerate(self.calls, 1):
            if call.operation not in OPERATIONS:
                raise ScheduleError(
                    f"call {number}: operation {call.operation!r} is unknown; expected one of {', '.join(OPERATIONS)}"
                )
            if call.keys < 1:
                raise ScheduleError(f"call {number}: {call.keys} keys; expected a whole number from 1")

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def __add__(self, other: Schedule) -> Schedule:
        return Schedule(self.calls + other.calls, f"{self.name} + {other.name}")

    @property
    def largest(self) -> int:
        """Keys of the largest set or get: what the host pool must hold."""
        return max((call.keys for call in self.calls if call.operation != "exists"), default=0)

    @property
    def stored_before(self) -> int:
        """Keys that must be stored before the first call: those of the largest get before any set.

        Examples
        --------
        >>> Schedule.of([("get", 8), ("get", 16), ("set", 4), ("get", 64)]).stored_before
        16
        """
        first = takewhile(lambda call: call.operation != "set", self.calls)
        return max((call.keys for call in first if call.operation == "get"), default=0)

    def total(self, operation: str) -> int:
        """Keys of all calls of one operation."""
        return sum(call.keys for call in self.calls if call.operation == operation)

    @classmethod
    def of(cls, calls: Iterable[tuple[str, int]], name: str = "custom") -> Schedule:
        """Make a schedule from (operation, keys) pairs."""
        return cls(tuple(Call(operation, int(keys)) for operation, keys in calls), name)

    @classmethod
    def pr24671(cls) -> Schedule:
        """Return calls that meet the three lines of PR #24671's log.

        16 keys set; then 592 keys in calls of 16 and 128, the last of 128; then 11 calls of 128, the last a
        get.  The log does not say which calls the 592 were: see ``splits``.
        """
        first = [("set", 16)]
        then = [("set", 16)] * 5 + [("set", 128)] * 4
        last = [("set", 128)] * 10 + [("get", 128)]
        return cls.of(first + then + last, "pr24671")

    @classmethod
    def single_call(cls) -> Schedule:
        """Return what the PR also describes: 16 keys, then 592 in one set."""
        return cls.of([("set", 16), ("set", 592)], "single_call")

    @classmethod
    def steady(cls, calls: int, keys: int, operations: Sequence[str] = ("set", "get")) -> Schedule:
        """Return ``calls`` calls of ``keys`` keys, taking the operations in turn."""
        for name, value, most in (("calls", calls, MOST_CALLS), ("keys", keys, MOST_KEYS)):
            if not 1 <= value <= most:
                raise ScheduleError(f"steady: {name} is {value}; expected a whole number from 1 to {most}")
        return cls.of([(operations[i % len(operations)], keys) for i in range(calls)], "steady")

    @classmethod
    def from_file(cls, path: str | Path) -> Schedule:
        """Read a schedule from a server's log (``from_log``), or a CSV file (``from_csv``), as its first line tells."""
        with _opened(path) as file:
            header = {name.strip() for name in file.readline(HEADER).split(",")}
        is_csv = {"operation", "keys"} <= header or Path(path).suffix == ".csv"
        return cls.from_csv(path) if is_csv else cls.from_log(path)

    @classmethod
    def from_log(cls, path: str | Path) -> Schedule:
        """Read a schedule from the log of a SGLang server that was started with ``--log-level debug``."""
        with _opened(path) as file:
            calls = calls_of(file)
        if not calls:
            raise ScheduleError(
                f"schedule {path}: no line has a call, such as {EXAMPLE!r}; expected the log of a SGLang server with "
                "--log-level debug, or a CSV file with the columns operation and keys"
            )
        return cls.of(calls, Path(path).stem)

    @classmethod
    def from_csv(cls, path: str | Path) -> Schedule:
        """Read a schedule from a file: columns ``operation`` and ``keys``; others are ignored."""
        try:
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, skip_blank_lines=False, skipinitialspace=True
            )
        except pd.errors.EmptyDataError:
            raise ScheduleError(f"schedule {path}: the file is empty") from None
        except UnicodeDecodeError:
            raise ScheduleError(f"schedule {path}: not a text file in UTF-8") from None
        except OSError as error:
            raise ScheduleError(f"schedule {path}: {error.strerror}; expected a CSV file") from error
        except (ValueError, csv.Error) as error:
            raise ScheduleError(f"schedule {path}: {' '.join(str(error).split())}") from error
        if missing := {"operation", "keys"} - set(table.columns):
            raise ScheduleError(
                f"schedule {path}: no column {', '.join(sorted(missing))} in the first line, "
                f"which has {', '.join(table.columns)}; expected operation,keys separated by commas"
            )
        calls = [
            _call(row.operation, row.keys_, f"schedule {path}, line {row.Index + 2}")  # the header is line 1
            for row in table.rename(columns={"keys": "keys_"}).itertuples()
            if any(row[1:])
        ]
        if not calls:
            raise ScheduleError(f"schedule {path}: it has no calls")
        return cls(tuple(calls), Path(path).stem)


def _opened(path: str | Path) -> TextIO:
    try:
        return open(path, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ScheduleError(
            f"schedule {path}: {error.strerror}; expected a CSV file or a server's log"
        ) from error


def _call(operation: str, keys: str, where: str) -> Call:
    """Return the call of a line of a log."""
    name = operation.strip().removeprefix("batch_").removesuffix("_v1")
    if name not in OPERATIONS:
        raise ScheduleError(
            f"{where}: operation {operation!r} is unknown; expected one of {', '.join(OPERATIONS)}, "
            "or SGLang's batch_set_v1, batch_get_v1, batch_exists"
        )
    try:
        count = float(keys)
    except ValueError:
        count = math.nan
    if not (1 <= count <= MOST_KEYS and count.is_integer()):
        raise ScheduleError(f"{where}: keys is {keys!r}; expected a whole number from 1 to {MOST_KEYS}")
    return Call(name, int(count))


def recorded_log() -> pd.DataFrame:
    """Return the three lines of PR #24671's log, with ``call``, their place in ``Schedule.pr24671``."""
    table = pd.read_csv(resource(RECORDED_LOG))
    table.insert(0, "call", RECORDED_CALLS)
    return table


def files_per_key(layout: str, mla: bool) -> int:
    """Return how many files a page is: 2 for a zero-copy multi-head page (K, V), else 1."""
    return 1 if mla or layout == "layer_first" else 2


def predicted_fds(
    schedule: Schedule, per_key: int, baseline: int = 0, limit: int | None = None
) -> tuple[list[int], int | None]:
    """Return how many descriptors a leaky connector should have open after each call.

    Every set and every get keeps ``per_key`` descriptors per key.  A call that does not fit below the limit
    fails and closes what it had opened; a set also needs one free descriptor to create its files.

    Returns
    -------
    open_fds : list of int
    first_failure : int or None
        Number of the first call, from 1, that meets EMFILE.

    Examples
    --------
    >>> predicted_fds(Schedule.single_call(), 2, baseline=135)
    ([167, 1351], None)
    """
    now, open_fds, first_failure = baseline, [], None
    for number, call in enumerate(schedule, 1):
        wanted = 0 if call.operation == "exists" else per_key * call.keys
        if limit is not None and wanted and now + wanted > limit:
            first_failure = first_failure or number
        else:
            now += wanted
        open_fds.append(now)
    return open_fds, first_failure


def splits(total: int, sizes: Sequence[int]) -> pd.DataFrame:
    """List all combinations of calls of the given sizes that add up to a number of keys.

    Examples
    --------
    >>> splits(592, (16, 128))["calls of 128"].tolist()
    [0, 1, 2, 3, 4]
    """
    ranges = [range(total // size + 1) for size in sizes]
    ways = [
        counts
        for counts in product(*ranges)
        if sum(n * s for n, s in zip(counts, sizes, strict=True)) == total
    ]
    table = pd.DataFrame(ways, columns=[f"calls of {size}" for size in sizes])
    table["calls"] = table.sum(axis=1)
    return table.sort_values("calls", ascending=False, ignore_index=True)
