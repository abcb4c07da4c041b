"""A run: the folder that a reproduction leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from ...resources import runs_folder, write_whole
from .claims import FAILS, Claim, ClaimsFailedError, ledger
from .provenance import provenance

INTERACTIVE = "interactive"


class Run:
    """What one notebook writes into the folder of a run.

    Tables go to ``tables/``, figures to ``figures/``; ``claims.csv`` and ``figures.csv`` (shared by the notebooks
    of a run) list claims and figures with the cell that stated or drew them; where it ran and with what goes to
    ``provenance.json``.

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
        self._claims: dict[str, tuple[int, Claim]] = {}
        self._figures: dict[str, dict[str, Any]] = {}
        for name in ("tables", "figures"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._note_provenance(parameters)

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Save a tidy table as CSV and return it."""
        frame.to_csv(self.folder / "tables" / f"{self.notebook}_{name}.csv", index=False)
        return frame

    def figure(self, name: str, figure: Figure, alt: str, tables: Sequence[str] = ()) -> None:
        """Save a figure as PNG, show it, close it, and note it in ``figures.csv``.

        Parameters
        ----------
        alt : str
            What the figure shows, for those who do not see it.
        tables : sequence of str
            The tables of this notebook that hold its numbers; the one of the same name when left out.

        Raises
        ------
        ValueError
            Without an alt text.
        """
        if not alt.strip():
            raise ValueError(f"figure {name!r} has no alt text")
        title = figure.get_suptitle() or figure.axes[0].get_title(loc="left")
        file = f"{self.notebook}_{name}"
        figure.savefig(self.folder / "figures" / f"{file}.png", dpi=150, metadata={"Description": alt})
        if get_ipython() is not None:
            display(figure, metadata={"image/png": {"alt": alt}})
        plt.close(figure)
        row = {"notebook": self.notebook, "cell": _cell(), "figure": name, "title": title, "alt": alt}
        self._figures[name] = {**row, "tables": " ".join(tables or [name])}
        self._write("figures.csv", pd.DataFrame(self._figures.values()))

    def claim(self, *claims: Claim) -> None:
        """State claims; they are remembered with the number of the cell that measured them."""
        cell = _cell()
        for claim in claims:
            if self._claims.get(claim.id, (None, None))[0] == cell:
                raise ValueError(f"claim {claim.id!r} is stated twice")
            self._claims[claim.id] = (cell, claim)  # a cell that is run again states it anew

    def finish(self) -> pd.DataFrame:
        """Write the claims and return them as a table; raise when one failed and the run is strict.

        Raises
        ------
        ClaimsFailedError
            Naming every claim that failed.
        """
        mine = ledger([claim for _, claim in self._claims.values()])
        mine.insert(0, "cell", [cell for cell, _ in self._claims.values()])
        mine.insert(0, "notebook", self.notebook)
        self._write("claims.csv", mine)
        failed = mine[mine.verdict == FAILS]
        if self.strict and len(failed):
            lines = [
                f"cell {row.cell}, claim {row.id}: {row.sentence} expected {row.expected}, measured {row.measured}"
                for row in failed.itertuples()
            ]
            raise ClaimsFailedError("; ".join(lines))
        return mine.drop(columns=["notebook"])

    def _write(self, name: str, mine: pd.DataFrame) -> None:
        """Put this notebook's rows into a table of the whole run, in place of those that it had there."""
        path = self.folder / name
        if path.exists():
            before = pd.read_csv(path, dtype=str, keep_default_na=False)
            others = before[before.notebook != self.notebook]
            mine = pd.concat([others, mine]).sort_values("notebook", kind="stable")
        write_whole(path, mine.to_csv(index=False))

    def _note_provenance(self, parameters: Mapping[str, Any]) -> None:
        path = self.folder / "provenance.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        known.update(provenance(parameters.get("storage_dir")))
        known.setdefault("notebooks", {})[self.notebook] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "parameters": dict(parameters),
        }
        write_whole(path, json.dumps(known, indent=2) + "\n")


def note_plan(folder: Path, notebooks: Sequence[str]) -> None:
    """Note in the provenance of a new run which notebooks it is to consist of.

    By this a report can tell a run that was interrupted from one that is complete.
    """
    write_whole(
        folder / "provenance.json", json.dumps({**provenance(), "planned": list(notebooks)}, indent=2) + "\n"
    )


def _cell() -> int:
    """Return the number of the cell that runs, as its reader sees it; 0 outside of a notebook."""
    shell = get_ipython()
    return len(shell.user_ns["In"]) - 1 if shell is not None else 0
