"""What a run left in its folder, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from ...errors import ConfigError
from ...resources import runs_folder
from .claims import FAILS, HOLDS, INCONCLUSIVE, tally

CLAIMS = ["notebook", "cell", "id", "sentence", "expected", "measured", "verdict"]
REQUIRED = ("versions", "git_commit", "kernel", "machine", "cpu", "memory_bytes", "nofile_limit", "storage")
FIGURES = ["notebook", "cell", "figure", "title", "alt", "tables"]


@dataclass(frozen=True)
class Record:
    """One run, as its folder tells it.

    Attributes
    ----------
    folder : pathlib.Path
    provenance : dict
        As ``provenance.json``.
    claims, figures : pandas.DataFrame
        As ``claims.csv`` and ``figures.csv``; all strings.
    notebooks : dict
        The executed notebooks by name, in reading order.
    """

    folder: Path
    provenance: dict[str, Any]
    claims: pd.DataFrame
    figures: pd.DataFrame
    notebooks: dict[str, nbformat.NotebookNode]

    @property
    def unfinished(self) -> list[str]:
        """The notebooks that the run was to consist of and that stated no claims: interrupted, failed or never begun."""
        planned = self.provenance.get("planned", list(self.provenance.get("notebooks", {})))
        return [name for name in planned if name not in set(self.claims.notebook)]

    @property
    def state(self) -> str:
        """What the run as a whole is: fails, inconclusive when part of it is missing, else holds."""
        if self.errors() or (self.claims.verdict == FAILS).any():
            return FAILS
        return INCONCLUSIVE if self.unfinished or self.claims.empty else HOLDS

    def errors(self) -> list[str]:
        """Return what stopped a notebook, but for claims that failed: those are in the ledger."""
        return [
            f"{name}, cell {cell.execution_count}: {output.ename}: {output.evalue}"
            for name, node in self.notebooks.items()
            for cell in node.cells
            for output in cell.get("outputs", ())
            if output.output_type == "error" and output.ename != "ClaimsFailedError"
        ]

    @property
    def name(self) -> str:
        """The name of the run: that of its folder."""
        return self.folder.name

    def verdict(self) -> str:
        """Say in one line how the claims went."""
        return tally(self.claims)

    def tables(self) -> dict[str, Path]:
        """Return the tables by name, with the notebook's in front: ``01_reproduce_the_leak_growth``."""
        return {path.stem: path for path in sorted((self.folder / "tables").glob("*.csv"))}

    def picture(self, row: Any) -> Path:
        """Return the file of a figure, given its row of ``figures``."""
        return self.folder / "figures" / f"{row.notebook}_{row.figure}.png"

    def not_run(self) -> dict[str, str]:
        """Return the released connectors that were left out, and why, from the tables called ``released``."""
        reasons: dict[str, str] = {}
        for name, path in self.tables().items():
            if name.endswith("_released"):
                table = read_table(path, dtype=str, keep_default_na=False)
                reasons |= {
                    connector: reason for connector, reason in table.itertuples(index=False) if reason
                }
        return reasons


def read_record(folder: str | Path) -> Record:
    """Read the folder of a run; a name without a folder of its own is looked for in ``runs/``.

    Raises
    ------
    ConfigError
        When there is no such run, or nothing of it is left to show.
    """
    path = Path(folder).expanduser()
    if not path.exists() and path.name == str(folder):
        path = runs_folder() / path
    try:
        provenance = json.loads((path / "provenance.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"run {folder}: there is no {path / 'provenance.json'}; it takes the folder of a run, such as runs/NAME"
        ) from None
    except ValueError as error:
        raise ConfigError(f"run {folder}: provenance.json cannot be read: {error}") from error
    missing = [name for name in REQUIRED if not isinstance(provenance, dict) or name not in provenance]
    if missing:
        raise ConfigError(f"run {folder}: provenance.json has no {', '.join(missing)}; make the run again")
    executed = {file.stem: _read_notebook(file) for file in sorted((path / "notebooks").glob("*.ipynb"))}
    return Record(
        path.resolve(),
        provenance,
        _listed(path / "claims.csv", CLAIMS),
        _listed(path / "figures.csv", FIGURES),
        executed,
    )


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Read a table of a run.

    Raises
    ------
    ConfigError
        When there is none, or what is there is no table.
    """
    try:
        return pd.read_csv(path, **options)
    except (OSError, pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _listed(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a list of the run; a run that failed early has none yet."""
    if not path.exists():
        return pd.DataFrame(columns=columns, dtype=str)
    table = read_table(path, dtype=str, keep_default_na=False)
    missing = [column for column in columns if column not in table]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}; make the run again")
    return table


def _read_notebook(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises errors of several libraries for a file that is no notebook
        raise ConfigError(f"{path} is no notebook: {error}") from error
