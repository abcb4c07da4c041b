"""What a reproduction consists of: its notebooks and the parameters of each, checked before anything runs."""

from __future__ import annotations

import copy
import math
import resource as limits
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import papermill
import psutil
import yaml

from ..config import LAYOUTS, QUEUES
from ..errors import ConfigError
from ..resources import resource
from ..watch import read_watch
from .experiments.indexes import SEGMENT_ROWS
from .experiments.replay import POOL as HOST_POOL
from .runs.folder import read_table
from .statistics import FEWEST
from .worker.schedule import MOST_CALLS, MOST_KEYS

PROFILES = "notebooks/parameters"
NUMBERED = "[0-9][0-9]_*.ipynb"
LEFT_OUT = "without"  # in a profile: notebooks that it does not run
CHOICES = {
    "queue": QUEUES,
    "layout": LAYOUTS,
    "model": tuple(read_table(resource("data/model_geometries.csv")).model),
}
# The least and the most that a number may be; 1 and without end where nothing is said.
# A worker has some descriptors of its own; the memory of a soak is counted every 100 calls, and an interval needs 6 counts.
# The interval of a median of times to the first token needs 6 prompts, too.
# A tenth of the requests are of different users, and an index has the rows of a segment or more.
LEAST = {
    "seed": 0,
    "prompts": FEWEST,
    "baseline_fds": 16,
    "soak_calls": 600,
    "requests": 10,
    "index_rows": SEGMENT_ROWS,
    "tokens_per_prompt": 64,  # a page
}
MOST = {
    **dict.fromkeys(("keys_per_call", "keys_sweep"), MOST_KEYS),
    **dict.fromkeys(("calls", "soak_calls", "small_reads", "deleted_files"), MOST_CALLS),
    **dict.fromkeys(("page_bytes", "page_sweep"), 2**30),
    "repeats": 10_000,
    **dict.fromkeys(("rounds", "few_rounds", "prompts"), 1000),
    "clients": 64,
    "volumes": 16,
    "stored_sweep": 10**8,
    "requests": 10**6,
    "index_rows": 10**7,
}
TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}


def notebooks() -> dict[str, Path]:
    """Return the notebooks by name, in reading order."""
    return {path.stem: path for path in sorted(resource("notebooks").glob(NUMBERED))}


def profiles() -> dict[str, Path]:
    """Return the profiles by name."""
    return {path.stem: path for path in sorted(resource(PROFILES).glob("*.yaml"))}


def choose_notebooks(wanted: Sequence[str], known: Mapping[str, Path]) -> dict[str, Path]:
    """Select notebooks by name, file name or number (``"01"`` or ``"1"``); all of them when none is given."""
    if not wanted:
        return dict(known)
    chosen = {}
    for name in wanted:
        beginning = name.zfill(2) if name.isdigit() else name.removesuffix(".ipynb")
        matches = [stem for stem in known if stem.startswith(beginning)]
        if len(matches) != 1:
            raise ConfigError(f"notebook {name!r} is unknown; expected one of {', '.join(known)}")
        chosen[matches[0]] = known[matches[0]]
    return dict(sorted(chosen.items()))


def read_profile(name: str) -> dict[str, dict[str, Any]]:
    """Read the parameters of a profile: for each notebook, and under ``all`` those for every notebook.

    Raises
    ------
    ConfigError
        When there is no such profile, or it names a notebook or a parameter that does not exist.
    """
    profile = {section: values for section, values in _load_profile(name).items() if section != LEFT_OUT}
    sections = ("all", *notebooks())
    for section in profile:
        if section not in sections:
            raise ConfigError(
                f"profile {name}: section {section!r} is not a notebook; expected one of {', '.join(sections)}"
            )
    every = sorted(set().union(*(_defaults(path) for path in notebooks().values())))
    for parameter in profile.get("all") or {}:
        if parameter not in every:
            raise ConfigError(
                f"profile {name}: parameter {parameter!r} is unknown; expected one of {', '.join(every)}"
            )
    return {section: parameters or {} for section, parameters in profile.items()}


def notebooks_of_profile(name: str, known: Iterable[str]) -> list[str]:
    """Return the notebooks that a profile runs when none is asked for: all but those that its file leaves out.

    Examples
    --------
    >>> notebooks_of_profile("server", ["01_reproduce_the_leak", "08_inside_sglang"])
    ['08_inside_sglang']
    """
    left_out = tuple(_load_profile(name).get(LEFT_OUT, ()))
    return [notebook for notebook in known if not notebook.startswith(left_out)]


def _load_profile(name: str) -> dict[str, Any]:
    known = profiles()
    if name not in known:
        raise ConfigError(f"profile {name!r} is unknown; expected one of {', '.join(known)}")
    return yaml.safe_load(known[name].read_text()) or {}


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
            raise ConfigError(f"-p {pair}: expected name=value")
        try:
            parameters[name.strip()] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError:
            parameters[name.strip()] = value
    return parameters


def parameters_for(
    chosen: Mapping[str, Path],
    profile: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Any],
    here: bool = True,
) -> dict[str, dict[str, Any]]:
    """Combine the parameters of each notebook: ``given`` overrides the profile, which overrides the defaults.

    papermill only warns about an unknown parameter; here it is an error, and so is a value that cannot work.

    Parameters
    ----------
    chosen : mapping
        Notebooks by name, as ``choose_notebooks`` returns them.
    profile : mapping
        As ``read_profile`` returns it.
    given : mapping
        Parameters for every notebook that has them.
    here : bool
        Whether the notebooks run on this machine: else its folders, limits and memory say nothing, and paths must be
        absolute.

    Returns
    -------
    dict
        For each notebook the parameters that differ from its defaults.

    Raises
    ------
    ConfigError
        Naming the parameter and what was expected.
    """
    defaults = {name: _defaults(path) for name, path in chosen.items()}
    known = sorted(set().union(*defaults.values()) - {"run_dir"})
    if "run_dir" in given:
        raise ConfigError("parameter run_dir is set by the run; choose its name with --run")
    for name in given:
        if name not in known:
            accept = "accepts" if len(chosen) == 1 else "accept"
            raise ConfigError(
                f"parameter {name!r} is unknown; {', '.join(chosen)} {accept} {', '.join(known)}"
            )
    given = {name: _with_absolute_path(name, value, here) for name, value in given.items()}
    result = {}
    for notebook, own in defaults.items():
        for name in profile.get(notebook, {}):
            if name not in own:
                raise ConfigError(
                    f"profile: {notebook} has no parameter {name!r}; expected one of {', '.join(own)}"
                )
        wanted = {**profile.get("all", {}), **profile.get(notebook, {}), **given}
        result[notebook] = {name: value for name, value in wanted.items() if name in own}
        for name, value in result[notebook].items():
            check_value(f"parameter {name} of {notebook}", name, value, own[name], here)
        check_together(notebook, {**own, **result[notebook]}, here)
    return result


def check_value(what: str, name: str, value: Any, default: Any, here: bool = True) -> None:
    """Refuse a value of a parameter that cannot work, on this machine or elsewhere, as far as that is known without running anything.

    Examples
    --------
    >>> check_value("parameter calls", "calls", -3, 12)
    Traceback (most recent call last):
    hicache_nixl.errors.ConfigError: parameter calls: -3 is too small; expected 1 or more
    """
    _check_type(what, value, default)
    if name in CHOICES and value not in CHOICES[name]:
        raise ConfigError(f"{what}: {value!r} is unknown; expected one of {', '.join(CHOICES[name])}")
    if isinstance(value, list):
        if not value:
            raise ConfigError(f"{what}: the list is empty; expected values such as {default!r}")
        for element in value:
            check_value(what, name, element, default[0], here)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(what, name, value, isinstance(default, int), here)
    elif name == "storage_dir" and value and here:
        existing_folder(value)
    elif name == "watched" and value and here:
        try:
            read_watch(value)
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from error


def check_together(notebook: str, values: Mapping[str, Any], here: bool = True) -> None:
    """Refuse parameters of a notebook, defaults among them, that cannot work with each other."""
    before, limit = values.get("baseline_fds"), values.get("nofile_limit")
    if before is not None and limit is not None and before >= limit:
        raise ConfigError(
            f"parameter baseline_fds of {notebook}: {before} descriptors do not fit below nofile_limit, which is {limit}"
        )
    keys = max([values.get("keys_per_call", 1), *values.get("keys_sweep", ())])
    page = max([values.get("page_bytes", 8), *values.get("page_sweep", ())])
    needed, free = keys * page * HOST_POOL, psutil.virtual_memory().available
    if here and needed > free:
        raise ConfigError(
            f"{notebook}: up to {keys} keys per call with pages of up to {page} bytes need {needed / 1e9:.1f} GB of "
            f"memory, and {free / 1e9:.1f} GB are available; reduce keys_per_call, page_bytes or a sweep"
        )


def existing_folder(path: str) -> Path:
    """Return a storage folder that a user named, as an absolute path."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise ConfigError(f"storage_dir {path}: {what}; expected an existing, writable folder")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="hicache-nixl-"):
            return folder
    except OSError as error:
        raise ConfigError(
            f"storage_dir {path}: nothing can be created in it ({error.strerror}); expected an existing, writable "
            "folder"
        ) from error


def _check_type(what: str, value: Any, default: Any) -> None:
    number = isinstance(default, float) and isinstance(value, int)
    if isinstance(value, bool) == isinstance(default, bool) and (isinstance(value, type(default)) or number):
        return
    expected = TYPES.get(type(default), type(default).__name__)
    raise ConfigError(f"{what}: {value!r} is not {expected}; expected a value such as {default!r}")


def _check_number(what: str, name: str, value: float, whole: bool, here: bool) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{what}: {value} is not a finite number")
    if whole and value < (least := LEAST.get(name, 1)):
        raise ConfigError(f"{what}: {value} is too small; expected {least} or more")
    if value > (most := MOST.get(name, math.inf)):
        raise ConfigError(f"{what}: {value} is too large; expected {most} or less")
    if value <= 0 and not whole:
        raise ConfigError(f"{what}: {value} is too small; expected a number above 0")
    if name in ("page_bytes", "page_sweep") and value % 8:
        raise ConfigError(f"{what}: {value} does not work; expected a multiple of 8")
    hard = limits.getrlimit(limits.RLIMIT_NOFILE)[1]
    if here and name == "nofile_limit" and hard != limits.RLIM_INFINITY and value > hard:
        raise ConfigError(f"{what}: {value} is above the hard limit of RLIMIT_NOFILE, which is {hard} here")


def _with_absolute_path(name: str, value: Any, here: bool) -> Any:
    """Make the path in a parameter absolute, since a notebook runs in the folder of its run."""
    if name in ("storage_dir", "watched") and isinstance(value, str) and value:
        if not here:
            if not Path(value).is_absolute():
                raise ConfigError(
                    f"parameter {name}: {value} is relative; expected an absolute path of the hosts"
                )
            return value
        return str(Path(value).expanduser().resolve())
    return value


def _defaults(path: Path) -> dict[str, Any]:
    """Read a notebook's parameters with their default values."""
    return copy.deepcopy(_read_defaults(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=64)  # a sweep asks for each of its points
def _read_defaults(path: Path, changed: int) -> dict[str, Any]:
    return {
        name: yaml.safe_load(about["default"].replace("None", "null"))
        for name, about in papermill.inspect_notebook(str(path)).items()
    }
