"""What a connector has done, for Prometheus and for SGLang; the option ``metrics`` of the extra config.

Without it this module is not imported.  The metrics are in the default registry of ``prometheus_client``, like those of
SGLang, and work in its multiprocess mode: ``/metrics`` of a server shows those of all ranks.  Connectors of one process
share them, so they are unregistered when the last one is closed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .calls import Calls, is_list
from .config import HiCacheStorageConfig, NixlBackendConfig
from .contract import PoolName
from .errors import HiCacheNixlError, MissingError
from .host.addresses import Addresses
from .interrupts import deferred
from .lifetimes.outcome import Outcome
from .metrics_families import Family, Served, acquire, counts_folder, release
from .transport.registration import Buffer, buffer_sizes

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

INTERVAL, COST = 1.0, 100  # seconds between two looks at what is open, or so many times as long as one takes
MOST_STATS = 1 << 12  # transfers that SGLang has not asked for yet
SGLANG = "sglang.srt.observability.metrics_collector"
MOVES = {"WRITE": "set", "READ": "get"}


@dataclass
class StorageMetrics:
    """The transfers since the last look, field for field as in SGLang.

    Attributes
    ----------
    prefetch_pgs, backup_pgs : list of int
        Pages of each get and set.
    prefetch_bandwidth, backup_bandwidth : list of float
        Their GiB per second.
    """

    prefetch_pgs: list[int] = field(default_factory=list)
    backup_pgs: list[int] = field(default_factory=list)
    prefetch_bandwidth: list[float] = field(default_factory=list)
    backup_bandwidth: list[float] = field(default_factory=list)


class Registrations:
    """Counts the regions that are registered with the agents of a connector."""

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._held: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()  # by agent

    def watch(self, agent: Any) -> None:
        """Count the calls of an agent from now on; what it has registered ends with it."""
        kind, ref = type(agent), weakref.ref(agent)  # no cycle, which would keep the agent alive
        held = self._held[agent] = [0]

        def add(count: int) -> None:
            with self._counting:
                held[0] += count

        def register(*args: Any, **options: Any) -> Any:
            regions = kind.register_memory(ref(), *args, **options)
            add(regions.descCount())
            return regions

        def deregister(regions: Any, *args: Any, **options: Any) -> Any:
            count = regions.descCount()
            answer = kind.deregister_memory(ref(), regions, *args, **options)
            add(-count)
            return answer

        agent.register_memory, agent.deregister_memory = register, deregister

    @property
    def count(self) -> int:
        """How many regions are registered."""
        return sum(held[0] for held in list(self._held.values()))


class Metrics:
    """The metrics of one connector, until ``close``.

    Parameters
    ----------
    config : HiCacheStorageConfig
    backend : NixlBackendConfig
    folder : str
        The storage folder.

    Raises
    ------
    ConfigError
        When ``prometheus_client`` cannot store what it counts, or ``metrics_port`` is taken.
    """

    def __init__(self, config: HiCacheStorageConfig, backend: NixlBackendConfig, folder: str):
        self._labels = backend.lifetime, config.model_name or "", str(config.tp_rank)
        self.folder = os.path.realpath(folder)
        self._refreshing, self._next = threading.Lock(), 0.0
        self._shown: dict[str, int] = {}  # what this connector has added to gauges
        self._of_store: Sequence[str] = ()  # the gauges of a store
        self._lifetime: Callable[[], Any] = lambda: None
        self._served: Served | None = None
        self.registrations = Registrations()
        self._transfers: dict[str, deque[tuple[int, float]]] = {
            kind: deque(maxlen=MOST_STATS) for kind in MOVES.values()
        }
        self._children: dict[tuple[str, ...], Any] = {}
        self._closed = True  # until it can be looked at
        self._families = acquire(self)
        self._closed = False
        try:
            self._start_at_zero()
            if (port := backend.metrics_port) is not None:  # the ranks of a server have one extra config
                self._served = Served(port + config.tp_rank if port else 0, self._families)
        except BaseException:
            self.close()
            raise

    def _start_at_zero(self) -> None:
        for kind in MOVES.values():
            self.child(Family.PAGES, kind)
            self.child(Family.BYTES, kind)
        for kind in ("get", "exists"):
            self.child(Family.HITS, kind)
            self.child(Family.MISSES, kind)

    @property
    def port(self) -> int | None:
        """Where the metrics are served by this connector itself; None where they are not."""
        return self._served.port if self._served else None

    def child(self, family: str, *labels: str) -> Any:
        """Return a metric with labels."""
        key = (family, *labels)
        if key not in self._children:
            self._children[key] = self._families[family].labels(*self._labels, *labels)
        return self._children[key]

    # -- counting --------------------------------------------------------------------------------------

    def called(self, operation: str, seconds: float) -> None:
        """Count a call of the connector."""
        self.child(Family.SECONDS, operation.partition(" ")[0]).observe(seconds)
        if time.monotonic() > self._next:
            self.refresh()

    def moved(self, kind: str, moved: Sequence[bool], buffers: Sequence[Buffer], seconds: float) -> None:
        """Count the pages of a transfer, ``"set"`` or ``"get"``, that were moved, and their bytes."""
        if not (pages := moved.count(True)):
            return
        size = bytes_of(moved, buffers)
        self.child(Family.PAGES, kind).inc(pages)
        self.child(Family.BYTES, kind).inc(size)
        if kind == "get":
            self.child(Family.HITS, kind).inc(pages)
        self._transfers[kind].append((pages, size / seconds / (1 << 30)))

    def failed(self, operation: str, keys: Any, error: Exception) -> None:
        """Count pages that were not moved or looked up."""
        kind = kind_of(operation)
        pages = max(1, len(keys)) if is_list(keys) else 1
        if kind == "get" and is_missing(error):
            self.child(Family.MISSES, kind).inc(pages)
        else:
            self.child(Family.FAILURES, kind, reason_of(error)).inc(pages)

    def looked_up(self, asked: int, found: int) -> None:
        """Count the pages that ``batch_exists`` was asked for, and the leading ones that are there."""
        self.child(Family.HITS, "exists").inc(found)
        self.child(Family.MISSES, "exists").inc(asked - found)

    def stats(self) -> Any:
        """Return the transfers since the last call, as SGLang's own class where that is loaded."""
        if time.monotonic() > self._next:
            self.refresh()
        stats = getattr(sys.modules.get(SGLANG), "StorageMetrics", StorageMetrics)()
        for kind, name in (("get", "prefetch"), ("set", "backup")):
            transfers = self._transfers[kind]
            for pages, bandwidth in [transfers.popleft() for _ in range(len(transfers))]:
                getattr(stats, f"{name}_pgs").append(pages)
                getattr(stats, f"{name}_bandwidth").append(bandwidth)
        return stats

    # -- what is open ----------------------------------------------------------------------------------

    def watch(self, lifetime: Any) -> None:
        """Set the lifetime whose store is measured."""
        self._lifetime = weakref.ref(lifetime)
        self.refresh()

    def refresh(self) -> None:
        """Look at what is open, registered and stored now, unless another thread does."""
        if not self._refreshing.acquire(blocking=False):
            return
        try:
            if not self._closed:
                start = time.monotonic()
                self._show(Family.OPEN_FDS, descriptors_below(self.folder) if counts_folder(self) else 0)
                self._show(Family.REGISTRATIONS, self.registrations.count)
                self._show_store()
                now = time.monotonic()
                self._next = now + max(INTERVAL, COST * (now - start))
        finally:
            self._refreshing.release()

    def _show(self, family: str, value: int) -> None:
        """Change a gauge by what changed here: other connectors of this process may share it."""
        self.child(family).inc(value - self._shown.get(family, 0))
        self._shown[family] = value

    def _show_store(self) -> None:
        size = getattr(self._lifetime(), "size", None)
        if size is not None:
            self._of_store = Family.STORE_BYTES, Family.CAPACITY
            with contextlib.suppress(HiCacheNixlError):  # it is lost; calls say so
                used, capacity = size()
                for family, value in zip(self._of_store, (used, capacity), strict=True):
                    self.child(family).set(value)

    def close(self) -> None:
        """Stop serving, and unregister the metrics unless another connector uses them.  May be called twice."""
        with self._refreshing:
            if self._closed:
                return
            self._closed = True
            for family in list(self._shown):
                self._show(family, 0)
            for family in self._of_store:
                self.child(family).set(0)
        if self._served:
            self._served.close()
        release(self)


class MeasuredCalls(Calls):
    """Calls that are counted; parameters and errors as in ``Metrics``."""

    def __init__(self, config: HiCacheStorageConfig, backend: NixlBackendConfig, folder: str):
        super().__init__()
        self.metrics = Metrics(config, backend, folder)
        self._told = False
        backend.agent_made = self.metrics.registrations.watch

    def watch(self, lifetime: Any) -> None:
        """Measure the store of a lifetime, too."""
        self.metrics.watch(lifetime)

    def stats(self) -> Any:
        """Return the transfers since the last call."""
        return self.metrics.stats()

    def _guarded(
        self, operation: str, keys: Sequence[Any], failure: Answer, action: Callable[..., Answer], *args: Any
    ) -> Answer:
        asks = kind_of(operation) == "exists" and is_list(keys)
        start = time.perf_counter()
        try:
            return super()._guarded(
                operation, keys, failure, self._asking(len(keys), action) if asks else action, *args
            )
        finally:
            self._note(self.metrics.called, operation, time.perf_counter() - start)

    def _asking(self, asked: int, action: Callable[..., Answer]) -> Callable[..., Answer]:
        def counted(*args: Any) -> Answer:
            answer = action(*args)
            # of several pools those of keys and values count
            found = getattr(answer, "extra_pool_hit_pages", {PoolName.KV: answer}).get(PoolName.KV, 0)
            self._note(self.metrics.looked_up, asked, found)
            return answer

        return counted

    def moved(
        self, operation: str, keys: Sequence[str], action: Callable[..., Sequence[Outcome]], *args: Any
    ) -> list[bool]:
        """Run a part of a call that moves pages; the last of ``args`` are their buffers, see ``Calls``."""
        start = time.perf_counter()
        moved = super().moved(operation, keys, action, *args)
        seconds = time.perf_counter() - start
        self._note(self.metrics.moved, kind_of(operation), moved, args[-1], seconds)
        return moved

    def _failed(self, operation: str, keys: Any, error: Exception) -> None:
        super()._failed(operation, keys, error)
        self._note(self.metrics.failed, operation, keys, error)

    def _note(self, count: Callable[..., None], *args: Any) -> None:
        """Count; a call does not fail where that is not possible, such as on a full disk (multiprocess mode)."""
        try:
            count(*args)
        except Exception as error:
            if not self._told:
                self._told = True
                logger.error("metrics are not complete from now on", exc_info=error)

    def close(self) -> None:
        """Wait for calls, see ``Calls``, and end the metrics."""
        super().close()
        deferred(self.metrics.close)


def kind_of(operation: str) -> str:
    """Return the kind of a call of the connector, or of a transfer: set, get, exists, or its own name.

    Examples
    --------
    >>> [kind_of(name) for name in ("batch_set_v2 (pool swa)", "READ (pool swa)", "batch_exists", "clear")]
    ['set', 'get', 'exists', 'clear']
    """
    words = operation.partition(" ")[0].split("_")
    return MOVES.get(words[0]) or next((kind for kind in ("set", "get", "exists") if kind in words), words[0])


def is_missing(error: Exception) -> bool:
    """Return whether a page failed because it is not stored, which is no failure of a get."""
    return isinstance(error, MissingError) or getattr(error, "errno", None) == errno.ENOENT


def reason_of(error: Exception) -> str:
    """Return the name of an error number, or else the class of an error.

    Examples
    --------
    >>> reason_of(OSError(errno.ENOSPC, "full")), reason_of(MissingError("page"))
    ('ENOSPC', 'MissingError')
    """
    return errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)


def bytes_of(moved: Sequence[bool], buffers: Sequence[Buffer]) -> int:
    """Return the bytes of the pages that were moved; each page has the same number of buffers."""
    if isinstance(buffers, Addresses) and buffers.alike:
        return moved.count(True) * int(buffers.sizes.sum())
    sizes = buffer_sizes(buffers)
    pieces = len(sizes) // len(moved)
    return sum(size for place, size in enumerate(sizes) if moved[place // pieces])


def descriptors_below(folder: str) -> int:
    """Return how many descriptors of this process are of a folder, or of a file below it."""
    return sum(target == folder or target.startswith(f"{folder}/") for target in _targets())


def _targets() -> Iterable[str]:
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed since
            yield os.readlink(f"/proc/self/fd/{fd}")
