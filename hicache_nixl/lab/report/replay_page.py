"""The page of the command replay: summary, figure, settings and calls, complete by itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from ..experiments.summary import shown_calls, summarize
from ..figures.narrow import save_both
from ..figures.replays import replays
from ..figures.words import listed
from ..runs.provenance import provenance
from .index import machine
from .pages import page_text

MOST = 5000  # rows of a connector; a browser shows some tens of thousands without delay


def replay_page(
    tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any], missing: Mapping[str, str] | None = None
) -> str:
    """Return the page of replays of one schedule.

    Parameters
    ----------
    tables : mapping
        Replays by connector, at least one.
    settings : mapping
        What they ran with, as the page lists it: ``schedule``, its name, ``nofile_limit``, ``storage_dir`` and others.
        Those that are None are left out.
    missing : mapping, optional
        Why other connectors have no table.
    """
    drawn = replays(tables, settings["schedule"], settings["nofile_limit"])
    summaries = {name: summarize(table) for name, table in tables.items()}
    with TemporaryDirectory() as folder:
        wide, narrow = Path(folder, "wide.png"), Path(folder, "narrow.png")
        save_both(drawn.figure, drawn.alt, wide, narrow)
        return page_text(
            "replay.html.j2",
            connectors=listed(list(tables)),
            settings=_given(settings),
            summaries=summaries,
            cells={name: found.cells() for name, found in summaries.items()},
            failed=sum(found.failed_calls for found in summaries.values()),
            missing=missing or {},
            picture=(wide, drawn.alt, "", narrow),
            calls={name: shown_calls(table) for name, table in tables.items()},
            most=MOST,
            machine=machine(provenance(settings["storage_dir"])),
            made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        )


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given, in words."""
    return {
        name.replace("_", " "): {True: "yes", False: "no"}.get(value, value)
        if isinstance(value, bool)
        else value
        for name, value in settings.items()
        if value is not None
    }
