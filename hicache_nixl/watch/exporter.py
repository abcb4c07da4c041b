"""The latest state of a watch for Prometheus, over HTTP."""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..errors import ConfigError
from .group import Group, Member
from .verdict import STATES

HOST = "127.0.0.1"
METRICS = {  # name: its help and its labels
    "hicache_watch_open_fds": ("Open descriptors.", ("pid", "kind")),
    "hicache_watch_fd_limit": ("Soft RLIMIT_NOFILE of the process; +Inf if unlimited.", ("pid",)),
    "hicache_watch_growth_per_minute": ("Current growth of what stays open.", ("pid", "kind")),
    "hicache_watch_growth_per_minute_low": ("Lower end of its 95 % interval.", ("pid", "kind")),
    "hicache_watch_growth_per_minute_high": ("Upper end of its 95 % interval.", ("pid", "kind")),
    "hicache_watch_leaking": ("1 for a kind of descriptor that leaks, else 0.", ("pid", "kind")),
    "hicache_watch_verdict": ("1 for the verdict that holds, else 0.", ("pid", "verdict")),
    "hicache_watch_seconds_to_limit": ("Time until the limit; only while the process leaks.", ("pid",)),
}


class Exporter(Collector):
    """Serves what a group of processes was last seen to do.

    A request is answered with the values after the latest sample: taking samples never waits for it.
    """

    def __init__(self) -> None:
        self._families: list[GaugeMetricFamily] = []

    def update(self, group: Group) -> None:
        """Take over the values of the processes that live."""
        families = {
            name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in METRICS.items()
        }
        for member in group.members:
            if member.seen.count and not member.ended:
                for name, labels, value in _values(member):
                    families[name].add_metric([str(member.process.pid), *labels], value)
        self._families = list(families.values())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the metrics, as the registry asks for them."""
        return iter(self._families)


def _values(member: Member) -> Iterator[tuple[str, list[str], float]]:
    seen = member.seen
    counts = seen.last.counts if seen.last else {}
    limit = seen.last.limit if seen.last else None
    yield "hicache_watch_fd_limit", [], math.inf if limit is None else limit
    for kind in seen.kinds:
        label = [kind.removesuffix("_fds")]
        yield "hicache_watch_open_fds", label, counts[kind]
        yield "hicache_watch_leaking", label, seen.grows(kind)
        if (grown := seen.growth(kind)) is not None:
            yield "hicache_watch_growth_per_minute", label, grown.median
            yield "hicache_watch_growth_per_minute_low", label, grown.low
            yield "hicache_watch_growth_per_minute_high", label, grown.high
    for state in STATES:
        yield "hicache_watch_verdict", [state], seen.state == state
    if (left := seen.seconds_left()) is not None:
        yield "hicache_watch_seconds_to_limit", [], left.median


@contextmanager
def serving(address: str) -> Iterator[Exporter]:
    """Serve ``/metrics`` as long as the block lasts.

    Parameters
    ----------
    address : str
        ``PORT``, on this machine only, or ``HOST:PORT``.

    Raises
    ------
    ConfigError
        When the address is none, or cannot be listened on.
    """
    host, port = _parsed(address)
    exporter, registry = Exporter(), CollectorRegistry(auto_describe=False)
    registry.register(exporter)
    try:
        server, thread = start_http_server(port, host, registry)
    except socket.gaierror as error:
        raise ConfigError(
            f"--prometheus {address}: the host {host} is unknown ({error.strerror}); expected an address of this machine"
        ) from None
    except OSError as error:
        expected = "an address of this machine" if error.errno == errno.EADDRNOTAVAIL else "a free port"
        raise ConfigError(f"--prometheus {address}: {error.strerror or error}; expected {expected}") from None
    try:
        yield exporter
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(f"--prometheus {address}: expected PORT or HOST:PORT, with a port of 1 to 65535")
    return host.strip("[]") or HOST, int(port)
