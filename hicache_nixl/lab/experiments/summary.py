"""A replay in a few numbers: what it left open, which calls failed, and how long they took."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

MOVES = ("set", "get")


@dataclass(frozen=True)
class Failure:
    """The first call that failed: fewer pages were right than were asked for.

    Attributes
    ----------
    reason : str
        What its errno means, or the first line that was logged.
    """

    call: int
    operation: str
    pages_ok: int
    keys: int
    errno: int
    reason: str
    logged: str


@dataclass(frozen=True)
class Pace:
    """Medians of the calls of one operation that succeeded."""

    calls: int
    median_seconds: float
    median_bytes_per_second: float


@dataclass(frozen=True)
class Summary:
    """A replay in a few numbers.

    Attributes
    ----------
    keys : int
        Of all sets and gets.
    fds_before, fds_at_end : int
        Open descriptors before the first call and after the last.
    fds_per_key : float or None
        Descriptors that stay open for each page that was stored or loaded; None when there was none.
    registrations_at_end : int
        Regions that are registered with NIXL after the last call.
    set, get : Pace or None
        None when no such call succeeded.
    """

    calls: int
    keys: int
    fds_before: int
    fds_at_end: int
    fds_per_key: float | None
    registrations_at_end: int
    failed_calls: int
    first_failure: Failure | None
    set: Pace | None
    get: Pace | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def summarize(table: pd.DataFrame) -> Summary:
    """Summarize a table of ``replay``.

    Examples
    --------
    >>> from hicache_nixl.lab import Schedule, replay
    >>> found = summarize(replay(Schedule.steady(calls=2, keys=4), "leaky", page_bytes=4096))
    >>> found.keys, found.fds_per_key, found.failed_calls
    (8, 2.0, 0)
    """
    moves = table[table.operation.isin(MOVES)]
    failed = moves[moves.pages_ok < moves["keys"]]
    right, grown = int(moves.pages_ok.sum()), int(table.open_fds.iloc[-1]) - table.attrs["fds_before"]
    return Summary(
        calls=len(table),
        keys=int(moves["keys"].sum()),
        fds_before=table.attrs["fds_before"],
        fds_at_end=int(table.open_fds.iloc[-1]),
        fds_per_key=grown / right if right else None,
        registrations_at_end=int(table.registrations.iloc[-1]),
        failed_calls=len(failed),
        first_failure=_failure(failed.iloc[0], table.attrs["log"]) if len(failed) else None,
        set=_pace(moves, "set"),
        get=_pace(moves, "get"),
    )


def _failure(row: Any, log: dict[int, list[str]]) -> Failure:
    logged = log.get(int(row.call), ["nothing was logged"])[0]
    reason = os.strerror(row.errno) if row.errno else logged
    counts = int(row.pages_ok), int(row["keys"])
    return Failure(int(row.call), row.operation, *counts, int(row.errno), reason, logged)


def _pace(moves: pd.DataFrame, operation: str) -> Pace | None:
    calls = moves[(moves.operation == operation) & (moves.pages_ok == moves["keys"])]
    if calls.empty:
        return None
    speed = (calls.bytes / calls.seconds).median()
    return Pace(len(calls), float(calls.seconds.median()), float(speed))
