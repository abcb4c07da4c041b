"""The SGLang that is installed: its version, and whether its connector leaks, measured where it can be run."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..errors import ConfigError
from ..lab.worker.client import Worker, WorkerError
from ..lab.worker.releases import INSTALLED, has_connector
from ..lab.worker.setup import Setup

PAGES = 2
ROUNDS = 3  # of a set and a get; what only the first one keeps is not a leak, such as a registered pool
# From the releases that were measured: 0.5.11, 0.5.12, 0.5.13.post1 and 0.5.23.
FIRST_FIXED, FIRST_CLEAN = (0, 5, 12), (0, 5, 13)

LEAK, SECOND_LEAK = "leaks file descriptors", "leaks memory registrations"
NEITHER, UNKNOWN = "leaks neither descriptors nor registrations", "may leak"


@dataclass(frozen=True)
class SGLang:
    """An SGLang that is installed.

    Attributes
    ----------
    folder : Path
        The site-packages folder that it is in.
    version : str or None
        None where it has no metadata.
    """

    folder: Path
    version: str | None

    @property
    def name(self) -> str:
        """Its name in a message."""
        return f"SGLang {self.version or 'of an unknown version'}"


@dataclass(frozen=True)
class Verdict:
    """Whether a connector leaks.

    Attributes
    ----------
    leak : str
        ``LEAK``: open files (without PR #24671); ``SECOND_LEAK``: registrations with NIXL; ``NEITHER``; ``UNKNOWN``.
    evidence : str
        What was measured, or why it was not.
    measured : bool
    """

    leak: str
    evidence: str
    measured: bool


def find(folder: str | os.PathLike[str] | None = None) -> SGLang | None:
    """Find the SGLang of this environment, None when there is none; or that of another environment.

    Parameters
    ----------
    folder : path, optional
        A site-packages folder, the root of an environment, or a clone of SGLang.

    Raises
    ------
    ConfigError
        When ``folder`` holds no SGLang.
    """
    if folder is None:
        return _of_this_environment()
    for place in _places(Path(folder).expanduser()):
        if (place / "sglang").is_dir():
            return SGLang(place.resolve(), _version(place))
    missing = (
        "" if os.path.isdir(folder) else "it is a file; " if os.path.exists(folder) else "no such folder; "
    )
    raise ConfigError(
        f"--sglang {folder}: {missing or 'no SGLang in it; '}expected the site-packages folder that SGLang is "
        "installed in, or the root of its environment"
    )


def _places(folder: Path) -> Iterator[Path]:
    yield folder
    yield folder / "python"  # where a clone has the package
    yield from sorted(folder.glob("lib/python3*/*-packages"))


def _of_this_environment() -> SGLang | None:
    spec = importlib.util.find_spec("sglang")  # finds it without importing it
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        return None
    place = Path(locations[0]).parent
    try:
        return SGLang(place, metadata.version("sglang"))
    except metadata.PackageNotFoundError:
        return SGLang(place, None)


def _version(place: Path) -> str | None:
    return next((found.version for found in metadata.distributions(name="sglang", path=[str(place)])), None)


def judge(sglang: SGLang, storage_dir: str | os.PathLike[str] | None = None, timeout: float = 60) -> Verdict:
    """Find whether the connector of an SGLang leaks, by running it here, otherwise by its version."""
    if not has_connector(sglang.folder):
        return Verdict(NEITHER, "it has no connector for NIXL", measured=False)
    try:
        return measure(sglang, storage_dir, timeout)
    except (WorkerError, ConfigError, OSError) as error:
        reason = str(error).splitlines()[0]
        return Verdict(by_version(sglang.version), f"by version, not measured: {reason}", measured=False)


def measure(
    sglang: SGLang, storage_dir: str | os.PathLike[str] | None = None, timeout: float = 60
) -> Verdict:
    """Set and get a few pages in a separate process, and count what stays from call to call.

    Raises
    ------
    ConfigError, WorkerError, OSError
        When its connector cannot be run here, or does not store and load its pages.
    """
    counts = []
    setup = Setup(f"{INSTALLED}{sglang.folder}", pages=PAGES)
    with Worker(setup, storage_dir=storage_dir, timeout=timeout) as worker:
        for _ in range(ROUNDS):
            for operation in ("set", "get"):
                row = worker.call(operation, PAGES)
                if row.pages_ok != PAGES:
                    why = "; ".join(row.log) or "nothing was logged"
                    raise WorkerError(f"its {operation} moved {row.pages_ok} of {PAGES} pages: {why}")
            counts.append((row.storage_fds, row.registrations))
    moved = (len(counts) - 1) * 2 * PAGES
    files, regions = (
        f"{(last - first) / moved:g}" for first, last in zip(counts[0], counts[-1], strict=True)
    )
    if files != "0":
        return Verdict(LEAK, f"measured: {files} open files and {regions} registrations per page stay", True)
    if regions != "0":
        return Verdict(SECOND_LEAK, f"measured: no open file and {regions} registrations per page stay", True)
    return Verdict(NEITHER, "measured: no open file and no registration stays", True)


def by_version(version: str | None) -> str:
    """Return which leak a release has, by its number.

    Examples
    --------
    >>> by_version("0.5.11"), by_version("0.5.12.post1"), by_version("0.5.13.post1")
    ('leaks file descriptors', 'leaks memory registrations', 'leaks neither descriptors nor registrations')
    """
    numbers = re.match(r"[0-9]+(\.[0-9]+)*", version or "")
    if not numbers:
        return UNKNOWN
    release = tuple(map(int, numbers[0].split(".")))
    if release < FIRST_FIXED:
        return LEAK
    return SECOND_LEAK if release < FIRST_CLEAN else NEITHER
