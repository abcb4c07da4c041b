"""A run, as a notebook writes it: tables, figures and claims."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from ...resources import runs_folder
from ..figures.narrow import save_narrow
from .claims import FAILS, Claim, ClaimsFailedError
from .folder import RunFolder

INTERACTIVE = "interactive"


class Run:
    """What one notebook writes into the folder of a run.

    Everything is written at once, so that a notebook that fails leaves what it had found until then. The
    format of the folder is described in ``lab.runs.folder``.

    Parameters
    ----------
    notebook : str
        Name without ending; the prefix of its tables and figures.
    run_dir : path
        ``""`` stands for ``runs/interactive`` of the project.
    parameters : mapping
        The notebook's parameters, for the provenance.
    strict : bool
        Whether ``finish`` raises when a claim failed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = Run("00_example", folder, {})
    ...     run.claim(Claim("sum", "One and one is two.", "2", "2", "holds"))
    ...     run.finish().verdict.tolist()
    ['holds']
    """

    def __init__(
        self,
        notebook: str,
        run_dir: str | os.PathLike[str],
        parameters: Mapping[str, Any],
        strict: bool = True,
    ):
        self.notebook = notebook
        self.folder = Path(run_dir) if run_dir else runs_folder() / INTERACTIVE
        self.strict = strict
        self.storage_dir = parameters.get("storage_dir") or None
        self.files = RunFolder(self.folder)
        self._claims: dict[str, _Stated] = {}
        self._figures: dict[str, dict[str, Any]] = {}
        self.files.start(notebook, parameters)

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Save a tidy table as CSV and return it."""
        self.files.write_table(self.notebook, name, frame)
        return frame

    def figure(
        self, name: str, figure: Figure, alt: str, tables: Sequence[str] = (), *, story: str = ""
    ) -> None:
        """Save a figure as PNG, show it, close it, and add it to the list of the run's figures.

        Parameters
        ----------
        alt : str
            What the figure shows, for readers who do not see it.
        tables : sequence of str
            The tables of this notebook that hold its numbers; by default the one of the same name.
        story : str
            One sentence that states the finding with the values of this run. It makes the figure part of the
            report's story, where it is shown with this sentence and with the claims that name the figure
            (``run.claim(..., figure=name)``). Figures without a sentence are folded in the report.

        Raises
        ------
        ValueError
            Without an alt text.
        """
        if not alt.strip():
            raise ValueError(f"figure {name!r} has no alt text")
        title = " ".join((figure.get_suptitle() or figure.axes[0].get_title(loc="left")).split())
        figure.savefig(self.files.figure(self.notebook, name), dpi=150, metadata={"Description": alt})
        if get_ipython() is not None:
            display(figure, metadata={"image/png": {"alt": alt}})
        save_narrow(figure, self.files.narrow(self.notebook, name))
        plt.close(figure)
        self._figures[name] = {
            "cell": _Cell.running().count,
            "figure": name,
            "title": title,
            "alt": alt,
            "tables": " ".join(tables or [name]),
            "story": story,
        }
        self.files.write_figures(self.notebook, pd.DataFrame(self._figures.values()))

    def claim(self, *claims: Claim, figure: str = "") -> None:
        """State claims and write them with the number of the cell that measured them.

        A cell that is run again, as in JupyterLab, replaces the claims that it stated before.

        Parameters
        ----------
        figure : str
            The name of the figure of this notebook that shows what was measured, drawn before or after.

        Raises
        ------
        ValueError
            When a claim of that id exists, stated by this cell, another cell or another notebook of the run.
        """
        cell = _Cell.running()
        kept = {id: stated for id, stated in self._claims.items() if not cell.repeats(stated.cell)}  # noqa: A001
        taken = {id: f"cell {stated.cell.count}" for id, stated in kept.items()}  # noqa: A001
        for row in self.files.claims().itertuples():
            if row.notebook != self.notebook:
                taken.setdefault(row.id, f"notebook {row.notebook}, cell {row.cell}")
        for claim in claims:
            if claim.id in taken:
                raise ValueError(f"claim {claim.id!r} exists already, stated by {taken[claim.id]}")
            taken[claim.id] = f"cell {cell.count}"
            kept[claim.id] = _Stated(cell, figure, claim)
        self._claims = kept
        self.files.write_claims(self.notebook, self._ledger())

    def finish(self) -> pd.DataFrame:
        """Note that the notebook ran to its end; return its claims as a table.

        Raises
        ------
        ClaimsFailedError
            When claims failed and the run is strict; names each of them.
        ValueError
            When a claim names a figure that was not drawn.
        """
        unknown = {stated.figure for stated in self._claims.values()} - {"", *self._figures}
        if unknown:
            raise ValueError(f"claims name figures that were not drawn: {', '.join(sorted(unknown))}")
        self.files.finish(self.notebook)
        mine = self._ledger()
        failed = mine[mine.verdict == FAILS]
        if self.strict and len(failed):
            lines = [
                f"cell {row.cell}, claim {row.id}: {row.sentence} expected {row.expected}, measured {row.measured}"
                for row in failed.itertuples()
            ]
            raise ClaimsFailedError("; ".join(lines))
        return mine.drop(columns=["figure"])

    def _ledger(self) -> pd.DataFrame:
        rows = [
            {"cell": stated.cell.count, **dataclasses.asdict(stated.claim), "figure": stated.figure}
            for stated in self._claims.values()
        ]
        columns = ["cell", *(field.name for field in dataclasses.fields(Claim)), "figure"]
        return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class _Cell:
    """One execution of a cell."""

    count: int  # as the reader sees it; 0 outside of a notebook
    identity: str  # the same for each execution of a cell

    @classmethod
    def running(cls) -> _Cell:
        """Return the cell that runs: JupyterLab sends an id; without one, the source tells cells apart."""
        shell = get_ipython()
        if shell is None:
            return cls(0, "")
        sources = shell.user_ns["In"]
        parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
        return cls(len(sources) - 1, (parent.get("metadata") or {}).get("cellId") or sources[-1])

    def repeats(self, other: _Cell) -> bool:
        """Return whether the other one is an earlier execution of the same cell."""
        return self.count > other.count and self.identity == other.identity


@dataclass(frozen=True)
class _Stated:
    """A claim, with the cell that stated it and the figure that shows it."""

    cell: _Cell
    figure: str
    claim: Claim
