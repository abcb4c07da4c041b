"""A replay in a few numbers: what it left open, which calls failed, and how long they took."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

MOVES = ("set", "get")
SHOWN = {  # column of a replay: its heading
    "call": "call",
    "operation": "operation",
    "keys": "keys",
    "files": "files",
    "seconds": "ms",
    "open_fds": "open fds",
    "storage_fds": "storage",
    "registrations": "regs",
    "pages_ok": "ok",
    "errno": "errno",
}


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

    def __str__(self) -> str:
        return (
            f"call {self.call}, a {self.operation}, is the first that failed: {self.reason}; "
            f"{self.pages_ok} of {self.keys} pages are right"
        )


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

    def cells(self) -> dict[str, str]:
        """Return it as a reader sees it, by heading; what does not exist is a dash."""
        return {
            "descriptors before": str(self.fds_before),
            "descriptors at end": str(self.fds_at_end),
            "descriptors per key": "-" if self.fds_per_key is None else f"{self.fds_per_key:g}",
            "registrations at end": str(self.registrations_at_end),
            "failed calls": str(self.failed_calls),
            "first failed call": str(self.first_failure.call) if self.first_failure else "-",
            "median set, ms": f"{self.set.median_seconds * 1e3:.1f}" if self.set else "-",
            "median get, ms": f"{self.get.median_seconds * 1e3:.1f}" if self.get else "-",
            "median set, MB/s": f"{self.set.median_bytes_per_second / 1e6:.0f}" if self.set else "-",
            "median get, MB/s": f"{self.get.median_bytes_per_second / 1e6:.0f}" if self.get else "-",
        }


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


def shown_calls(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a table of ``replay`` that a reader sees, with the headings ``SHOWN``."""
    return table[list(SHOWN)].assign(seconds=table.seconds * 1e3).rename(columns=SHOWN)


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
