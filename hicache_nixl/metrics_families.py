"""The metrics in the registry of ``prometheus_client``: one set for all connectors of a process.

A registry refuses a second metric of the same name, so connectors share them; the last one that ends unregisters them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ConfigError

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ConfigError(
        f"metrics: it needs prometheus-client ({error}): pip install prometheus-client"
    ) from None

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
LABELS = ("lifetime", "model_name", "tp_rank")
BUCKETS = [base * 10.0**power for power in range(-5, 1) for base in (1, 3)]  # seconds: 10 us to 3 s


class Family:
    """The names of the metrics, without ``hicache_nixl_``."""

    PAGES, BYTES = "pages", "bytes"
    HITS, MISSES, FAILURES = "hits", "misses", "failures"
    SECONDS = "seconds"
    OPEN_FDS, REGISTRATIONS = "open_fds", "registrations"
    STORE_BYTES, CAPACITY = "store_bytes", "store_capacity_bytes"


COUNTERS = {  # name: help, and labels beside LABELS
    Family.PAGES: ("Pages stored and loaded.", ("operation",)),
    Family.BYTES: ("Bytes of the pages stored and loaded.", ("operation",)),
    Family.HITS: ("Pages that a get loaded, and leading pages that exists found.", ("operation",)),
    Family.MISSES: ("Pages that are not stored; of exists, all after the first missing one.", ("operation",)),
    Family.FAILURES: ("Pages that could not be stored, loaded or looked up.", ("operation", "reason")),
}
# With several processes (PROMETHEUS_MULTIPROC_DIR) the values of those that live are added up, except where they
# share a store.
TIMES = "Seconds of a call, by the name of the method."
GAUGES: dict[str, tuple[str, Any]] = {  # name: help, and how the values of processes become one
    Family.OPEN_FDS: ("Open descriptors of the storage folder and the files in it.", "livesum"),
    Family.REGISTRATIONS: ("Regions that are registered with NIXL.", "livesum"),
    Family.STORE_BYTES: ("pooled: bytes of the store that are in use, by pages or not yet freed.", "livemax"),
    Family.CAPACITY: ("pooled: bytes that the store may have.", "livemax"),
}

Families = Mapping[str, Any]


def table() -> Iterator[str]:
    """Yield the lines of the table in ``docs/metrics.md``."""
    yield "| metric | labels | meaning |"
    yield "| --- | --- | --- |"
    for name, (text, labels) in COUNTERS.items():
        yield f"| `hicache_nixl_{name}_total` | {', '.join(labels)} | {text} |"
    yield f"| `hicache_nixl_{Family.SECONDS}`, a histogram | operation | {TIMES} |"
    for name, (text, _) in GAUGES.items():
        yield f"| `hicache_nixl_{name}` | | {text} |"


class Look(Collector):
    """Has the gauges of all connectors renewed before a registry reads them; has no metrics itself."""

    def describe(self) -> list[Any]:
        """Return nothing, which keeps the registry from asking when it is registered."""
        return []

    def collect(self) -> Iterator[Any]:
        """Renew."""
        for user in list(_users):
            user.refresh()
        return iter(())


_lock = threading.Lock()
_users: list[Any] = []
_families: dict[str, Any] = {}
_LOOK = Look()


def acquire(user: Any) -> Families:
    """Return the metrics, registered, until the user is released; see ``Metrics.folder`` and ``refresh``."""
    with _lock:
        if not _families:
            _register()
        _users.append(user)
        return dict(_families)


def _register() -> None:
    try:
        REGISTRY.register(_LOOK)
        for name, (text, labels) in COUNTERS.items():
            _families[name] = Counter(f"hicache_nixl_{name}", text, (*LABELS, *labels))
        _families[Family.SECONDS] = Histogram(
            f"hicache_nixl_{Family.SECONDS}", TIMES, (*LABELS, "operation"), buckets=BUCKETS
        )
        for name, (text, mode) in GAUGES.items():
            _families[name] = Gauge(f"hicache_nixl_{name}", text, LABELS, multiprocess_mode=mode)
    except (OSError, ValueError) as error:
        _unregister()
        raise ConfigError(f"metrics: prometheus_client cannot count: {error}") from error


def _unregister() -> None:
    REGISTRY.unregister(_LOOK)
    while _families:
        REGISTRY.unregister(_families.popitem()[1])


def release(user: Any) -> None:
    """End what ``acquire`` began."""
    with _lock:
        _users.remove(user)
        if not _users:
            _unregister()


def counts_folder(user: Any) -> bool:
    """Return whether a user is the first of those with its ``folder``, whose descriptors are counted once."""
    return next((other for other in list(_users) if other.folder == user.folder), None) is user


class Served:
    """The metrics over HTTP, on this machine only, until ``close``.

    Parameters
    ----------
    port : int
        0 for a free one; the log says which.

    Raises
    ------
    ConfigError
        When the port cannot be listened on.
    """

    def __init__(self, port: int, families: Families):
        registry = CollectorRegistry(auto_describe=False)
        for collector in (_LOOK, *families.values()):
            registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, HOST, registry)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"metrics_port: {HOST}:{port}: {reason}; expected a free port, or 0 for any"
            ) from None
        self.port = int(self._server.server_port)
        logger.info("metrics at http://%s:%d/metrics", HOST, self.port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
