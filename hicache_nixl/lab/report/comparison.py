"""The page of two runs side by side."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from ...errors import ConfigError
from ...resources import write_whole
from ..figures.narrow import save_both
from ..runs.folder import read_table
from ..runs.record import Record, read_record
from .changes import BETTER, MARGIN, OTHER, WORSE, Change, changes
from .index import facts
from .joining import ONLY, claims_side_by_side, tables_side_by_side, time_ratios
from .notebook_page import title_of
from .overlays import Overlay, overlay
from .pages import write_page

VARYING = ("started", "notebooks")  # facts of a run that are no setting of it
MARK = "comparison.json"  # marks a folder that may be replaced


@dataclass(frozen=True)
class Comparison:
    """Two runs, compared.

    Attributes
    ----------
    page : Path
        The page; ``claims.csv``, ``tables/`` and ``figures/`` are in the same folder.
    runs : tuple of str
        What both runs are called on it.
    settings : pandas.DataFrame
        What differs of machine, versions, commit and parameters: ``what``, ``a``, ``b``.
    changes : list of Change
        What changed, the worse first.
    shared : int
        Claims that both runs have.
    only : tuple of int
        Claims that only the first run has, and only the second.
    """

    page: Path
    runs: tuple[str, str]
    settings: pd.DataFrame
    changes: list[Change]
    shared: int
    only: tuple[int, int]

    def of(self, effect: str) -> list[Change]:
        """Return the changes of one effect: ``"worse"``, ``"better"`` or ``"changed"``."""
        return [change for change in self.changes if change.effect == effect]

    @property
    def verdict(self) -> str:
        """Whether anything is worse, in one line."""
        count = len(self.of(WORSE))
        worse = f"{count} {'thing is' if count == 1 else 'things are'} worse" if count else "nothing is worse"
        others = [f"{len(some)} {effect}" for effect in (BETTER, OTHER) if (some := self.of(effect))]
        return "; ".join([f"{worse} in {self.runs[1]} than in {self.runs[0]}", *others])

    def as_dict(self) -> dict[str, Any]:
        """Return what ``compare --json`` prints."""
        return {
            "first": self.runs[0],
            "second": self.runs[1],
            "settings": self.settings[["what", "a", "b"]].astype(str).to_dict("records"),
            "claims_in_both": self.shared,
            "claims_only_in": dict(zip(("first", "second"), self.only, strict=True)),
            **{
                effect: [
                    {"what": change.what, "first": change.first, "second": change.second}
                    for change in self.of(effect)
                ]
                for effect in (WORSE, BETTER, OTHER)
            },
            "verdict": self.verdict,
            "page": str(self.page),
        }


def compare_runs(a: str | Path, b: str | Path, out: str | Path | None = None) -> Comparison:
    """Compare two runs on a page: settings, what is worse, claims, figures overlaid, times, tables joined.

    Parameters
    ----------
    a, b : path
        Folders of runs, or their names below ``runs/``.
    out : path, optional
        The folder of the page; by default ``A-vs-B`` beside the second run, since the first
        may be a reference that lies elsewhere.  An existing comparison is replaced.

    Returns
    -------
    Comparison

    Raises
    ------
    ConfigError
        When one of the two is not a run, both are the same run, or ``out`` contains other files.
    """
    first, second = read_record(a), read_record(b)
    if first.folder == second.folder:
        raise ConfigError(f"run {a} and run {b} are the same run; expected two runs")
    folder = Path(out) if out else second.folder.parent / f"{first.name}-vs-{second.name}"
    _make(folder, (first, second))
    runs = _labels(first, second)
    claims = claims_side_by_side(first.claims, second.claims)
    claims.to_csv(folder / "claims.csv", index=False)
    about = _side_by_side(
        *({what: said for what, said in facts(run) if what not in VARYING} for run in (first, second))
    )
    settings = pd.concat([_parameters(first, second), about[~about.same]], ignore_index=True)
    pairs = _pairs(first, second)
    only = (int((claims.change == ONLY[0]).sum()), int((claims.change == ONLY[1]).sum()))
    shared = len(claims) - sum(only)
    found = changes(first, second, claims, pairs)
    result = Comparison(folder / "index.html", runs, settings, found, shared, only)
    write_page(
        result.page,
        "compare.html.j2",
        a=first,
        b=second,
        runs=runs,
        to=[quote(os.path.relpath(run.folder, folder.resolve())) for run in (first, second)],
        result=result,
        equal=about[about.same],
        claims=claims,
        one_sided=ONLY,
        margin=f"{MARGIN:g}",
        times=_times(first, second, folder, runs),
        figures=_figures(first, second, folder, runs),
        **_tables(first, second, folder),
        titles=_titles(first, second),
    )
    return result


def _make(folder: Path, runs: tuple[Record, Record]) -> None:
    """Create the folder of a comparison, or empty that of an earlier comparison; refuse a folder of other files."""
    try:
        if folder.is_file():
            raise ConfigError(
                f"--out {folder} could not be created: it is a file; give a new or empty folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / MARK).exists():
            raise ConfigError(
                f"--out {folder} holds files that are not a comparison; give a new or empty folder"
            )
        for name in ("tables", "figures", "figures/narrow"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
        write_whole(folder / MARK, json.dumps([str(run.folder) for run in runs]) + "\n")
    except OSError as error:
        raise ConfigError(f"--out {folder} could not be created: {error.strerror}") from error


def _labels(a: Record, b: Record) -> tuple[str, str]:
    """Name both runs; runs of the same name by the shortest part at the end of their paths that differs."""
    for length in range(1, max(len(a.folder.parts), len(b.folder.parts)) + 1):
        names = tuple("/".join(run.folder.parts[-length:]) for run in (a, b))
        if names[0] != names[1]:
            break
    return names[0], names[1]


def _side_by_side(first: dict[str, Any], second: dict[str, Any]) -> pd.DataFrame:
    """Return the facts of both runs, and whether they are equal."""
    rows = [
        (what, first.get(what, ""), second.get(what, ""), first.get(what) == second.get(what))
        for what in dict.fromkeys([*first, *second])
    ]
    return pd.DataFrame(rows, columns=["what", "a", "b", "same"]).astype({"same": bool})


def _parameters(a: Record, b: Record) -> pd.DataFrame:
    """Return the parameters that differ, of notebooks that are in both runs."""
    given = [
        {
            f"{name[:2]}: {parameter}": str(value)
            for name, about in run.provenance.get("notebooks", {}).items()
            if name in a.notebooks and name in b.notebooks
            for parameter, value in about["parameters"].items()
        }
        for run in (a, b)
    ]
    table = _side_by_side(*given)
    return table[~table.same]


def _titles(a: Record, b: Record) -> dict[str, str]:
    return {name: title_of(node, name) for name, node in sorted({**a.notebooks, **b.notebooks}.items())}


def _pairs(a: Record, b: Record) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Return the tables that are in both runs."""
    first, second = a.tables(), b.tables()
    return [(name, read_table(first[name]), read_table(second[name])) for name in first if name in second]


def _times(a: Record, b: Record, folder: Path, runs: tuple[str, str]) -> list[dict[str, Any]]:
    """Compare every table of times: its ratios, and their figure."""
    found = []
    for name, first, second in _pairs(a, b):
        ratios = time_ratios(first, second)
        if ratios is not None:
            ratios.to_csv(folder / "tables" / f"{name}_times.csv", index=False)
            drawn = overlay(first, second, "", runs)
            found.append({"name": name, "ratios": ratios, **_drawn(drawn, folder, f"{name}_times")})
    return found


def _figures(a: Record, b: Record, folder: Path, runs: tuple[str, str]) -> list[dict[str, Any]]:
    """Overlay the figures that are in both runs; where no overlay fits, show the two pictures side by side.

    Figures of the same table, such as those of sets and of gets, share one overlay.
    """
    tables = {name: (first, second) for name, first, second in _pairs(a, b)}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row, other in _shared_figures(a, b):
        named = [f"{row.notebook}_{name}" for name in row.tables.split()]
        column = row.figure if any(row.figure in tables[name][0] for name in named if name in tables) else ""
        entry = found.setdefault((*named, column), {"rows": [], "overlaid": []})
        entry["rows"].append({"a": row, "b": other, "pictures": (_picture(a, row), _picture(b, other))})
        for name in () if entry["overlaid"] else named:
            drawn = overlay(*tables[name], column, runs) if name in tables else None
            if drawn is not None:
                file = f"{row.notebook}_{row.figure}_{name.removeprefix(row.notebook + '_')}"
                entry["overlaid"].append({"table": name, **_drawn(drawn, folder, file)})
    return list(found.values())


def _shared_figures(a: Record, b: Record) -> list[tuple[Any, Any]]:
    there = {(row.notebook, row.figure): row for row in b.figures.itertuples(index=False)}
    return [
        (row, there[row.notebook, row.figure])
        for row in a.figures.itertuples(index=False)
        if (row.notebook, row.figure) in there
    ]


def _picture(run: Record, row: Any) -> tuple[Path, str, str, Path | None]:
    """Return what the pages' macro ``picture`` shows of a figure of a run."""
    return run.picture(row), row.alt, "", run.narrow_picture(row)


def _drawn(overlaid: Overlay | None, folder: Path, name: str) -> dict[str, Any]:
    """Save a figure; return its file, title and alt text for the page."""
    if overlaid is None:
        return {}
    path, narrow = (folder / place / f"{name}.png" for place in ("figures", "figures/narrow"))
    save_both(overlaid.figure, overlaid.alt, path, narrow)
    return {"path": path, "title": overlaid.title, "alt": overlaid.alt, "narrow": narrow}


def _tables(a: Record, b: Record, folder: Path) -> dict[str, Any]:
    """Join the tables of both runs; list those that cannot be joined, and those of one run only."""
    found, apart = [], []
    for name, first, second in _pairs(a, b):
        joined = tables_side_by_side(first, second)
        if joined is None:
            apart.append(name)
            continue
        table, same = joined
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
        found.append({"name": name, "table": table, "same": same})
    only = [sorted(set(one.tables()) - set(other.tables())) for one, other in ((a, b), (b, a))]
    return {"tables": found, "not_joined": apart, "only": only}
