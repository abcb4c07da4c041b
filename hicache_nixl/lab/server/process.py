"""The processes of a server: its command line, its start, and its end."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from ...config import STORAGE_DIR_VARIABLE
from ...errors import ConfigError
from ..keeper import KILLED, kept
from .environment import LAST_LINES, Environment, ServerError
from .options import check_nofile_limit, check_storage_dir

HERE = Path(__file__).parent
HEALTHY = 300.0  # seconds for a server to answer; 15 on an idle machine
HOST = "127.0.0.1"
PAGE, CONTEXT, TOKENS = 64, 8192, 16384  # tokens: of a page, of a request, of the pool of the "device"
SCHEDULER = "sglang::scheduler"
HTTP = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # a proxy does not reach this machine's loopback
FAILED = (OSError, http.client.HTTPException)  # of a request to a server that is not there, or goes away
_FLAGS = (
    "disable-cuda-graph",
    "enable-cache-report",
    "enable-hierarchical-cache",
    "skip-server-warmup",
    "skip-tokenizer-init",
)
# Of the host pool, and how its pages are copied to and from the device.
LAYOUTS = {"layer_first": "direct", "page_first": "kernel", "page_first_direct": "direct"}
_OPTIONS = {
    "attention-backend": "torch_native",
    "chunked-prefill-size": 4096,
    "context-length": CONTEXT,
    "device": "cpu",
    "dtype": "bfloat16",
    "hicache-ratio": 2,
    "hicache-storage-prefetch-policy": "wait_complete",
    "hicache-write-policy": "write_through",
    "max-running-requests": 4,
    "page-size": PAGE,
}


def command(
    environment: Environment,
    model: Path,
    port: int,
    layout: str,
    backend: str,
    extra: Mapping[str, Any],
    device_tokens: int,
) -> list[str]:
    """Return the command line of a server."""
    named = {
        **_OPTIONS,
        "hicache-io-backend": LAYOUTS[layout],
        "hicache-mem-layout": layout,
        "hicache-storage-backend": backend,
        "hicache-storage-backend-extra-config": json.dumps(extra),
        "host": HOST,
        "max-total-tokens": device_tokens,
        "model-path": model,
        "port": port,
    }
    flags = [f"--{flag}" for flag in _FLAGS]
    options = [part for name, value in named.items() for part in (f"--{name}", str(value))]
    return [os.fspath(environment.python), "-m", "sglang.launch_server", *flags, *options]


class Process:
    """A running server with a keeper, which ends all of its processes; ``end`` may be called twice.

    Parameters
    ----------
    environment : Environment
    storage_dir : path, optional
        By default a new folder, which is removed at the end.
    nofile_limit : int
        Of each process of the server; 0 for the limit of this one.
    variables : mapping
        More variables for its environment.
    port : int, optional
        By default a free one.
    log : file, optional
        An open file for what the server prints, to be written and read; by default one that nobody sees.
    make_command : callable
        Returns the command line for a port.

    Raises
    ------
    ConfigError
        When the port is taken, or the storage folder or the limit cannot work.
    ServerError
        When the server ends, or is not healthy in time; nothing is left running then.
    """

    def __init__(
        self,
        environment: Environment,
        make_command: Callable[[int], Sequence[str]],
        *,
        storage_dir: str | os.PathLike[str] | None = None,
        nofile_limit: int = 0,
        variables: Mapping[str, str] | None = None,
        port: int | None = None,
        log: IO[bytes] | None = None,
    ):
        check_nofile_limit(nofile_limit)
        with ExitStack() as ends:
            self.port = free_port(port)
            folder = Path(tempfile.mkdtemp(prefix="hicache-nixl-server-"))
            # The keeper does this as well, for a process that is killed.
            ends.callback(shutil.rmtree, folder, ignore_errors=True)
            self.storage_dir = _storage_folder(Path(storage_dir or folder / "storage").absolute())
            self._log = log or ends.enter_context(tempfile.TemporaryFile())
            environ = environ_of(environment, folder, self.storage_dir, variables or {})
            command = make_command(self.port)
            self._keeper = ends.enter_context(kept(command, environ, folder, self._log, nofile_limit))
            self._wait_until_healthy()
            self.scheduler = self._find_scheduler()
            self._ends = ends.pop_all()

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://{HOST}:{self.port}"

    def end(self) -> None:
        """End every process of the server, and remove its own folder."""
        self._ends.close()

    def log(self) -> str:
        """Return all that the server has printed."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def last_lines(self) -> str:
        """Return the last lines that the server has printed, for a message."""
        return "\n".join(self.log().splitlines()[-LAST_LINES:])

    def ended(self) -> str:
        """Return how the server has ended, with the cause and its last lines; nothing while it runs."""
        code = self._keeper.poll()
        if code is None:
            return ""
        how = f"was ended by signal {code - KILLED}" if code > KILLED else f"ended with {code}"
        return f"the server {how}{_cause(self.log())}:\n{self.last_lines()}"

    def processes(self) -> list[psutil.Process]:
        """Return the keeper, and all processes of the server."""
        keeper = psutil.Process(self._keeper.pid)
        return [keeper, *keeper.children(recursive=True)]

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + HEALTHY
        while time.monotonic() < deadline:
            if ended := self.ended():
                raise ServerError(ended)
            try:
                with HTTP.open(f"{self.url}/health", timeout=5):
                    return
            except FAILED:
                time.sleep(0.2)
        cause = _cause(self.log())
        raise ServerError(f"the server was not healthy after {HEALTHY:g} s{cause}:\n{self.last_lines()}")

    def _find_scheduler(self) -> int:
        for process in self.processes():
            with suppress(psutil.Error):  # one that has ended
                if SCHEDULER in " ".join(process.cmdline()):
                    return process.pid
        raise ServerError(f"no process of the server is named {SCHEDULER}:\n{self.last_lines()}")


def _cause(log: str) -> str:
    r"""Return the last error that was printed, to be put behind what happened.

    Examples
    --------
    >>> _cause("ValueError: first\n  File x\nOSError: [Errno 24] Too many open files\naborted")
    ': OSError: [Errno 24] Too many open files'
    >>> _cause("ConfigError: capacity\nKeyError: '/mp-0ilmnhun'")
    ': ConfigError: capacity'
    >>> _cause("loading")
    ''
    """
    # Python's tracker of semaphores prints the second one for those of processes that were killed.
    errors = re.findall(r"^[\w.]*(?:Error|Exception): (?!'/mp-).+$", log, re.MULTILINE)
    return f": {errors[-1]}" if errors else ""


def _storage_folder(folder: Path) -> Path:
    check_storage_dir(folder)
    folder.mkdir(exist_ok=True)
    return folder


def free_port(wanted: int | None = None) -> int:
    """Return a port of the loopback that nobody listens on: the one that is wanted, or any."""
    if wanted is not None and not 0 < wanted < 65536:
        raise ConfigError(f"port {wanted}: expected 1 to 65535; leave it out for a free one")
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((HOST, wanted or 0))
        except OSError as error:
            raise ConfigError(
                f"port {wanted}: {error.strerror}; choose another, or leave it out for a free one"
            ) from error
        return int(asked.getsockname()[1])


def environ_of(
    environment: Environment, folder: Path, storage_dir: Path, variables: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables of a server, which finds this package and nothing else that is installed beside it.

    Makes ``storage_dir``, and in ``folder`` a folder ``site`` with a link to this package.
    """
    storage_dir.mkdir(parents=True, exist_ok=True)
    site = folder / "site"
    site.mkdir()
    (site / "hicache_nixl").symlink_to(HERE.parents[1], target_is_directory=True)
    path = (HERE / "stand_ins", environment.packages, site)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SGLANG_")}
    return {
        **kept,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(os.fspath, path)),
        "SGLANG_USE_CPU_ENGINE": "1",
        "TMPDIR": os.fspath(folder),  # where SGLang leaves files and sockets behind
        "TOKENIZERS_PARALLELISM": "false",
        STORAGE_DIR_VARIABLE: os.fspath(storage_dir),
        **variables,
    }
