"""A real SGLang server with HiCache, as an instrument: ask it, empty its caches, count its descriptors."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pandas as pd

from ...config import LIFETIMES, is_secret
from ...errors import ConfigError
from ...lifetimes.pooled.inspection import Inspection
from ...lifetimes.pooled_objects.segment import Name
from ..worker.descriptors import fd_table
from ..worker.releases import cache_folder
from .environment import Environment, Progress, ServerError, install
from .options import check_nofile_limit, check_storage_dir
from .process import FAILED, HERE, HTTP, LAYOUTS, PAGE, TOKENS, Process, command

if TYPE_CHECKING:
    from ..object_store import Endpoint

ANSWERED = 120.0  # seconds for a request
ENDED = 10.0  # seconds for a request to end after its answer
BAD_REQUEST = 400
QUIET = 0.4  # seconds without a change, after which a backup or prefetch is taken for complete
BACKENDS = ("nixl", "hicache_nixl")  # SGLang's own, and the connector of this package
MODELS = ("small", "larger")  # 0.6 and 27 million random weights
OURS = {
    "backend_name": "hicache_nixl",
    "module_path": "hicache_nixl.connector",
    "class_name": "HiCacheNixl",
    "interface_v1": 1,
}
POSIX = {"plugin": {"posix": {"active": True}}}


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes
    ----------
    tokens : tuple of int
        The output.
    first_token : float
        Seconds from the request to the first of them, as the client sees it.
    storage, host, device : int
        Tokens of the prompt whose KV pages were loaded instead of computed, by where they were.
    """

    tokens: tuple[int, ...]
    first_token: float
    storage: int
    host: int
    device: int


class Server:
    """A server, from ``with Server(...) as server`` to the end of the block, where all of its processes have ended.

    Parameters
    ----------
    version : str
        Of SGLang; its environment is made when it is missing, see ``install``.
    backend : {"nixl", "hicache_nixl"}
        SGLang's own storage backend on NIXL, or the connector of this package.
    lifetime : str
        Of this package's connector.
    options : mapping, optional
        More of its ``extra_config``, such as ``{"capacity_gb": 4}``.
    objects : Endpoint, optional
        An object store for the pages of this package's connector, in place of the storage folder.  Its credentials are in
        the environment of the server, not in its command line.
    layout : {"page_first", "layer_first", "page_first_direct"}
        Of the host pool.
    nofile_limit : int, optional
        Descriptors that each process of the server may have open; by default as many as this one.
    storage_dir : path, optional
        The storage folder, in a folder that exists; by default a new one, which is removed with the server.
    model : {"small", "larger"}
        Random weights, 0.6 or 27 million.  Either is made once.
    device_tokens : int
        Room of the "device" pool; the host pool has twice as much.
    variables : mapping, optional
        More variables for the environment of the server, such as those of NIXL's telemetry.
    port : int, optional
        By default a free one.
    log : file, optional
        An open file for what the server prints, to be written and read; by default one that nobody sees.
    progress : callable, optional
        Told what is being installed, see ``install``.

    Raises
    ------
    ConfigError
        When an option cannot work; also by ``with``.
    ServerError
        By ``with``; nothing is left running then.
    """

    def __init__(
        self,
        version: str,
        backend: str = "nixl",
        *,
        lifetime: str = "scoped",
        options: Mapping[str, Any] | None = None,
        objects: Endpoint | None = None,
        layout: str = "page_first",
        nofile_limit: int | None = None,
        storage_dir: str | os.PathLike[str] | None = None,
        model: str = "small",
        device_tokens: int = TOKENS,
        variables: Mapping[str, str] | None = None,
        port: int | None = None,
        log: IO[bytes] | None = None,
        progress: Progress = lambda doing, size, expected: None,
    ):
        _check("backend", backend, BACKENDS)
        _check("lifetime", lifetime, LIFETIMES)
        _check("layout", layout, list(LAYOUTS))
        _check("model", model, MODELS)
        check_nofile_limit(nofile_limit or 0)
        if storage_dir is not None:
            check_storage_dir(Path(storage_dir))
        self.version, self.backend, self.lifetime = version, backend, lifetime
        self._ours = backend == "hicache_nixl"
        plugin = POSIX if objects is None else _plugin_of(objects)
        self._extra = {**OURS, "lifetime": lifetime, **(options or {}), **plugin} if self._ours else POSIX
        self._bucket = None if objects is None else objects.client()
        self._layout, self._model, self._progress = layout, model, progress
        self._device_tokens = device_tokens
        self._start = partial(
            Process,
            storage_dir=storage_dir,
            nofile_limit=nofile_limit or 0,
            variables={**({} if objects is None else objects.variables()), **(variables or {})},
            port=port,
            log=log,
        )

    def __enter__(self) -> Server:
        environment = install(self.version, self._progress)
        model = _model_folder(environment, self._model)
        backend = "dynamic" if self._ours else self.backend
        what = (self._layout, backend, self._extra, self._device_tokens)
        self.process = self._start(environment, lambda port: command(environment, model, port, *what))
        return self

    def __exit__(self, *_: object) -> None:
        self.process.end()

    @property
    def pid(self) -> int:
        """The scheduler, which has the cache controller and the storage backend."""
        return self.process.scheduler

    @property
    def layout(self) -> str:
        """Of the host pool."""
        return self._layout

    @property
    def storage_dir(self) -> Path:
        """The storage folder."""
        return self.process.storage_dir

    # -- requests --------------------------------------------------------------------------------------

    def ask(self, tokens: Sequence[int], output: int = 4) -> Answer:
        """Let the model continue a prompt by ``output`` tokens, the likeliest ones.

        Raises
        ------
        ServerError
            When the server refuses, or gives no answer; the message has the last lines of its log.
        """
        sampling = {"max_new_tokens": output, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": list(tokens), "stream": True, "sampling_params": sampling}
        first, last, whole, start = None, {}, False, time.perf_counter()
        try:
            with self._post("generate", body) as lines:
                for line in lines:
                    if line.startswith(b"data: {"):
                        first = first or time.perf_counter() - start
                        last = json.loads(line.removeprefix(b"data: "))
                    whole = whole or line.startswith(b"data: [DONE]")
        except FAILED as error:
            raise self._no_answer(error) from error
        if first is None or not whole or "output_ids" not in last:
            raise self._no_answer(last.get("error", "it broke off"))
        origin = last["meta_info"].get("cached_tokens_details") or {}
        loaded = (int(origin.get(name) or 0) for name in ("storage", "host", "device"))
        return Answer(tuple(last["output_ids"]), first, *loaded)

    def flush(self) -> None:
        """Let the server forget the pages of device and host; those in storage stay.

        A server refuses while a request is pending, also one whose answer has just ended, so it is asked again.
        """
        deadline = time.monotonic() + ENDED
        while not self._flushed(last=time.monotonic() > deadline):
            time.sleep(0.1)

    def _flushed(self, last: bool) -> bool:
        try:
            with self._post("flush_cache"):
                return True
        except ServerError as error:
            if last or getattr(error.__cause__, "code", None) != BAD_REQUEST:
                raise
            return False

    def settle(self, pages: int | None = None, patience: float = 3.0) -> int:
        """Wait until backups and prefetches have ended: neither pages nor descriptors change; return what ``stored`` counts.

        Parameters
        ----------
        pages : int, optional
            What ``stored`` is to reach.  After ``patience`` seconds without it, the backup has failed.
        """
        deadline = time.monotonic() + patience
        counts, since = (self.stored(), len(self.fds())), time.monotonic()
        while True:
            time.sleep(0.05)
            now = time.monotonic()
            if (found := (self.stored(), len(self.fds()))) != counts:
                counts, since = found, now
                deadline = now + patience
            complete = pages is None or counts[0] >= pages or now > deadline
            if complete and now - since > QUIET:
                return counts[0]

    # -- what it has -----------------------------------------------------------------------------------

    def fds(self) -> pd.DataFrame:
        """Return every descriptor of the scheduler, see ``fd_table``."""
        return fd_table(self.pid, self.storage_dir)

    def stored(self) -> int:
        """Return how many pages are in storage; one that several servers have stored in objects may count as often."""
        if self._bucket is not None:
            return self._pages_in([found["path"] for some in self._bucket.list() for found in some])
        if self._ours and self.lifetime == "pooled":
            with Inspection(self.storage_dir) as inspection:
                return len(inspection.rows())
        return self._by_pieces(sum(len(files) for _, _, files in os.walk(self.storage_dir)))

    def _pages_in(self, names: Sequence[str]) -> int:
        """Count the pages of objects."""
        if self.lifetime != "pooled":
            return self._by_pieces(len(names))
        segments = [Name.read(0, name) for name in names]
        return sum(segment.pages for segment in segments if segment is not None)

    def _by_pieces(self, pieces: int) -> int:
        return pieces // (1 if self._layout == "layer_first" else 2)  # keys and values, else

    def log(self) -> str:
        """Return all that the processes of the server have printed."""
        return self.process.log()

    def _post(self, path: str, body: Any = None) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.process.url}/{path}", data, headers, method="POST")
        try:
            return HTTP.open(request, timeout=ANSWERED)
        except FAILED as error:
            raise self._no_answer(error) from error

    def _no_answer(self, what: object) -> ServerError:
        return ServerError(f"the server gave no answer: {what}; its last lines:\n{self.process.last_lines()}")


def _plugin_of(objects: Endpoint) -> dict[str, Any]:
    """Return the ``extra_config`` that selects an object store, without credentials."""
    section = objects.extra_config()["plugin"]["obj"]
    return {"plugin": {"obj": {name: value for name, value in section.items() if not is_secret(name)}}}


def pages_of(tokens: Sequence[int]) -> int:
    """Return how many whole pages a prompt has; only those are stored.

    Examples
    --------
    >>> pages_of(range(2048 + 40))
    32
    """
    return len(tokens) // PAGE


def _check(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{option}: {value!r} is unknown; expected one of {', '.join(known)}")


def _model_folder(environment: Environment, name: str) -> Path:
    """Return the folder of a model, which is made once, by the transformers of a release."""
    folder = cache_folder() / "servers" / f"model-{name}"
    if not folder.exists():
        path = os.pathsep.join([os.fspath(HERE / "stand_ins"), os.fspath(environment.packages)])
        variables = {**os.environ, "PYTHONPATH": path}
        made = subprocess.run(
            [environment.python, HERE / "model.py", folder, name],
            env=variables,
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise ServerError(f"the model could not be made:\n{made.stderr.strip()[-500:]}")
    return folder
