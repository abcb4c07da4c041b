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
from ..claims import tally

CLAIMS = ["notebook", "cell", "id", "sentence", "expected", "measured", "verdict"]
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
                table = pd.read_csv(path, dtype=str, keep_default_na=False)
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
    executed = {file.stem: _read_notebook(file) for file in sorted((path / "notebooks").glob("*.ipynb"))}
    return Record(
        path.resolve(),
        provenance,
        _listed(path / "claims.csv", CLAIMS),
        _listed(path / "figures.csv", FIGURES),
        executed,
    )


def _listed(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a list of the run; a run that failed early has none yet."""
    if not path.exists():
        return pd.DataFrame(columns=columns, dtype=str)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}; make the run again")
    return table


def _read_notebook(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises errors of several libraries for a file that is no notebook
        raise ConfigError(f"{path} is no notebook: {error}") from error
