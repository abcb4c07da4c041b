"""Running the notebooks headlessly: parameters, papermill, HTML."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import papermill
import yaml
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from traitlets.config import Config

from ..errors import ConfigError, HiCacheNixlError
from ..resources import resource, runs_folder
from .report import write_notebook_page
from .runs.claims import FAILS, tally
from .runs.folder import RunFolder

PROFILES = "notebooks/parameters"
NUMBERED = "[0-9][0-9]_*.ipynb"
CELL_TIMEOUT = 1800  # seconds; papermill itself knows no limit


class NotebookFailedError(HiCacheNixlError, RuntimeError):
    """A notebook did not run to its end; names notebook, cell and claims."""


@dataclass(frozen=True)
class Outcome:
    """What one notebook of a run came to."""

    notebook: str
    seconds: float
    claims: pd.DataFrame
    html: Path
    error: str | None

    def errors(self) -> list[str]:
        """Return what failed: the cell that raised, or each claim that failed with the cell that stated it."""
        failed = [
            f"{self.notebook}, cell {claim.cell}, claim {claim.id}: {claim.sentence} "
            f"expected {claim.expected}, measured {claim.measured}"
            for claim in self.claims[self.claims.verdict == FAILS].itertuples()
        ]
        return failed or ([self.error] if self.error else [])

    def count(self, verdict: str) -> int:
        """Return how many of its claims have a verdict."""
        return int((self.claims.verdict == verdict).sum())


def notebooks() -> dict[str, Path]:
    """Return the notebooks by name, in reading order."""
    return {path.stem: path for path in sorted(resource("notebooks").glob(NUMBERED))}


def profiles() -> dict[str, Path]:
    """Return the profiles by name."""
    return {path.stem: path for path in sorted(resource(PROFILES).glob("*.yaml"))}


def chosen_notebooks(wanted: Sequence[str]) -> dict[str, Path]:
    """Return the notebooks that names or their beginnings ("01") stand for; all when none is given."""
    known = notebooks()
    if not wanted:
        return known
    chosen = {}
    for name in wanted:
        matches = [stem for stem in known if stem.startswith(name.removesuffix(".ipynb"))]
        if len(matches) != 1:
            raise ConfigError(f"notebook {name!r} is unknown; there are {', '.join(known)}")
        chosen[matches[0]] = known[matches[0]]
    return dict(sorted(chosen.items()))


def read_profile(name: str) -> dict[str, dict[str, Any]]:
    """Return a profile: parameters per notebook, and under ``all`` those of every one."""
    known = profiles()
    if name not in known:
        raise ConfigError(f"profile {name!r} is unknown; there are {', '.join(known)}")
    profile = yaml.safe_load(known[name].read_text()) or {}
    known_notebooks = {path.stem: path for path in sorted(resource("notebooks").glob(NUMBERED))}
    sections = ("all", *known_notebooks)
    for section in profile:
        if section not in sections:
            raise ConfigError(f"profile {name}: {section!r} is no notebook; it takes {', '.join(sections)}")
    every = sorted(set().union(*(_defaults(path) for path in known_notebooks.values())))
    for parameter in profile.get("all") or {}:
        if parameter not in every:
            raise ConfigError(f"profile {name}: no notebook has {parameter!r}; they take {', '.join(every)}")
    return {section: parameters or {} for section, parameters in profile.items()}


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs; values as YAML.

    Examples
    --------
    >>> parse_parameters(["page_bytes=4096", "queue=io_uring", "strict=false"])
    {'page_bytes': 4096, 'queue': 'io_uring', 'strict': False}
    """
    parameters = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"-p {pair}: it takes name=value")
        try:
            parameters[name.strip()] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError:
            parameters[name.strip()] = value
    return parameters


def parameters_for(
    chosen: Mapping[str, Path], profile: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Work out the parameters of each notebook: its defaults, the profile, what was given.

    papermill only warns of an unknown parameter, so it is an error here; so is a value of another type
    than the default's.

    Raises
    ------
    ConfigError
        Naming the parameters that are known.
    """
    defaults = {name: _defaults(path) for name, path in chosen.items()}
    known = sorted(set().union(*defaults.values()))
    for name in given:
        if name not in known:
            raise ConfigError(f"parameter {name!r} is unknown; {', '.join(chosen)} take {', '.join(known)}")
    result = {}
    for notebook, own in defaults.items():
        for name in profile.get(notebook, {}):
            if name not in own:
                raise ConfigError(f"profile: {notebook} has no parameter {name!r}; it takes {', '.join(own)}")
        wanted = {**profile.get("all", {}), **profile.get(notebook, {}), **given}
        result[notebook] = {name: value for name, value in wanted.items() if name in own}
        for name, value in result[notebook].items():
            _check_type(notebook, name, value, own[name])
    return result


def new_run_folder(name: str) -> Path:
    """Make the folder of a run; a run that exists is a record and is not written into again."""
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise ConfigError(f"run {name!r}: a name of letters, digits, '-', '_', '+' and '.'")
    folder = runs_folder() / name
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
    """Return a name that tells profile and time."""
    return f"{profile}-{datetime.now():%Y%m%d-%H%M%S}"


def run_notebook(name: str, path: Path, folder: Path, parameters: Mapping[str, Any]) -> Outcome:
    """Run one notebook through papermill into the folder of a run, and make its page.

    A notebook that fails is kept as far as it came, with the failing cell marked; so is its page.
    """
    output = RunFolder(folder).notebook(name)
    output.parent.mkdir(exist_ok=True)
    started = datetime.now()
    error = None
    with _quiet_workers():
        try:
            papermill.execute_notebook(
                str(path),
                str(output),
                parameters={**parameters, "run_dir": str(folder)},
                progress_bar={
                    "desc": name,
                    "bar_format": "{desc} {bar:30} cell {n_fmt}/{total_fmt} {elapsed}",
                },
                execution_timeout=CELL_TIMEOUT,
                config=Config({"KernelManager": {"transport": "ipc"}}),  # no port for others to listen at
                cwd=str(folder),
                kernel_name="python3",  # this interpreter, also where the project's kernel is not registered
            )
        except papermill.PapermillExecutionError as failure:
            error = f"{name}, cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
        except (DeadKernelError, CellTimeoutError) as failure:
            error = f"{name}: {type(failure).__name__}: {failure}"
    seconds = (datetime.now() - started).total_seconds()
    return Outcome(name, seconds, claims_of(folder, name), write_notebook_page(folder, name), error)


def claims_of(folder: Path, notebook: str | None = None) -> pd.DataFrame:
    """Return the ledger of a run, or one notebook's part of it."""
    return RunFolder(folder).claims(notebook)


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Say in one line how the claims of a run went."""
    return tally(pd.concat([outcome.claims for outcome in outcomes]))


@contextmanager
def _quiet_workers() -> Iterator[None]:
    """Keep the notebooks' own progress bars out of what they leave; papermill shows one."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


def _defaults(path: Path) -> dict[str, Any]:
    """Read a notebook's parameters with their default values."""
    return {
        name: yaml.safe_load(about["default"].replace("None", "null"))
        for name, about in papermill.inspect_notebook(str(path)).items()
    }


def _check_type(notebook: str, name: str, value: Any, default: Any) -> None:
    number = isinstance(default, float) and isinstance(value, int)
    fits = isinstance(value, type(default)) or number
    if not fits or isinstance(value, bool) != isinstance(default, bool):
        raise ConfigError(
            f"parameter {name} of {notebook}: {value!r} is a {type(value).__name__}; "
            f"it takes a {type(default).__name__} such as {default!r}"
        )
