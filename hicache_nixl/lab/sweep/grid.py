"""The grid of a sweep: parameters with the values of each, and where its points run."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from ...errors import ConfigError
from ..plan import choose_notebooks, notebooks_of_profile, parameters_for, read_profile

MOST_POINTS = 1000
LONGEST = 60  # letters of a point's name
# Functions that state a claim about a measured interval, such as a ratio of times.
MEASURED = re.compile(r"\b(?:at_most|above|no_slower|longer)\(")
HINT = "a value that is a list has brackets of its own: keys_sweep=[1,2],[4,8]"


class Grid(BaseModel):
    """What a sweep runs.

    Attributes
    ----------
    notebooks : tuple of str
        By name or number; those of the profile when empty.
    profile : str
    parameters : dict
        The values of each parameter.  Those with several are the axes of the grid.
    every_host : bool
        Whether each point runs on every host; else once, on the host that is free.
    hosts : tuple of str
        The hosts that may be used; all of the cluster when empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    notebooks: tuple[str, ...] = ()
    profile: str = "quick"
    parameters: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    every_host: bool = True
    hosts: tuple[str, ...] = ()

    @field_validator("notebooks", "hosts", mode="before")
    @classmethod
    def _as_texts(cls, value: Any, info: ValidationInfo) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        form = "02" if info.field_name == "notebooks" else ""  # YAML reads 01 as 1
        return tuple(f"{one:{form}}" if isinstance(one, int) else one for one in values)

    @field_validator("parameters", mode="before")
    @classmethod
    def _as_axes(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: values if isinstance(values, list | tuple) else [values] for name, values in value.items()
        }

    @field_validator("parameters")
    @classmethod
    def _axes_have_values(cls, parameters: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for name, values in parameters.items():
            if not values or any(one is None for one in values):
                raise ValueError(f"parameter {name} has an empty value; expected values such as {name}=A,B")
            if len({_text(one) for one in values}) < len(values):
                raise ValueError(f"parameter {name} has a value twice: {', '.join(map(_text, values))}")
        return parameters

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The parameters with several values, in the order in which they were given."""
        return {name: values for name, values in self.parameters.items() if len(values) > 1}

    def combinations(self) -> list[dict[str, Any]]:
        """Return the values of all parameters at each point; the last one changes fastest.

        Examples
        --------
        >>> Grid(parameters={"queue": ["libaio", "io_uring"], "calls": 3}).combinations()
        [{'queue': 'libaio', 'calls': 3}, {'queue': 'io_uring', 'calls': 3}]
        """
        names = list(self.parameters)
        return [
            dict(zip(names, values, strict=True)) for values in itertools.product(*self.parameters.values())
        ]


@dataclass(frozen=True)
class Point:
    """One run of the sweep.

    Attributes
    ----------
    slug : str
        The name of its folder below ``points/``.
    host : str or None
        The host that it runs on; None for the one that is free.
    values : dict
        The parameters that are given.
    """

    slug: str
    host: str | None
    values: dict[str, Any]


def parse_axes(pairs: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``name=value,value`` pairs; each value as YAML.

    Examples
    --------
    >>> parse_axes(["page_bytes=4096,65536", "queue=libaio", "keys_sweep=[1,2],[4,8]"])
    {'page_bytes': [4096, 65536], 'queue': ['libaio'], 'keys_sweep': [[1, 2], [4, 8]]}
    """
    axes: dict[str, list[Any]] = {}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            raise ConfigError(f"-p {pair}: expected name=value or name=value,value")
        if name in axes:
            raise ConfigError(f"-p {pair}: {name} is given twice; write its values as {name}=A,B")
        if not text:
            raise ConfigError(f"-p {pair}: {name} has no value; expected values such as {name}=A,B")
        try:
            axes[name] = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError:
            raise ConfigError(f"-p {pair}: the values cannot be read; expected {name}=A,B; {HINT}") from None
    return axes


def read_grid(path: Path | None, given: Mapping[str, Any]) -> Grid:
    """Read a grid from a YAML file, if there is one; what is given besides overrides it, parameter by parameter.

    Raises
    ------
    ConfigError
        When the file cannot be read, or has an entry that a grid does not have.
    """
    known: Any = {}
    if path is not None:
        try:
            known = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            what = error.strerror if isinstance(error, OSError) else f"it is not YAML{_where(error)}"
            raise ConfigError(f"grid {path} cannot be read: {what}; see hicache-nixl sweep --help") from error
        if not isinstance(known, dict):
            raise ConfigError(
                f"grid {path}: expected entries such as parameters: {{queue: [libaio, io_uring]}}"
            )
    parameters = known.get("parameters") or {}
    if isinstance(parameters, dict):
        parameters = {**parameters, **given.get("parameters", {})}
    return make_grid({**known, **given, "parameters": parameters}, f"grid {path}: " if path else "")


def make_grid(entries: Mapping[str, Any], where: str = "") -> Grid:
    """Make a grid; what cannot work is one line."""
    try:
        return Grid(**{str(name): value for name, value in entries.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"entry {name} is unknown; expected one of {', '.join(Grid.model_fields)}"
        elif first["type"] != "value_error":
            message = f"entry {name}: {message[:1].lower()}{message[1:]}"
        raise ConfigError(f"{where}{message}") from None


def _where(error: Exception) -> str:
    """Return the line in which a parser stopped."""
    mark = getattr(error, "problem_mark", None)
    return f" in line {mark.line + 1}" if mark is not None else ""


def chosen_notebooks(grid: Grid, known: Mapping[str, Path]) -> dict[str, Path]:
    """Return the notebooks that each point runs."""
    return choose_notebooks(grid.notebooks or notebooks_of_profile(grid.profile, known), known)


def check(grid: Grid, chosen: Mapping[str, Path], here: bool) -> None:
    """Refuse a grid of which a point cannot work, as ``reproduce`` would refuse it.

    Parameters
    ----------
    here : bool
        Whether the points run on this machine; other hosts check their own folders, limits and memory.
    """
    size = math.prod(len(values) for values in grid.parameters.values())
    if size > MOST_POINTS:
        raise ConfigError(f"the grid has {size} points; expected {MOST_POINTS} or fewer")
    profile = read_profile(grid.profile)
    for values in grid.combinations():
        try:
            parameters_for(chosen, profile, values, here)
        except ConfigError as error:
            hint = f"; {HINT}" if "is not a list" in str(error) else ""
            raise ConfigError(f"{error}{hint}") from None


def points_of(grid: Grid, hosts: Sequence[str]) -> list[Point]:
    """Return the points of a grid: those of each host, if it is for every host.

    Examples
    --------
    >>> grid = Grid(parameters={"queue": ["libaio", "io_uring"]})
    >>> [point.slug for point in points_of(grid, ["node7"])]
    ['001-libaio-node7', '002-io_uring-node7']
    """
    combinations = grid.combinations()
    where: list[str | None] = [*hosts] if grid.every_host else [None]
    if (size := len(combinations) * len(where)) > MOST_POINTS:
        raise ConfigError(
            f"the grid has {len(combinations)} points on each of {len(where)} hosts, {size} together; expected "
            f"{MOST_POINTS} or fewer"
        )
    every = [(host, values) for host in where for values in combinations]
    return [
        Point(_slug(number, grid, host, values), host, values)
        for number, (host, values) in enumerate(every, 1)
    ]


def counts_only(notebook: Path) -> bool:
    """Return whether a notebook states counts only, which other work on the machine does not change.

    The rule: no cell states a claim about a measured interval.  Points of such notebooks may share a machine.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return not any(MEASURED.search("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code")


def _slug(number: int, grid: Grid, host: str | None, values: Mapping[str, Any]) -> str:
    parts = [_text(values[name]) for name in grid.axes] + ([host] if host is not None else [])
    plain = [re.sub(r"[^\w.+]+", "-", part.replace("/", " ").strip()) for part in parts]
    return "-".join([f"{number:03}", *plain])[:LONGEST].rstrip("-.")


def _text(value: Any) -> str:
    """Return a value as it stands in names and on pages.

    Examples
    --------
    >>> _text(4096), _text([1, 2]), _text(True)
    ('4096', '1 2', 'true')
    """
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def told(values: Mapping[str, Any]) -> str:
    """Return the values of a point in words.

    Examples
    --------
    >>> told({"queue": "libaio", "page_bytes": 4096})
    'queue=libaio page_bytes=4096'
    """
    return " ".join(f"{name}={_text(value)}" for name, value in values.items())
