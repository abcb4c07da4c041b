"""The Python environment of a real SGLang server: made once with pip, in the cache folder.

The packages are pinned in ``data/servers``: ``common.txt`` for what all releases share (3 GB, a virtual environment), and
a short list for each release, which is installed beside it and comes first on the path of its server.  pip resolves no
dependencies: SGLang would ask for its CUDA packages.  What this package's connector needs besides is in ``connector.txt``,
and is added to what all releases share, also to what was installed before it was listed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from ...errors import ConfigError, HiCacheNixlError
from ...resources import resource
from ..keeper import KILLED, kept
from ..worker.releases import CACHE_VARIABLE, PREFIX, ReleaseError, cache_folder, fetch, reason, version_of

COMMON_BYTES, RELEASE_BYTES = 3_500_000_000, 450_000_000  # of disk, at most, while they are made
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"  # PyPI's build of torch needs the CUDA libraries
WHOLE = ".complete"  # a file that is made last
STEP = 30  # packages that pip installs at once
POLL = 0.5  # seconds
LAST_LINES = 8

# What the lab needs in a release, and a file and a text that show that it is there.
_STORAGE = "sglang/srt/mem_cache"
_INTERFACE = {
    "a storage backend on NIXL": (f"{_STORAGE}/storage/nixl/hicache_nixl.py", "class HiCacheNixl"),
    "storage backends of other packages ('dynamic')": (f"{_STORAGE}/storage/backend_factory.py", "dynamic"),
    "batch_set_v1": (f"{_STORAGE}/hicache_storage.py", "def batch_set_v1"),
}

Progress = Callable[
    [str, int, int], object
]  # what is done; the bytes that are there, and those that are expected


class ServerError(HiCacheNixlError, RuntimeError):
    """A server could not be installed or did not start, or it ended; the message has the last lines of its output."""


class _RefusedError(ServerError):
    """pip cannot install these packages, however often it is asked."""


@dataclass(frozen=True)
class Environment:
    """Where the packages of a server are.

    Attributes
    ----------
    version : str
        Of SGLang.
    python : Path
        The interpreter, with the packages that all releases share.
    packages : Path
        A folder with those of this release, to be put on its path.
    """

    version: str
    python: Path
    packages: Path


def versions() -> list[str]:
    """Return the releases whose packages are pinned.

    Examples
    --------
    >>> versions()
    ['0.5.11', '0.5.12', '0.5.13.post1', '0.5.23']
    """
    return sorted(path.stem.removeprefix("sglang-") for path in resource("data/servers").glob("sglang-*.txt"))


def installed(version: str) -> Environment | None:
    """Return an environment that is complete, else None."""
    common, release = _folders(version)
    whole = all((folder / WHOLE).exists() for folder in (common, release))
    whole = whole and (common / f".step-{_connector_step()}").exists()
    return Environment(version, common / "bin/python", release) if whole else None


def install(version: str, progress: Progress = lambda doing, size, expected: None) -> Environment:
    """Make an environment, or continue with one whose installation was interrupted.

    An installation that fails is removed; one that is interrupted, or whose pip is killed, continues the next time
    after the last step that was complete.

    Raises
    ------
    ConfigError
        When there is no such release, no packages are pinned for it, or the disk is too small.
    ServerError
        When pip fails; the message ends with its last lines.
    """
    common, release = _folders(version)
    with _alone(common.parent):
        if (there := installed(version)) is not None:
            return there
        _check_space(common, release)
        _install(common, _pins("common"), COMMON_BYTES, "packages of all releases", progress)
        _add_connector_packages(common, progress)
        _install(release, _pins(f"sglang-{version}"), RELEASE_BYTES, f"sglang {version}", progress, common)
    return Environment(version, common / "bin/python", release)


def remove() -> int:
    """Remove all environments and models of servers; return the bytes that were freed.

    Raises
    ------
    ConfigError
        When a server runs from them.
    """
    folder = servers_folder()
    if users := _users(folder):
        raise ConfigError(f"{folder} is used by process {users[0]}; end the server first")
    freed = folder_size(folder) + folder_size(_removed(folder))
    with _alone(folder):
        _discard(folder)
    return freed


def servers_folder() -> Path:
    """Return where environments and models are kept."""
    return cache_folder() / "servers"


def sizes() -> dict[str, int]:
    """Return the bytes on disk of each release that is pinned, also of one that is incomplete.

    ``"common"`` stands for what they share, ``"other"`` for models and for environments of other pins.
    """
    _check_folder()
    found = {version: folder_size(_folders(version)[1]) for version in versions()}
    found["common"] = folder_size(_folders(versions()[0])[0])
    found["other"] = folder_size(servers_folder()) - sum(found.values())
    return found


def folder_size(folder: Path) -> int:
    """Return the bytes of the files in a folder that another process may change."""
    total, waiting = 0, [os.fspath(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def _folders(version: str) -> tuple[Path, Path]:
    """Return the folders of what is shared and of a release; other pins, or another Python, have other folders."""
    _check_version(version)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    names = []
    for name in ("common", f"sglang-{version}"):
        pinned = hashlib.sha256("\n".join([python, *_pins(name)]).encode()).hexdigest()[:8]
        names.append(servers_folder() / f"{name}-{pinned}")
    return names[0], names[1]


def _pins(name: str) -> list[str]:
    lines = (resource("data/servers") / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def _check_version(version: str) -> None:
    if version not in versions():
        raise ConfigError(f"sglang {version} {_reason(version)}; releases that work: {', '.join(versions())}")


def _reason(version: str) -> str:
    """Say why a release cannot be run; its wheel is fetched and read, never run."""
    try:
        version_of(f"{PREFIX}{version}")
        lacks = _lacks(fetch(version, warn=False))
    except ReleaseError as error:
        return error.reason
    return f"lacks {' and '.join(lacks)}" if lacks else "cannot be run, since its packages are not pinned"


def _lacks(wheel: Path) -> list[str]:
    """Name what the lab needs and a release does not have."""
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        return [
            need
            for need, (name, text) in _INTERFACE.items()
            if name not in names or text.encode() not in files.read(name)
        ]


def _check_space(*folders: Path) -> None:
    parent = folders[0].parent
    missing = sum(
        expected - folder_size(folder)
        for folder, expected in zip(folders, (COMMON_BYTES, RELEASE_BYTES), strict=True)
        if not (folder / WHOLE).exists()
    )
    free = shutil.disk_usage(parent).free
    if free < missing:
        raise ConfigError(
            f"not enough disk space in {parent}: {missing / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; "
            f"set {CACHE_VARIABLE} to a folder on a larger disk"
        )


def _discard(folder: Path) -> None:
    """Remove a folder under another name, so that an interruption leaves nothing that looks complete."""
    removed = _removed(folder)
    shutil.rmtree(removed, ignore_errors=True)
    folder.rename(removed)
    shutil.rmtree(removed)


def _users(folder: Path) -> list[int]:
    """Return the processes whose interpreter is in a folder."""
    running = {one.pid: one.info["cmdline"] or [""] for one in psutil.process_iter(["cmdline"])}
    return [pid for pid, command in running.items() if command[0].startswith(f"{folder}{os.sep}")]


def _check_folder() -> None:
    """Refuse a cache that cannot be a folder; one that is missing is made by an installation."""
    folder = servers_folder()
    try:
        folder.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _no_folder(folder, error) from error


def _no_folder(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder}: {error.strerror}; set {CACHE_VARIABLE} to a folder that can be written to")


def _removed(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.removed")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only process that installs; the kernel releases the lock of one that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder.with_name(f"{folder.name}.lock"), "w")
    except OSError as error:
        raise _no_folder(folder, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(
    folder: Path,
    pins: Sequence[str],
    expected: int,
    what: str,
    progress: Progress,
    common: Path | None = None,
) -> None:
    """Install packages into a new virtual environment, or into a folder by the interpreter of ``common``."""
    if (folder / WHOLE).exists():
        return
    python = (common or folder) / "bin/python"
    target = ["--upgrade", "--target", os.fspath(folder)] if common else []
    steps = list(_steps(pins))
    try:
        _step(folder, "venv", lambda: _make_folder(folder, is_venv=common is None))
        for number, packages in enumerate(steps, 1):
            doing = f"{what}, step {number} of {len(steps)}"
            advance = partial(_advance, progress, doing, folder, expected)
            _step(folder, str(number), partial(_pip, python, [*target, *packages], folder, advance))
    except _RefusedError:
        _discard(folder)
        raise
    (folder / WHOLE).touch()


def _add_connector_packages(common: Path, progress: Progress) -> None:
    """Install what the connector needs besides; a failure leaves everything else as it is."""
    advance = partial(_advance, progress, "packages of the connector", common, COMMON_BYTES)
    _step(
        common, _connector_step(), partial(_pip, common / "bin/python", _pins("connector"), common, advance)
    )


def _connector_step() -> str:
    return f"connector-{hashlib.sha256(chr(10).join(_pins('connector')).encode()).hexdigest()[:8]}"


def _step(folder: Path, name: str, act: Callable[[], object]) -> None:
    """Do a part of an installation, unless it was completed before."""
    done = folder / f".step-{name}"
    if not done.exists():
        act()
        done.touch()


def _make_folder(folder: Path, is_venv: bool) -> None:
    if is_venv:
        venv.create(folder, with_pip=True, clear=True)
    else:
        folder.mkdir(exist_ok=True)


def _advance(progress: Progress, doing: str, folder: Path, expected: int) -> None:
    progress(doing, folder_size(folder), expected)


def _steps(pins: Sequence[str]) -> Iterator[list[str]]:
    """Return what pip is asked to install, step by step: torch first, as the build for processors."""
    yield from ([pin] for pin in pins if pin.startswith("torch=="))
    others = [pin for pin in pins if not pin.startswith("torch==")]
    for first in range(0, len(others), STEP):
        yield others[first : first + STEP]


def _pip(python: Path, arguments: Sequence[str], folder: Path, advance: Callable[[], None]) -> None:
    """Install packages; what an interrupted pip has left of them is overwritten."""
    options = ["--no-deps", "--ignore-installed", "--no-warn-script-location", "--disable-pip-version-check"]
    options += ["--retries", "1", "--timeout", "20"]
    command = [os.fspath(python), "-m", "pip", "install", *options]
    if arguments[-1].startswith("torch=="):
        only = ["--index-url", CPU_BUILDS, "--retries", "0", "--timeout", "15"]
        try:
            _run([*command, *only, *arguments], folder, advance)
            return
        except _RefusedError:
            pass  # the index of the user may have a build for processors
    _run([*command, *arguments], folder, advance)


def _run(command: Sequence[str], folder: Path, advance: Callable[[], None]) -> None:
    """Run pip, which unpacks inside the folder."""
    temporary = folder / ".pip"
    temporary.mkdir(exist_ok=True)
    environ = {**os.environ, "TMPDIR": os.fspath(temporary), "PIP_NO_COLOR": "1", "PYTHONPATH": ""}
    with tempfile.TemporaryFile("w+") as output:
        with kept(command, environ, temporary, output) as pip:
            while pip.poll() is None:
                advance()
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(POLL)
        output.seek(0)
        _check_ended(pip.returncode, output.read())


def _check_ended(code: int, printed: str) -> None:
    """Raise unless pip has ended with 0; a pip that was killed would have done its work."""
    if code < 0 or code > KILLED:
        raise ServerError("pip was killed; install again to continue after the last step that was complete")
    if code:
        last = "\n".join(printed.splitlines()[-LAST_LINES:])
        raise _RefusedError(f"the packages could not be installed: {reason(printed)}\npip printed:\n{last}")
