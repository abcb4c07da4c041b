"""The format of a run's folder: every path, column and file of it, for writing and for reading.

=====================================  ==========================================================================
``claims.csv``                         the claims of all notebooks, with the columns ``CLAIMS``
``figures.csv``                        the figures of all notebooks, with the columns ``FIGURES``
``provenance.json``                    machine, versions, parameters, and which notebooks were planned and finished
``tables/NOTEBOOK_NAME.csv``           a table
``figures/NOTEBOOK_NAME.png``          a figure; below ``figures/narrow/`` as phones show it
``notebooks/NOTEBOOK.ipynb``           an executed notebook
``html/NOTEBOOK.html``, ``index.html``  the pages of the report
=====================================  ==========================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from ...errors import ConfigError
from ...resources import resource, write_whole
from .provenance import provenance

CLAIMS = ["notebook", "cell", "id", "sentence", "expected", "measured", "verdict", "figure"]
FIGURES = ["notebook", "cell", "figure", "title", "alt", "tables", "story"]
ADDED = {"figure", "story"}  # columns that runs made by earlier versions do not have
REQUIRED = ("versions", "git_commit", "kernel", "machine", "cpu", "memory_bytes", "nofile_limit", "storage")
FORMAT = 2  # 2: claims are written as they are stated, and a notebook that finished says so


def table_file(notebook: str, name: str) -> str:
    """Return where the table of a notebook is, relative to the run's folder."""
    return f"tables/{notebook}_{name}.csv"


def figure_file(notebook: str, name: str) -> str:
    """Return where the figure of a notebook is, relative to the run's folder."""
    return f"figures/{notebook}_{name}.png"


def narrow_file(notebook: str, name: str) -> str:
    """Return where the figure of a notebook is as phones show it, relative to the run's folder."""
    return f"figures/narrow/{notebook}_{name}.png"


def notebook_file(notebook: str) -> str:
    """Return where an executed notebook is, relative to the run's folder."""
    return f"notebooks/{notebook}.ipynb"


def page_file(notebook: str) -> str:
    """Return where the page of a notebook is, relative to the run's folder."""
    return f"html/{notebook}.html"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run; all that writes one or reads one does it through this class.

    Parameters
    ----------
    path : pathlib.Path
    """

    path: Path

    @property
    def index(self) -> Path:
        """The first page of the report."""
        return self.path / "index.html"

    def table(self, notebook: str, name: str) -> Path:
        """Return the path of a table."""
        return self.path / table_file(notebook, name)

    def figure(self, notebook: str, name: str) -> Path:
        """Return the path of a figure."""
        return self.path / figure_file(notebook, name)

    def narrow(self, notebook: str, name: str) -> Path:
        """Return the path of a figure as phones show it; runs made by earlier versions do not have it."""
        return self.path / narrow_file(notebook, name)

    def notebook(self, notebook: str) -> Path:
        """Return the path of an executed notebook."""
        return self.path / notebook_file(notebook)

    def page(self, notebook: str) -> Path:
        """Return the path of a notebook's page."""
        return self.path / page_file(notebook)

    def tables(self) -> dict[str, Path]:
        """Return the tables, named as their files: ``01_reproduce_the_leak_growth``."""
        return {path.stem: path for path in sorted(self.path.glob(table_file("*", "*")))}

    def notebooks(self) -> dict[str, Path]:
        """Return the executed notebooks by name, in reading order."""
        return {path.stem: path for path in sorted(self.path.glob(notebook_file("*")))}

    # Writing.

    def plan(self, notebooks: Sequence[str]) -> None:
        """Start a run: write its provenance and the notebooks that it will consist of."""
        self._write_provenance({**provenance(), "format": FORMAT, "planned": list(notebooks)})

    def start(self, notebook: str, parameters: Mapping[str, Any]) -> None:
        """Start a notebook: write its parameters, and clear its claims and its list of figures."""
        for name in ("tables", "figures/narrow"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        known = self._provenance() if self._provenance_file.exists() else {}
        known |= {**provenance(parameters.get("storage_dir")), "format": FORMAT}
        started = {"started": _now(), "parameters": dict(parameters)}
        known["notebooks"] = {**known.get("notebooks", {}), notebook: started}
        self._write_provenance(known)
        self.write_claims(notebook, pd.DataFrame(columns=CLAIMS))
        self.write_figures(notebook, pd.DataFrame(columns=FIGURES))

    def finish(self, notebook: str) -> None:
        """Write that a notebook ran to its end."""
        known = self._provenance()
        known["notebooks"][notebook]["finished"] = _now()
        self._write_provenance(known)

    def stop(self, notebook: str, error: str) -> None:
        """Write which error ended a notebook: its page does not show that of a kernel that died."""
        known = self._provenance() if self._provenance_file.exists() else provenance()
        known.setdefault("notebooks", {}).setdefault(notebook, {"parameters": {}})["stopped"] = error
        self._write_provenance(known)

    def write_table(self, notebook: str, name: str, frame: pd.DataFrame) -> None:
        """Write a table as CSV."""
        write_whole(self.table(notebook, name), frame.to_csv(index=False))

    def write_claims(self, notebook: str, claims: pd.DataFrame) -> None:
        """Replace the claims of a notebook."""
        self._replace(self._claims_file, CLAIMS, notebook, claims)

    def write_figures(self, notebook: str, figures: pd.DataFrame) -> None:
        """Replace the list of a notebook's figures."""
        self._replace(self._figures_file, FIGURES, notebook, figures)

    # Reading.

    def claims(self, notebook: str | None = None) -> pd.DataFrame:
        """Return the claims of a run, or those of one notebook; all values are strings.

        Raises
        ------
        ConfigError
            When ``claims.csv`` cannot be read or lacks a column.
        """
        return _of(_read_list(self._claims_file, CLAIMS), notebook)

    def figures(self, notebook: str | None = None) -> pd.DataFrame:
        """Return the list of a run's figures, or of those of one notebook; all values are strings.

        Raises
        ------
        ConfigError
            When ``figures.csv`` cannot be read or lacks a column.
        """
        return _of(_read_list(self._figures_file, FIGURES), notebook)

    def provenance(self) -> dict[str, Any]:
        """Return where a run ran and with what.

        Raises
        ------
        ConfigError
            When ``provenance.json`` is missing, cannot be read, or lacks an entry.
        """
        try:
            known = self._provenance()
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(
                f"run {self.path.name}: {self._provenance_file} does not exist; "
                "expected the folder of a run, such as runs/NAME"
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._provenance_file} cannot be read: {error}") from error
        missing = [name for name in REQUIRED if not isinstance(known, dict) or name not in known]
        if missing:
            raise ConfigError(f"{self._provenance_file} has no {', '.join(missing)}; run the notebooks again")
        return known

    def finished(self) -> set[str]:
        """Return the notebooks that ran to their end."""
        known = self.provenance()
        if known.get("format", 1) < 2:  # claims were written at the end of a notebook
            return set(self.claims().notebook)
        return {name for name, about in known.get("notebooks", {}).items() if "finished" in about}

    def read_notebook(self, notebook: str) -> nbformat.NotebookNode:
        """Return an executed notebook.

        Raises
        ------
        ConfigError
            When the file is not a notebook.
        """
        path = self.notebook(notebook)
        try:
            return nbformat.read(path, as_version=4)
        except (
            Exception
        ) as error:  # nbformat raises errors of several libraries for a file that is no notebook
            raise ConfigError(f"{path} is not a notebook: {error}") from error

    @property
    def _claims_file(self) -> Path:
        return self.path / "claims.csv"

    @property
    def _figures_file(self) -> Path:
        return self.path / "figures.csv"

    @property
    def _provenance_file(self) -> Path:
        return self.path / "provenance.json"

    def _provenance(self) -> Any:
        return json.loads(self._provenance_file.read_text())

    def _write_provenance(self, known: Mapping[str, Any]) -> None:
        write_whole(self._provenance_file, json.dumps(known, indent=2) + "\n")

    def _replace(self, path: Path, columns: list[str], notebook: str, mine: pd.DataFrame) -> None:
        """Replace the rows of one notebook in a list that all notebooks of a run share."""
        before = _read_list(path, columns)
        mine = mine.assign(notebook=notebook).reindex(columns=columns, fill_value="")
        rows = pd.concat([before[before.notebook != notebook], mine]).sort_values("notebook", kind="stable")
        write_whole(path, rows.to_csv(index=False))


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Read a table of a run.

    Raises
    ------
    ConfigError
        When the file does not exist or is not a table.
    """
    try:
        return pd.read_csv(path, **options)
    except (OSError, pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def reference_table(name: str) -> pd.DataFrame:
    """Return a table of the reference run, whose results are in README.md; empty when it has no such table.

    Examples
    --------
    >>> reference_table("no_such_table").empty
    True
    """
    path = resource(f"data/reference/{name}.csv")
    return read_table(path) if path.exists() else pd.DataFrame()


def _read_list(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a list of the run; a run that failed early has none yet."""
    if not path.exists():
        return pd.DataFrame(columns=columns, dtype=str)
    table = read_table(path, dtype=str, keep_default_na=False)
    missing = [column for column in columns if column not in table and column not in ADDED]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}; run the notebooks again")
    return table.reindex(columns=columns, fill_value="")


def _of(table: pd.DataFrame, notebook: str | None) -> pd.DataFrame:
    return table if notebook is None else table[table.notebook == notebook]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
