"""The page of a run: what was run on what, the claims, the figures with their tables, the review agenda."""

from __future__ import annotations

from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ...resources import resource
from ..runs.claims import FAILS, INCONCLUSIVE
from ..runs.record import Record, read_record
from .notebook_page import title_of, write_notebook_page
from .pages import write_page

AGENDA = "data/review_agenda.yaml"
HERO = ("03_before_and_after", "hero")


def build(run: str | Path | Record) -> Path:
    """Make ``index.html`` and the pages of the notebooks from what a run left; return the index.

    Parameters
    ----------
    run : path or Record
        The folder of a run, its name below ``runs/``, or what was read of it.

    Raises
    ------
    ConfigError
        When the folder holds no run.
    AltTextError
        When a figure has no alt text.
    """
    record = run if isinstance(run, Record) else read_record(run)
    for name, node in record.notebooks.items():
        write_notebook_page(record.folder, name, node)
    return write_page(
        record.files.index,
        "index.html.j2",
        record=record,
        facts=facts(record),
        hero=_hero(record),
        ledger=_by_notebook(record, record.claims),
        figures=_by_notebook(record, _each_table_once(record.figures)),
        titles={name: title_of(node, name) for name, node in record.notebooks.items()},
        seconds={name: _seconds(node) for name, node in record.notebooks.items()},
        parameters={name: about.get("parameters", {}).items() for name, about in _noted(record).items()},
        agenda=agenda(record),
        unsettled=_rows(record.claims[record.claims.verdict.isin([FAILS, INCONCLUSIVE])]),
    )


def facts(record: Record) -> list[tuple[str, str]]:
    """Say in a few lines what a run was made with and on."""
    known = record.provenance
    versions, storage, limit = known["versions"], known["storage"], known["nofile_limit"]
    started = min((about["started"] for about in _noted(record).values() if "started" in about), default=None)
    memory = f"{known['memory_bytes'] / 2**30:.0f} GiB"
    packages = ("hicache-nixl", "nixl", "torch", "python")
    return [
        ("started", _moment(started) if started else "not known"),
        ("notebooks", ", ".join(record.notebooks) or "none was run to its end"),
        ("versions", ", ".join(f"{name} {versions.get(name)}" for name in packages)),
        ("commit", known["git_commit"] or "installed from a wheel"),
        ("machine", f"{known['cpu']['model']}, {known['cpu']['cores']} cores, {memory}, {known['machine']}"),
        ("kernel", known["kernel"]),
        ("storage folder on", f"{storage['file_system']}, mounted with {storage['options']}"),
        ("RLIMIT_NOFILE", f"soft {limit['soft']}, hard {limit['hard']}"),
    ]


def agenda(record: Record) -> dict[str, Any]:
    """Return the review agenda with the claims of this run as evidence."""
    known = yaml.safe_load(resource(AGENDA).read_text())
    claims = record.claims[record.claims.notebook == known["notebook"]]
    for remark in known["remarks"]:
        chosen = [any(fnmatchcase(id, wanted) for wanted in remark["claims"]) for id in claims.id]  # noqa: A001
        remark["evidence"] = _rows(claims[chosen])
    return known


def _noted(record: Record) -> dict[str, Any]:
    return dict(sorted(record.provenance.get("notebooks", {}).items()))


def _hero(record: Record) -> Any:
    """Return the row of the figure that stands at the top: the hero, or the first one of the run."""
    rows = _rows(record.figures)
    heroes = [row for row in rows if (row.notebook, row.figure) == HERO]
    return next(iter(heroes or rows), None)


def _by_notebook(record: Record, table: pd.DataFrame) -> dict[str, list[Any]]:
    return {
        name: _rows(table[table.notebook == name])
        for name in record.notebooks
        if (table.notebook == name).any()
    }


def _each_table_once(figures: pd.DataFrame) -> pd.DataFrame:
    """Leave a table that several figures name to the last of them."""
    named = figures.assign(table=figures.tables.str.split()).explode("table")
    last = named.drop_duplicates(["notebook", "table"], keep="last").groupby(level=0).table.agg(" ".join)
    return figures.assign(tables=last.reindex(figures.index, fill_value=""))


def _rows(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples(index=False))


def _seconds(node: Any) -> str:
    duration = node.metadata.get("papermill", {}).get("duration")
    return f"{duration:.0f}" if duration else ""


def _moment(iso: str) -> str:
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M} UTC"
