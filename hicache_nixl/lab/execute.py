"""Running the investigation: notebooks, one after the other, into the folder of a run, with its report.

>>> from hicache_nixl.lab.execute import execute
>>> result = execute(["01"], parameters={"queue": "posix_aio"}, run="mine")  # doctest: +SKIP
>>> result.verdict, result.page, result.errors()                             # doctest: +SKIP
('19 of 19 claims hold', PosixPath('runs/mine/index.html'), [])
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import pandas as pd
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from traitlets.config import Config

from ..errors import ConfigError
from ..resources import runs_folder
from . import engine
from .plan import choose_notebooks, notebooks, notebooks_of_profile, parameters_for, read_profile
from .report import build, write_notebook_page
from .runs.claims import FAILS
from .runs.folder import RunFolder
from .runs.record import read_record

CELL_TIMEOUT = 1800  # seconds; papermill itself has no limit
LAST_LINES = 6  # of what the process of a kernel that died has printed


@dataclass(frozen=True)
class Outcome:
    """The result of one notebook.

    Attributes
    ----------
    notebook : str
    seconds : float
    claims : pandas.DataFrame
        Its rows of the ledger.
    html : Path
        Its page.
    error : str or None
        The cell that raised, and what; None when the notebook ran to its end.
    """

    notebook: str
    seconds: float
    claims: pd.DataFrame
    html: Path
    error: str | None

    @property
    def crashed(self) -> bool:
        """Whether the notebook did not run to its end, where it raises if a claim failed."""
        return self.error is not None and "ClaimsFailedError" not in self.error

    def errors(self) -> list[str]:
        """Return what failed: each failed claim with the cell that stated it, and the cell that raised."""
        failed = [
            f"{self.notebook}, cell {claim.cell}, claim {claim.id}: {claim.sentence} "
            f"expected {claim.expected}, measured {claim.measured}"
            for claim in self.claims[self.claims.verdict == FAILS].itertuples()
        ]
        return [*failed, str(self.error)] if self.crashed else failed

    def count(self, verdict: str) -> int:
        """Return how many of its claims have a verdict."""
        return int((self.claims.verdict == verdict).sum())


@dataclass(frozen=True)
class Step:
    """How far a notebook is.

    Attributes
    ----------
    notebook : str
    done, cells : int
        Code cells that have run, and how many there are.
    outcome : Outcome or None
        When it has ended.
    interrupted : bool
        Whether Ctrl-C came, and the kernel is being ended.
    """

    notebook: str
    done: int
    cells: int
    outcome: Outcome | None = None
    interrupted: bool = False


Watch = Callable[[Step], object]


@dataclass(frozen=True)
class Reproduction:
    """The result of a run.

    Attributes
    ----------
    folder : Path
        Where everything is.
    outcomes : tuple of Outcome
        The notebooks that ran, in order.
    page : Path or None
        The report; None when the run was interrupted.
    not_run : dict
        The released connectors that were left out, with the reason for each.
    interrupted : str or None
        The notebook that Ctrl-C interrupted.
    unfinished : tuple of str
        The notebooks that did not run to their end: interrupted, failed or not started.
    """

    folder: Path
    outcomes: tuple[Outcome, ...]
    page: Path | None
    not_run: Mapping[str, str]
    interrupted: str | None = None
    unfinished: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """How many of the claims hold, and which notebooks are unfinished, in one line."""
        return read_record(self.folder).verdict()

    def errors(self) -> list[str]:
        """Return what failed, each with its notebook and cell; empty when every claim holds or is inconclusive."""
        return [error for outcome in self.outcomes for error in outcome.errors()]


def execute(
    wanted: Sequence[str] = (),
    *,
    profile: str = "quick",
    parameters: Mapping[str, Any] | None = None,
    run: str | None = None,
    watch: Watch = lambda step: None,
    runs: Path | None = None,
    known: Mapping[str, Path] | None = None,
) -> Reproduction:
    """Run notebooks into the folder of a new run, and make its report.

    Everything that was given is checked before anything runs.  After a failed claim the run goes on; a notebook
    that crashes ends it, and what has run until then is kept, with its report.  Ctrl-C ends the run as well: what
    has run is kept, without a report.

    Parameters
    ----------
    wanted : sequence of str
        Notebooks by name or number; all of them when left out.
    profile : str
        A file of ``notebooks/parameters``.
    parameters : mapping, optional
        Parameters of the notebooks; they override those of the profile.
    run : str, optional
        The name of the folder below ``runs/``; made of profile and time when left out.
    watch : callable, optional
        Called with a ``Step`` when a notebook begins, after each of its cells, and when it has ended.
    runs : Path, optional
        The folder that the new folder is made in, in place of ``runs/``.
    known : mapping, optional
        Notebooks by name, in place of those of the project.

    Raises
    ------
    ConfigError
        When a notebook, the profile, a parameter or the name of the run cannot work.
    """
    known = notebooks() if known is None else known
    chosen = choose_notebooks(wanted or notebooks_of_profile(profile, known), known)
    resolved = parameters_for(chosen, read_profile(profile), parameters or {})
    folder = new_run_folder(default_run_name(profile) if run is None else run, runs)
    RunFolder(folder).plan(list(chosen))
    outcomes: list[Outcome] = []
    at = ""
    try:
        for at, path in chosen.items():
            outcomes.append(run_notebook(at, path, folder, resolved[at], watch))
            if outcomes[-1].crashed:
                break
        at = "the report"
        record = read_record(folder)
        page = build(record)
    except KeyboardInterrupt:
        unfinished = tuple(read_record(folder).unfinished)
        return Reproduction(folder, tuple(outcomes), None, {}, interrupted=at, unfinished=unfinished)
    return Reproduction(folder, tuple(outcomes), page, record.not_run(), unfinished=tuple(record.unfinished))


def new_run_folder(name: str, runs: Path | None = None) -> Path:
    """Make the folder of a run, by default below ``runs/``; one that exists is a record and is not written into again."""
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ConfigError(
            f"run {name!r}: expected a name of letters, digits, '-', '_', '+' and '.' that does not begin with '.'"
        )
    folder = (runs_folder() if runs is None else runs) / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(
            f"run {name!r} exists already ({folder}); choose another name or remove it"
        ) from None
    except OSError as error:
        raise ConfigError(f"run {name!r}: {folder} cannot be made: {error.strerror}") from error
    return folder


def default_run_name(profile: str) -> str:
    """Return a name made of profile and time."""
    return f"{profile}-{datetime.now():%Y%m%d-%H%M%S}"


def run_notebook(
    name: str,
    path: Path,
    folder: Path,
    parameters: Mapping[str, Any],
    watch: Watch = lambda step: None,
) -> Outcome:
    """Run one notebook through papermill into the folder of a run, and make its page.

    The executed notebook and its page are kept also when it fails, up to the failing cell, which is marked.
    """
    output = RunFolder(folder).notebook(name)
    output.parent.mkdir(exist_ok=True)
    started = datetime.now()
    error, at = None, Step(name, 0, 0)

    def on_cell(done: int, cells: int) -> None:
        nonlocal at
        at = Step(name, done, cells)
        watch(at)

    with (
        _without_bars_in_notebooks(),
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryDirectory(prefix="hicache-nixl-") as sockets,
    ):
        try:
            papermill.execute_notebook(
                str(path),
                str(output),
                parameters={**parameters, "run_dir": str(folder)},
                engine_name=engine.NAME,
                on_cell=on_cell,
                on_interrupt=lambda: watch(dataclasses.replace(at, interrupted=True)),
                kernel_output=printed,
                progress_bar=False,
                execution_timeout=CELL_TIMEOUT,
                # no port that others could connect to; a short path, of which a socket has at most 107 bytes
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}}),
                cwd=str(folder),
                kernel_name="python3",  # this interpreter, also where the project's kernel is not registered
            )
        except papermill.PapermillExecutionError as failure:
            error = f"{name}, cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
        except (DeadKernelError, CellTimeoutError) as failure:
            error = f"{name}, cell {at.done}: {type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
            error += _last_lines(printed)
    if error is not None:
        RunFolder(folder).stop(name, error)
    seconds = (datetime.now() - started).total_seconds()
    outcome = Outcome(name, seconds, claims_of(folder, name), write_notebook_page(folder, name), error)
    watch(dataclasses.replace(at, outcome=outcome))
    return outcome


def _last_lines(printed: IO[bytes]) -> str:
    """Return the end of what a kernel's process has printed, on one line; it may tell why it died."""
    printed.seek(0)
    lines = printed.read().decode(errors="replace").split("\n")
    told = " | ".join([line.strip() for line in lines if line.strip()][-LAST_LINES:])
    return f"; its process printed: {told}" if told else ""


def claims_of(folder: Path, notebook: str | None = None) -> pd.DataFrame:
    """Return the ledger of a run, or one notebook's part of it."""
    return RunFolder(folder).claims(notebook)


@contextmanager
def _without_bars_in_notebooks() -> Iterator[None]:
    """Keep the progress bars that notebooks show out of their outputs."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
