"""A run: the folder that a reproduction leaves behind."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import psutil
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from ..resources import resource as project_path
from ..resources import runs_folder, write_whole
from .claims import FAILS, Claim, ClaimsFailedError, ledger
from .storage_check import mount_of

PACKAGES = (
    "hicache-nixl",
    "nixl",
    "nixl-cu12",
    "nixl-cu13",
    "torch",
    "numpy",
    "pandas",
    "matplotlib",
    "papermill",
)
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


def provenance(storage_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Tell what a result was measured on and with what."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": {"model": _cpu_model(), "cores": psutil.cpu_count()},
        "memory_bytes": psutil.virtual_memory().total,
        "nofile_limit": {"soft": soft, "hard": hard},
        "storage": _storage(Path(storage_dir or tempfile.gettempdir())),
    }


def describe(run: Run) -> pd.DataFrame:
    """Return the provenance of a run as a short table."""
    known = json.loads((run.folder / "provenance.json").read_text())
    storage = known["storage"]
    rows = {
        "python, nixl, torch": ", ".join(
            str(known["versions"][name]) for name in ("python", "nixl", "torch")
        ),
        "kernel": known["kernel"],
        "cpu": f"{known['cpu']['model']}, {known['cpu']['cores']} cores",
        "storage folder on": f"{storage['file_system']} ({storage['options']})",
        "RLIMIT_NOFILE": f"soft {known['nofile_limit']['soft']}, hard {known['nofile_limit']['hard']}",
        "git commit": known["git_commit"],
    }
    return pd.DataFrame(rows.items(), columns=["what", "value"])


def _cell() -> int:
    """Return the number of the cell that runs, as its reader sees it; 0 outside of a notebook."""
    shell = get_ipython()
    return len(shell.user_ns["In"]) - 1 if shell is not None else 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of the clone, with ``+changes`` when files differ from it."""
    root = project_path("hicache_nixl").parent
    if not (root / ".git").exists():
        return None  # installed from a wheel
    try:
        described = subprocess.run(
            [
                "git",
                "-C",
                str(root),
                "describe",
                "--always",
                "--abbrev=12",
                "--dirty=+changes",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or sys.platform


def _storage(folder: Path) -> dict[str, str]:
    mount = mount_of(folder)
    return {"file_system": mount.fstype, "options": mount.opts, "mounted_on": mount.mountpoint}
