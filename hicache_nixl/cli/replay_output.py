"""What the command replay prints: a column for each connector, every call, or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from .app import out, say

if TYPE_CHECKING:
    import pandas as pd

    from ..lab.experiments.summary import Pace, Summary

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


def show_summaries(summaries: Mapping[str, Summary]) -> None:
    """Print a column for each connector, and a line for the first call that failed with each."""
    table = _table("", *summaries)
    rows = {
        "descriptors before": lambda found: str(found.fds_before),
        "descriptors at end": lambda found: str(found.fds_at_end),
        "descriptors per key": lambda found: "-" if found.fds_per_key is None else f"{found.fds_per_key:g}",
        "registrations at end": lambda found: str(found.registrations_at_end),
        "failed calls": lambda found: str(found.failed_calls),
        "first failed call": lambda found: str(found.first_failure.call) if found.first_failure else "-",
        "median set, ms": lambda found: f"{found.set.median_seconds * 1e3:.1f}" if found.set else "-",
        "median get, ms": lambda found: f"{found.get.median_seconds * 1e3:.1f}" if found.get else "-",
        "median set, MB/s": lambda found: _rate(found.set),
        "median get, MB/s": lambda found: _rate(found.get),
    }
    for heading, cell in rows.items():
        table.add_row(heading, *(cell(found) for found in summaries.values()))
    out.print(table)
    for connector, found in summaries.items():
        if (first := found.first_failure) is not None:
            counts = f"{first.pages_ok} of {first.keys} pages are right"
            say(
                f"{connector}: call {first.call}, a {first.operation}, is the first that failed: {first.reason}; {counts}"
            )
            if first.logged != first.reason:
                say(f"  {first.logged}")


def show_calls(table: pd.DataFrame, title: str) -> None:
    """Print a row for each call."""
    shown = _table(*SHOWN.values(), title=title)
    for row in table[list(SHOWN)].assign(seconds=table.seconds * 1e3).itertuples(index=False):
        shown.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row))
    out.print(shown)


def as_json(
    about: dict[str, Any], tables: Mapping[str, pd.DataFrame], summaries: Mapping[str, Summary], rows: bool
) -> dict[str, Any]:
    """Return what ``--json`` prints; every call too, where ``rows`` are wanted."""
    connectors = []
    for connector, found in summaries.items():
        every = {"rows": tables[connector].to_dict("records")} if rows else {}
        connectors.append({"connector": connector, **found.as_dict(), **every})
    return {**about, "connectors": connectors}


def _rate(pace: Pace | None) -> str:
    return f"{pace.median_bytes_per_second / 1e6:.0f}" if pace else "-"


def _table(*headings: str, title: str | None = None) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for heading in headings:
        left = heading in ("", "operation")
        table.add_column(heading, no_wrap=heading in SHOWN.values(), justify="left" if left else "right")
    return table
