"""The first page of a run's report: verdict, findings, review agenda, figures with their claims, and the rest folded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ...resources import resource
from ..runs.claims import FAILS, HOLDS, INCONCLUSIVE, tally
from ..runs.record import Record, read_record
from .findings import FIVE, findings, notebooks_of, why_not
from .notebook_page import title_of, write_notebook_page
from .pages import write_page

AGENDA = "data/review_agenda.yaml"
HERO = "hero"  # the name of the figure that comes first


@dataclass(frozen=True)
class Finding:
    """A figure of the report with the sentence that it shows and the claims that name it.

    Attributes
    ----------
    row
        Its row of ``figures.csv``.
    sentence : str
        The story sentence; the title of the figure where it has none.
    claims : list
        Rows of ``claims.csv``.
    tally : str
        How many of the claims hold.
    tables : list of str
        The tables that hold its numbers, without those that an earlier figure shows.
    """

    row: Any
    sentence: str
    claims: list[Any]
    tally: str
    tables: list[str]


def build(run: str | Path | Record) -> Path:
    """Write ``index.html`` and the pages of the notebooks of a run; return the index.

    Parameters
    ----------
    run : path or Record
        The folder of a run, its name below ``runs/``, or its record.

    Raises
    ------
    ConfigError
        When the folder is not that of a run.
    AltTextError
        When a figure has no alt text.
    """
    record = run if isinstance(run, Record) else read_record(run)
    for name, node in record.notebooks.items():
        write_notebook_page(record.folder, name, node)
    hero, story, others = _findings(record)
    return write_page(
        record.files.index,
        "index.html.j2",
        record=record,
        failed=_rows(record.claims[record.claims.verdict == FAILS]),
        unsure=_rows(record.claims[record.claims.verdict == INCONCLUSIVE]),
        hero=hero,
        story=story,
        findings=findings(record),
        places={(row.notebook, row.figure) for row in _rows(record.figures)},
        others=others,
        ledger=_by_notebook(record),
        tally=_tally(record.claims),
        facts=facts(record),
        titles={name: title_of(node, name) for name, node in record.notebooks.items()},
        seconds={name: _seconds(node) for name, node in record.notebooks.items()},
        parameters={name: about.get("parameters", {}).items() for name, about in _noted(record).items()},
        agenda=agenda(record),
    )


def facts(record: Record) -> list[tuple[str, str]]:
    """Return a few lines about the machine, the versions and the time of a run."""
    started = min((about["started"] for about in _noted(record).values() if "started" in about), default=None)
    return [
        *machine(record.provenance),
        ("started", _moment(started) if started else "unknown"),
        ("notebooks", ", ".join(record.notebooks) or "none"),
    ]


def machine(known: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a few lines about the machine and the versions of a ``provenance``."""
    versions, storage, limit = known["versions"], known["storage"], known["nofile_limit"]
    memory = f"{known['memory_bytes'] / 2**30:.0f} GiB"
    packages = ("hicache-nixl", "nixl", "torch", "python")
    return [
        ("machine", f"{known['cpu']['model']}, {known['cpu']['cores']} cores, {memory}, {known['machine']}"),
        ("storage folder on", f"{storage['file_system']}, mounted with {storage['options']}"),
        ("kernel", known["kernel"]),
        ("versions", ", ".join(f"{name} {versions.get(name)}" for name in packages)),
        ("commit", known["git_commit"] or "installed from a wheel"),
        ("RLIMIT_NOFILE", f"soft {limit['soft']}, hard {limit['hard']}"),
    ]


def agenda(record: Record) -> dict[str, Any]:
    """Return the review agenda with the claims of this run as evidence; ``asked`` where the run has a notebook of it, or evidence."""
    known = yaml.safe_load(resource(AGENDA).read_text())
    known["none"] = why_not(record, known["notebook"])
    for remark in known["remarks"]:
        chosen = [any(fnmatchcase(id, wanted) for wanted in remark["claims"]) for id in record.claims.id]  # noqa: A001
        evidence = record.claims.loc[chosen]
        remark |= {"evidence": _rows(evidence), "tally": _tally(evidence)}
    ran = notebooks_of(record)
    known["asked"] = not ran or bool(ran & FIVE) or any(remark["evidence"] for remark in known["remarks"])
    return known


def _findings(record: Record) -> tuple[Finding | None, list[Finding], dict[str, list[Finding]]]:
    """Return the hero, the figures of the story, and the others by notebook; a run without a story shows all."""
    figures = record.figures
    first = figures.sort_values("figure", key=lambda names: names != HERO, kind="stable").head(1)
    rest = figures.drop(first.index)
    told = rest.story.str.strip() != ""
    story, others = (rest[told], rest[~told]) if told.any() else (rest, rest[:0])
    shown: set[tuple[str, str]] = set()
    hero, findings = ([_finding(record, row, shown) for row in _rows(table)] for table in (first, story))
    by_notebook = {
        name: [_finding(record, row, shown) for row in _rows(group)]
        for name, group in others.groupby("notebook", sort=True)
    }
    return next(iter(hero), None), findings, by_notebook


def _finding(record: Record, row: Any, shown: set[tuple[str, str]]) -> Finding:
    """Make a finding; a table is left out where it is in ``shown``, with an earlier figure."""
    claims = record.claims
    mine = claims[(claims.notebook == row.notebook) & (claims.figure == row.figure)]
    tables = [name for name in row.tables.split() if (row.notebook, name) not in shown]
    shown |= {(row.notebook, name) for name in tables}
    return Finding(row, row.story.strip() or row.title, _rows(mine), _tally(mine), tables)


def _tally(claims: pd.DataFrame) -> str:
    if len(claims) and (claims.verdict == HOLDS).all():
        return "1 claim holds" if len(claims) == 1 else f"{len(claims)} of {len(claims)} claims hold"
    return tally(claims)


def _noted(record: Record) -> dict[str, Any]:
    return dict(sorted(record.provenance.get("notebooks", {}).items()))


def _by_notebook(record: Record) -> dict[str, list[Any]]:
    return {name: _rows(group) for name, group in record.claims.groupby("notebook", sort=True)}


def _rows(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples(index=False))


def _seconds(node: Any) -> str:
    duration = node.metadata.get("papermill", {}).get("duration")
    return f"{duration:.0f}" if duration else ""


def _moment(iso: str) -> str:
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M} UTC"
