"""The worker's side of the benchmark: one arm, its pages, and its calls, in a thread as SGLang makes them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ...config import HiCacheStorageConfig
from ...connector import HiCacheNixl
from ...errors import HiCacheNixlError
from ..worker import releases
from ..worker.observers import LogTail
from ..worker.pages import CheckedPages
from ..worker.setup import MODEL_NAME, Setup
from ..worker.stored import Unknown
from .stores import Ceiling, FileBackend, NixlStore, Timed

Answer = TypeVar("Answer")
CEILING_FILE = "ceiling"
OPERATIONS = ("set", "exists", "get")
LOADED = {  # from a wheel of SGLang
    "nixl": releases.connector_class,
    "file": releases.file_backend,
    "seaweedfs": releases.seaweedfs_backend,
}


@dataclass(frozen=True)
class Asked:
    """What a worker is asked to open.

    Attributes
    ----------
    kind : str
        ``"ours"``, ``"nixl"`` (SGLang's connector), ``"file"`` (its backend without NIXL), ``"seaweedfs"`` (its backend
        for S3) or ``"ceiling"``.
    folder : str
        An existing folder for its files.
    queue, page_bytes, direct, seed
        As in ``Setup``.
    keys : int
        Of a call.
    calls : int
        The most calls of each operation in a turn.
    written : int
        Bytes that all calls together will write.
    options : mapping
        Of a connector, in the form of ``extra_config``.
    scattered : bool
        As in ``CheckedPages``.
    wheel : str or None
        Of SGLang.
    model : str
        The name of the model.
    with_objects : bool
        Whether to use the build of NIXL that has the plugin OBJ.
    another : bool
        Whether a second one of our connectors looks up and loads what the first one stores.
    """

    kind: str
    folder: str
    queue: str
    page_bytes: int
    keys: int
    calls: int
    direct: bool
    seed: int
    written: int
    options: Mapping[str, Any]
    scattered: bool
    wheel: str | None
    model: str = MODEL_NAME
    with_objects: bool = False
    another: bool = False


class Arm:
    """One arm of the benchmark.

    Parameters
    ----------
    asked : Asked
    log : LogTail
        For what a failing call logged.

    Raises
    ------
    HiCacheNixlError
        When it cannot be opened.
    """

    def __init__(self, asked: Asked, log: LogTail):
        self._asked, self._log = asked, log
        self._setup = Setup(
            "scoped",
            queue=asked.queue,
            page_bytes=asked.page_bytes,
            pages=asked.keys * asked.calls,
            direct=asked.direct,
            seed=asked.seed,
        )
        self._pages = CheckedPages(self._setup, Unknown(), asked.scattered)
        self._thread = ThreadPoolExecutor(1, "calls")
        try:
            self._store = self._opened()
        except BaseException:
            self._thread.shutdown()
            raise

    def _opened(self) -> Timed:
        if self._asked.with_objects:
            releases.load_nixl_with_objects()
        kind = self._asked.kind
        if kind == "ceiling":
            path = os.path.join(self._asked.folder, CEILING_FILE)
            return Ceiling(self._pages.pool, path, self._asked.written, self._asked.direct)
        if kind == "ours":
            another = self._registered(self._connector()) if self._asked.another else None
            return NixlStore(self._registered(self._connector()), another)
        return self._of_sglang(kind)

    def _of_sglang(self, kind: str) -> Timed:
        assert self._asked.wheel is not None
        backend, storage_config = LOADED[kind](self._asked.wheel)
        setup = dataclasses.replace(self._setup, connector=f"{releases.PREFIX}0.5.23")
        config = storage_config(**vars(self._config(setup)))
        if kind == "file":
            return FileBackend(backend(config, self._asked.folder), self._pages.pool)
        folder = (self._asked.folder,) if kind == "nixl" else ()
        try:
            return NixlStore(self._registered(backend(config, *folder)))
        except Exception as error:
            told = "; ".join([f"{type(error).__name__}: {error}", *self._log.take()])
            raise HiCacheNixlError(f"it could not be created: {told}") from error

    def _config(self, setup: Setup) -> HiCacheStorageConfig:
        config = setup.storage_config()
        extra = {**(config.extra_config or {}), **self._asked.options}
        return dataclasses.replace(config, extra_config=extra, model_name=self._asked.model)

    def _connector(self) -> HiCacheNixl:
        return HiCacheNixl(self._config(self._setup), self._asked.folder)

    def _registered(self, connector: Any) -> Any:
        connector.register_mem_pool_host(self._pages.pool)
        return connector

    def turn(self, calls: int, operations: Sequence[str] = OPERATIONS) -> list[dict[str, Any]]:
        """Store a prefix of new pages, look it up, and load it, as SGLang's controller does; a row for each call.

        Each row has the ``seconds`` of a call and the ``core_seconds`` of all threads of this process.  All that is not timed, such as filling the host pages and comparing them, comes before or after all calls
        of an operation.

        Raises
        ------
        HiCacheNixlError
            When a page was not stored, found, or loaded bit for bit.
        """
        makes = {"set": self._set, "exists": self._exists, "get": self._get}
        if self._asked.kind == "ceiling":  # a file has no lookup
            del makes["exists"]
        return [row for name, make in makes.items() if name in operations for row in make(calls)]

    def _set(self, calls: int) -> list[dict[str, Any]]:
        whole = self._pages.to_set(calls * self._asked.keys)
        parts = whole.parts(self._asked.keys)
        times, answers = self._timed([self._store.setting(part) for part in parts])
        stored = [good for results in answers for good in results]
        self._pages.was_set(whole, stored)
        return self._rows("set", times, sum(stored))

    def _exists(self, calls: int) -> list[dict[str, Any]]:
        keys, n = self._pages.latest_keys(calls * self._asked.keys), self._asked.keys
        parts = [keys[first : first + n] for first in range(0, len(keys), n)]
        times, found = self._timed([self._store.asking(part) for part in parts])
        return self._rows("exists", times, sum(found))

    def _get(self, calls: int) -> list[dict[str, Any]]:
        whole = self._pages.to_get(calls * self._asked.keys)
        parts = whole.parts(self._asked.keys)
        times, answers = self._timed([self._store.getting(part) for part in parts])
        good, wrong = self._pages.was_get(whole, [loaded for results in answers for loaded in results])
        return self._rows("get", times, good - len(wrong))

    def _rows(self, operation: str, times: Sequence[dict[str, float]], right: int) -> list[dict[str, Any]]:
        pages = len(times) * self._asked.keys
        if right != pages:
            told = "; ".join(self._log.take()) or "nothing was logged"
            raise HiCacheNixlError(f"{operation} of {pages} pages: {right} are right; {told}")
        moved = 0 if operation == "exists" else self._asked.keys * self._asked.page_bytes
        return [{"operation": operation, "bytes": moved, **taken} for taken in times]

    def fill(self, calls: int) -> None:
        """Make sets that are not timed."""
        for _ in range(calls):
            self._set(1)

    def reopen(self) -> float:
        """Close our connector, open it again, and return the seconds of that."""
        self._store.close()
        start = time.perf_counter()
        connector = self._connector()
        seconds = time.perf_counter() - start
        self._store = NixlStore(self._registered(connector))
        return seconds

    def _timed(self, calls: Sequence[Callable[[], Answer]]) -> tuple[list[dict[str, float]], list[Answer]]:
        """Make calls one after another in the thread, and return the times and the answer of each."""

        def run() -> tuple[list[dict[str, float]], list[Answer]]:
            times, answers = [], []
            for call in calls:
                core, start = time.process_time(), time.perf_counter()
                answers.append(call())
                seconds = time.perf_counter() - start
                times.append({"seconds": seconds, "core_seconds": time.process_time() - core})
            return times, answers

        return self._thread.submit(run).result()

    def close(self) -> None:
        """Close the store and end the thread."""
        self._store.close()
        self._thread.shutdown()
