"""What the command replay prints: a column for each connector, every call, or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from .app import out, say

if TYPE_CHECKING:
    import pandas as pd

    from ..lab.experiments.summary import Summary


def show_summaries(summaries: Mapping[str, Summary]) -> None:
    """Print a column for each connector, and a line for the first call that failed with each."""
    table = _table("", *summaries)
    columns = [found.cells() for found in summaries.values()]
    for heading in columns[0]:
        table.add_row(heading, *(column[heading] for column in columns))
    out.print(table)
    for connector, found in summaries.items():
        if (first := found.first_failure) is not None:
            say(f"{connector}: {first}")
            if first.logged != first.reason:
                say(f"  {first.logged}")


def show_calls(table: pd.DataFrame, title: str) -> None:
    """Print a row for each call."""
    from ..lab.experiments.summary import shown_calls

    calls = shown_calls(table)
    shown = _table(*calls.columns, title=title)
    for row in calls.itertuples(index=False):
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


def _table(*headings: str, title: str | None = None) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for heading in headings:
        left = heading in ("", "operation")
        table.add_column(heading, no_wrap=title is not None, justify="left" if left else "right")
    return table
