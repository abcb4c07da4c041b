"""Released SGLang connectors: fetch their wheel, and load the connector from it.

Nothing is installed or unpacked: Python imports the connector from the wheel, with only torch and nixl
beside it.  Empty packages replace the serving stack around it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from ...errors import ConfigError, HiCacheNixlError
from ...resources import resource
from ...transport.agent import load_nixl
from ..progress import tqdm

logger = logging.getLogger(__name__)

PREFIX = "sglang=="
INSTALLED = "sglang@"
CACHE_VARIABLE = "HICACHE_NIXL_CACHE"
UNREACHED = "pip reached no package registry"
PATIENCE = 20  # seconds that pip waits for a registry, twice
# One wheel for every Python and machine, so that one hash holds: the connector in it is plain Python.
ANY_MACHINE = [
    *(
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--abi",
        "cp311",
        "--abi",
        "abi3",
        "--abi",
        "none",
    ),
    *("--platform", "manylinux_2_34_x86_64", "--platform", "manylinux2014_x86_64", "--platform", "any"),
]

_STACK = "sglang.srt.mem_cache"
_EMPTY = ("sglang", "sglang.srt", _STACK, f"{_STACK}.storage", f"{_STACK}.storage.nixl", "sglang.srt.utils")
_CONNECTOR = f"{_STACK}.storage.nixl.hicache_nixl"
_HOST_POOL = (f"{_STACK}.memory_pool_host", f"{_STACK}.pool_host")
_FILE_BACKEND = f"{_STACK}.hicache_storage"
_SEAWEEDFS = f"{_STACK}.storage.seaweedfs.seaweedfs_store"
_FILE_VARIABLES = "SGLANG_HICACHE_FILE_BACKEND_"  # how the names of its variables begin
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.(post|dev)[0-9]+)?")


class ReleaseError(ConfigError):
    """A release is not available or cannot be used; names the reason and those that are known to work."""

    def __init__(self, version: str, reason: str):
        self.reason = reason
        super().__init__(f"{PREFIX}{version} {reason}; known to work: {', '.join(known_releases())}")


@functools.cache
def known_releases() -> dict[str, Any]:
    """Return the releases whose hash is recorded, by version, as rows of ``data/sglang_releases.csv``."""
    table = pd.read_csv(resource("data/sglang_releases.csv"), dtype=str, keep_default_na=False)
    return {row.release: row for row in table.itertuples()}


def version_of(connector: str) -> str | None:
    """Return the version of ``"sglang==0.5.11"``, None for anything else.

    Examples
    --------
    >>> version_of("sglang==0.5.11"), version_of("scoped")
    ('0.5.11', None)
    """
    if not connector.startswith(PREFIX):
        return None
    version = connector.removeprefix(PREFIX)
    if not _VERSION.fullmatch(version):
        raise ReleaseError(version, "is not a version; expected one such as 0.5.11")
    return version


def installed_in(connector: str) -> Path | None:
    """Return the site-packages folder of ``"sglang@FOLDER"``, None for anything else.

    Raises
    ------
    ConfigError
        When it contains no SGLang with a connector for NIXL.

    Examples
    --------
    >>> installed_in("sglang==0.5.11")
    >>> installed_in("sglang@/nowhere")
    Traceback (most recent call last):
    hicache_nixl.errors.ConfigError: sglang@/nowhere: it contains no connector for NIXL; expected the site-packages folder in which SGLang is installed
    """
    if not connector.startswith(INSTALLED):
        return None
    folder = Path(connector.removeprefix(INSTALLED))
    if not has_connector(folder):
        raise ConfigError(
            f"{connector}: it contains no connector for NIXL; expected the site-packages folder in which SGLang is installed"
        )
    return folder.resolve()


def has_connector(folder: Path) -> bool:
    """Return whether an SGLang with a connector for NIXL is installed in a site-packages folder."""
    return os.path.isfile(folder / f"{_CONNECTOR.replace('.', '/')}.py")


def source_of(connector: str) -> str | None:
    """Return the argument for ``connector_class``: the wheel of a release, which is fetched, or a folder; else None."""
    if (version := version_of(connector)) is not None:
        return str(fetch(version))
    folder = installed_in(connector)
    return None if folder is None else str(folder)


def cache_folder() -> Path:
    """Return where wheels are kept: ``HICACHE_NIXL_CACHE``, else ``~/.cache/hicache-nixl``."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/hicache-nixl").expanduser()


def fetch(version: str, cache: Path | None = None, warn: bool = True) -> Path:
    """Return the wheel of a release, downloaded with pip when the cache has none.

    The hash of a known release is checked each time; that of another is not, which is said with ``warn``.

    Raises
    ------
    ReleaseError
        No such release, no registry, or a wheel with another hash than the known one.
    """
    folder = cache or cache_folder()
    try:
        wheel = next(folder.glob(f"sglang-{version}-*.whl"), None)
        if wheel is None:
            return _download(version, folder, warn)
        _check_hash(version, wheel, warn)
        return wheel
    except OSError as error:
        raise ReleaseError(
            version, f"cannot be stored in {folder}: {error} ({CACHE_VARIABLE} sets another folder)"
        ) from error


def at_hand(connectors: Iterable[str]) -> dict[str, str]:
    """Fetch released connectors, and return for each why it is not available, empty when it is.

    Notebooks mark an arm that is not available as not run instead of failing.
    """
    reasons = {}
    for connector in connectors:
        try:
            if (version := version_of(connector)) is not None:
                fetch(version)
            reasons[connector] = ""
        except ReleaseError as error:
            reasons[connector] = str(error)
    return reasons


def load_nixl_with_objects() -> None:
    """Load the build of NIXL whose plugin OBJ works without CUDA, for released connectors, too.

    Each imports ``nixl``, which would load the other build where both are installed.
    """
    api = load_nixl("OBJ")
    build = sys.modules[api.__name__.rpartition(".")[0]]
    sys.modules.update({"nixl": build, "nixl._api": api})


def connector_class(wheel: str | os.PathLike[str]) -> tuple[type, type]:
    """Import ``HiCacheNixl`` and ``HiCacheStorageConfig`` from a wheel or a folder, into this process.

    To be used in a separate process: the modules that it puts into ``sys.modules`` are not a working SGLang, and
    the process writes no bytecode afterwards, because the folder is not ours.

    Raises
    ------
    HiCacheNixlError
        When the connector does not load without the serving stack.
    """
    _replace_stack(wheel)
    try:
        connector = importlib.import_module(_CONNECTOR).HiCacheNixl
        config = importlib.import_module(_FILE_BACKEND).HiCacheStorageConfig
    except Exception as error:
        raise HiCacheNixlError(f"its connector does not load: {type(error).__name__}: {error}") from error
    return connector, config


def file_backend(wheel: str | os.PathLike[str]) -> tuple[type, type]:
    """Import ``HiCacheFile``, SGLang's backend without NIXL, and ``HiCacheStorageConfig``; as ``connector_class``.

    The variables that give that backend another folder, or a limit, are removed from this process.

    Raises
    ------
    HiCacheNixlError
        When it does not load without the serving stack.
    """
    _replace_stack(wheel)
    for name in [name for name in os.environ if name.startswith(_FILE_VARIABLES)]:
        del os.environ[name]
    sizes = ModuleType("sglang.srt.utils.common")  # of its evictor, which is off without a limit
    vars(sizes)["human_readable_int"] = int
    sys.modules[sizes.__name__] = sizes
    try:
        module = importlib.import_module(_FILE_BACKEND)
        return module.HiCacheFile, module.HiCacheStorageConfig
    except Exception as error:
        raise HiCacheNixlError(f"its file backend does not load: {type(error).__name__}: {error}") from error


def seaweedfs_backend(wheel: str | os.PathLike[str]) -> tuple[type, type]:
    """Import ``SeaweedFSStore``, SGLang's backend for S3, and ``HiCacheStorageConfig``; as ``connector_class``.

    Raises
    ------
    HiCacheNixlError
        When it does not load: it needs boto3 and msgspec.
    """
    _replace_stack(wheel)
    try:
        importlib.import_module("boto3")  # which it imports only when it is created
        store = importlib.import_module(_SEAWEEDFS).SeaweedFSStore
        return store, importlib.import_module(_FILE_BACKEND).HiCacheStorageConfig
    except Exception as error:
        raise HiCacheNixlError(
            f"its backend seaweedfs does not load: {type(error).__name__}: {error}"
        ) from error


def _replace_stack(wheel: str | os.PathLike[str]) -> None:
    """Put empty packages around what is imported from a wheel or a folder."""
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
        del sys.modules[name]
    for name in _EMPTY:
        package = ModuleType(name)
        package.__path__ = [f"{wheel}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    for name in _HOST_POOL:
        module = ModuleType(name)
        vars(module)["HostKVCache"] = type("HostKVCache", (), {})
        sys.modules[name] = module


def _download(version: str, folder: Path, warn: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        _pip_download(version, fresh)
        wheel = next(Path(fresh).glob("*.whl"))
        _check_hash(version, wheel, warn)
        return wheel.replace(folder / wheel.name)


def _pip_download(version: str, folder: str) -> None:
    what = [f"{PREFIX}{version}", "--no-deps", "--only-binary", ":all:", *ANY_MACHINE, "--dest", folder]
    patience = ["--timeout", str(PATIENCE), "--retries", "1", "--disable-pip-version-check"]
    with (
        tempfile.TemporaryFile("w+") as output,
        tqdm(desc=f"fetching {PREFIX}{version}", bar_format="{desc} {elapsed}", leave=False) as progress,
    ):
        command = [sys.executable, "-m", "pip", "download", *what, *patience]
        # what pip unpacks is removed with the folder, also when pip is killed
        environment = {**os.environ, "TMPDIR": folder, "PIP_NO_COLOR": "1"}  # a kernel asks for colours
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        ) as pip:
            try:
                while pip.poll() is None:
                    try:
                        pip.wait(timeout=0.2)
                    except subprocess.TimeoutExpired:
                        progress.refresh()
            except BaseException:
                pip.kill()
                raise
        if pip.returncode:
            output.seek(0)
            why = reason(output.read())
            if why == UNREACHED:
                why += "; none is needed when the wheel is in the cache folder"
            raise ReleaseError(version, f"is not available: {why}")


def reason(output: str) -> str:
    """Return the line of pip's output that names the reason."""
    answered = re.search(r"from versions: (?!none)", output)
    if not answered and re.search(r"connection|resolve|timed out|unreachable|refused", output, re.IGNORECASE):
        return UNREACHED
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    line = (errors or lines or ["pip printed nothing"])[-1]
    return line if len(line) < 200 else f"{line[:200]}..."


def _check_hash(version: str, wheel: Path, warn: bool) -> None:
    known = known_releases().get(version)
    if known is None:
        if warn:
            logger.warning("%s%s is not a known release: its hash is not checked", PREFIX, version)
        return
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != known.sha256:
        raise ReleaseError(
            version,
            f"is refused: the SHA-256 of {wheel} is {found}, expected {known.sha256}; "
            "remove the file to fetch it again",
        )
