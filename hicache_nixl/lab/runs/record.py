"""A run, read back from its folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from ...errors import ConfigError
from ...resources import runs_folder
from .claims import FAILS, HOLDS, INCONCLUSIVE, tally
from .folder import RunFolder, read_table

INTERRUPT = "KeyboardInterrupt"
AVAILABLE = "available"  # status of a released connector in a table called ``released``


@dataclass(frozen=True)
class Record:
    """One run, as its folder describes it.

    Attributes
    ----------
    files : RunFolder
        Where each part of it is.
    provenance : dict
        Where it ran and with what.
    claims, figures : pandas.DataFrame
        With the columns ``CLAIMS`` and ``FIGURES`` of ``lab.runs.folder``; all values are strings.
    notebooks : dict
        The executed notebooks by name, in reading order.
    unfinished : list of str
        The notebooks of the plan that did not run to their end: interrupted, failed or not started.
    """

    files: RunFolder
    provenance: dict[str, Any]
    claims: pd.DataFrame
    figures: pd.DataFrame
    notebooks: dict[str, nbformat.NotebookNode]
    unfinished: list[str]

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.files.path

    @property
    def name(self) -> str:
        """The name of the run, which is that of its folder."""
        return self.folder.name

    @property
    def state(self) -> str:
        """The verdict on the whole run: fails; inconclusive when part of it is missing; else holds."""
        if self.errors() or (self.claims.verdict == FAILS).any():
            return FAILS
        return INCONCLUSIVE if self.unfinished or self.claims.empty else HOLDS

    def errors(self) -> list[str]:
        """Return the errors that stopped notebooks, except for interrupts and for failed claims, which are in the ledger."""
        stopped = self._stopped
        shown = [
            f"{name}, cell {cell}: {output.ename}: {output.evalue}"
            for name, cell, output in self._raised()
            if name not in stopped
        ]
        expected = (": ClaimsFailedError: ", f": {INTERRUPT}: ")
        return [error for error in (*stopped.values(), *shown) if not any(map(error.__contains__, expected))]

    def verdict(self) -> str:
        """Return the counts of the verdicts, and what is unfinished or where Ctrl-C came, in one line."""
        told = tally(self.claims) if len(self.claims) else "no claim was checked"
        if not self.unfinished:
            return told
        for name, cell, output in self._raised():
            # a cell that took too long is interrupted as well, which is noted as what stopped the notebook
            if name in self.unfinished and name not in self._stopped and output.ename == INTERRUPT:
                rest = ", ".join(other[:2] for other in self.unfinished if other != name)
                return (
                    f"{told}; interrupted in notebook {name[:2]}, cell {cell}"
                    + f"; not run: {rest}" * bool(rest)
                )
        return f"{told}; unfinished: {', '.join(self.unfinished)}"

    @property
    def _stopped(self) -> dict[str, str]:
        known = self.provenance.get("notebooks", {})
        return {name: about["stopped"] for name, about in known.items() if "stopped" in about}

    def _raised(self) -> Iterator[tuple[str, int, Any]]:
        """Yield each error that a notebook shows, with the notebook's name and the number of the cell."""
        for name, node in self.notebooks.items():
            for cell in node.cells:
                for output in cell.get("outputs", ()):
                    if output.output_type == "error":
                        yield name, cell.execution_count, output

    def parameters(self, notebook: str) -> dict[str, Any]:
        """Return the parameters that a notebook ran with; none when it did not start."""
        return self.provenance.get("notebooks", {}).get(notebook, {}).get("parameters", {})

    def tables(self) -> dict[str, Path]:
        """Return the tables, named as their files: ``01_reproduce_the_leak_growth``."""
        return self.files.tables()

    def picture(self, row: Any) -> Path:
        """Return the file of a figure, given its row of ``figures``."""
        return self.files.figure(row.notebook, row.figure)

    def narrow_picture(self, row: Any) -> Path | None:
        """Return the file of a figure as phones show it, if the run has one."""
        path = self.files.narrow(row.notebook, row.figure)
        return path if path.exists() else None

    def not_run(self) -> dict[str, str]:
        """Return the released connectors that were left out, and why, from the tables called ``released``."""
        reasons: dict[str, str] = {}
        for name, path in self.tables().items():
            if name.endswith("_released"):
                table = read_table(path, dtype=str, keep_default_na=False)
                reasons |= {
                    connector: status
                    for connector, status in table.itertuples(index=False)
                    if status != AVAILABLE
                }
        return reasons


def read_record(folder: str | Path) -> Record:
    """Read the folder of a run: a path, or the name of a folder below ``runs/``.

    Raises
    ------
    ConfigError
        When the folder is not that of a run, or part of it cannot be read.
    """
    if not str(folder):
        raise ConfigError("the name of the run is empty; expected the folder of a run, such as runs/NAME")
    path = Path(folder).expanduser()
    if path.is_file():
        raise ConfigError(f"run {folder} is a file; expected the folder of a run, such as runs/NAME")
    if not path.exists() and path.name == str(folder):
        path = runs_folder() / path
    files = RunFolder(path.resolve())
    provenance = files.provenance()
    planned = provenance.get("planned", list(provenance.get("notebooks", {})))
    finished = files.finished()
    return Record(
        files,
        provenance,
        files.claims(),
        files.figures(),
        {name: files.read_notebook(name) for name in files.notebooks()},
        [name for name in planned if name not in finished],
    )
