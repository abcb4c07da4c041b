"""The hosts of a sweep: workers of a Dask cluster, or this machine."""

from __future__ import annotations

import logging
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...errors import ConfigError, HiCacheNixlError
from . import remote
from .remote import RESOURCE

if TYPE_CHECKING:
    from distributed import Client

CONNECT = 10.0  # seconds
OTHERS = 1.0  # seconds between two looks at which workers there are
SHARES = 2  # points of counts that share this machine
GONE = "the scheduler does not answer any more"
START = "start it with `dask scheduler`, and `dask worker ADDRESS` on each host"
# Without routes, and reachable from this machine only: Dask serves pages about a cluster otherwise.
QUIET = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.admin.system-monitor.gil.enabled": False,
}


class FleetLostError(HiCacheNixlError, ConnectionError):
    """The scheduler has gone away."""


@dataclass(frozen=True)
class Host:
    """A machine of the fleet.

    Attributes
    ----------
    name : str
    machine : str
        What tells it from others.
    workers : dict
        Its workers: the names by address.
    worker : str
        The address of the one that runs points.
    shares : int
        How many points that only count it runs at a time.
    busy : bool
        Whether something waits there for another task to end, as of the last message of its worker.
    """

    name: str
    machine: str
    workers: dict[str, str]
    worker: str
    shares: int
    busy: bool = False

    def answers_to(self, name: str) -> bool:
        """Return whether a name of ``--host`` means this host."""
        return name == self.name or name in self.workers.values() or name in self.workers


class Fleet:
    """The hosts of a Dask cluster, as they come and go.

    Parameters
    ----------
    client : distributed.Client
    only : sequence of str
        The names of the hosts that may be used; all of them when empty.
    """

    def __init__(self, client: Client, only: Sequence[str] = ()):
        self.client = client
        self.only = tuple(only)
        self._identities: dict[str, dict[str, str]] = {}
        self._looked = 0.0
        self._workers: dict[str, Any] = {}
        self._hosts: dict[str, Host] = {}

    def hosts(self) -> dict[str, Host]:
        """Return the hosts by name, which are looked for again after a second.

        Raises
        ------
        FleetLostError
        """
        if self.client.status in ("closing", "closed"):  # it could not connect again
            raise FleetLostError(GONE)
        if time.monotonic() - self._looked > OTHERS:
            self._hosts = self._look()
            self._looked = time.monotonic()
        return self._hosts

    def versions(self) -> dict[str, str | None]:
        """Return the version of this package in each worker, by a name for it; None where there is none."""
        workers = self.workers()
        known: Any = self.client.get_versions(
            packages=["hicache_nixl"]
        )  # a coroutine only of asynchronous clients
        return {
            str(workers.get(address, {}).get("name", address)): about["packages"].get("hicache_nixl")
            for address, about in known["workers"].items()
            if about
        }

    def workers(self) -> dict[str, Any]:
        """Return what the scheduler knows of each worker, by address."""
        try:
            known = self.client.scheduler_info(n_workers=-1)
            workers = dict(known["workers"])
        except (OSError, ValueError, AttributeError, KeyError) as error:  # a closed client knows nothing
            raise FleetLostError(GONE) from error
        # The client itself asks for their number only; that may come between, and stays while it connects again.
        if len(workers) == known.get("n_workers", len(workers)):
            self._workers = workers
        return self._workers

    def run(self, function: Callable[..., Any], *arguments: Any, **how: Any) -> Any:
        """Call a function in workers, as ``Client.run`` does.

        Raises
        ------
        FleetLostError
        """
        try:
            return self.client.run(function, *arguments, **how)
        except (OSError, AttributeError) as error:  # the latter of a closed client
            raise FleetLostError(GONE) from error

    def _look(self) -> dict[str, Host]:
        workers = {
            address: about for address, about in self.workers().items() if about["status"] == "running"
        }
        new = [address for address in workers if address not in self._identities]
        if new:
            answers = self.run(remote.identity, workers=new, on_error="return")
            self._identities |= {address: one for address, one in answers.items() if isinstance(one, dict)}
        groups: dict[str, dict[str, Any]] = {}
        for address in sorted(workers):
            told = self._identities.get(address)
            if told is not None and told["version"] == __version__:  # others may have joined later
                groups.setdefault(told["machine"], {})[address] = workers[address]
        hosts = [self._host(machine, some, groups) for machine, some in groups.items()]
        hosts.sort(key=lambda host: _by_number(host.name))
        for host in hosts:
            if host.worker and RESOURCE not in workers[host.worker]["resources"]:
                self.run(remote.offer, host.shares, workers=[host.worker], on_error="ignore")
        return {host.name: host for host in hosts if not self.only or any(map(host.answers_to, self.only))}

    def _host(self, machine: str, workers: dict[str, Any], groups: dict[str, dict[str, Any]]) -> Host:
        """Make a host; the name of a machine that several have is followed by an address."""
        first = next(iter(workers))
        name = self._identities[first]["host"]
        alike = [
            other for other, some in groups.items() if self._identities[next(iter(some))]["host"] == name
        ]
        if len(alike) > 1:
            name = f"{name}-{workers[first]['host']}"
        offering = [address for address, about in workers.items() if RESOURCE in about["resources"]]
        worker = (offering or [first])[0]
        shares = int(workers[worker]["resources"].get(RESOURCE, workers[worker]["nthreads"]))
        names = {address: str(about["name"]) for address, about in workers.items()}
        busy = workers[worker]["metrics"].get("task_counts", {}).get("constrained", 0) > 0
        return Host(name, machine, names, worker, shares, busy)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return what sorts node2 before node10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


@contextmanager
def connecting(scheduler: str | None, only: Sequence[str] = ()) -> Iterator[Fleet]:
    """Connect to a cluster, or make one of this machine alone, which ends with the context.

    Parameters
    ----------
    scheduler : str or None
        The address of a scheduler, such as ``tcp://10.0.0.1:8786``.

    Raises
    ------
    ConfigError
        Without Dask, and when the scheduler cannot be reached, has no workers, or lacks a host of ``only``.
    """
    _require_dask()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask's versions that differ are among the facts of the hosts
        with _local_client() if scheduler is None else _remote_client(scheduler) as client:
            fleet = Fleet(client, only)
            _check(fleet, scheduler)
            yield fleet


def _require_dask() -> None:
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise ConfigError("Dask is not installed: pip install 'hicache-nixl[sweep]'") from None


@contextmanager
def _local_client() -> Iterator[Client]:
    """Make a cluster within this process: points have processes of their own, and nothing listens for others."""
    import dask
    from distributed import Client, LocalCluster

    with (
        tempfile.TemporaryDirectory(prefix="hicache-nixl-") as folder,
        dask.config.set(QUIET),
        LocalCluster(
            n_workers=1,
            threads_per_worker=SHARES,
            processes=False,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            local_directory=folder,
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _remote_client(scheduler: str) -> Iterator[Client]:
    from distributed import Client

    with _quiet():
        try:
            client = Client(scheduler, timeout=CONNECT, set_as_default=False)
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # also TimeoutError; ValueError for a malformed address
            what = f"{error}; expected one such as tcp://10.0.0.1:8786"
            if isinstance(error, OSError):
                what = f"it cannot be reached within {CONNECT:.0f} s; {START}"
            raise ConfigError(f"--scheduler {scheduler}: {what}") from None
        with client:
            yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask from logging what the errors of this package tell."""
    known = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    levels = {log: log.level for log in map(logging.getLogger, known)}  # Dask sets that of each
    for log in levels:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)


def _check(fleet: Fleet, scheduler: str | None) -> None:
    """Refuse a fleet without workers or with another version of this package, and hosts that it does not have."""
    versions = fleet.versions()
    if not versions:
        raise ConfigError(f"--scheduler {scheduler}: it has no workers; {START}")
    others = {name: version or "none" for name, version in versions.items() if version != __version__}
    if others:
        listed = ", ".join(f"{name} has {version}" for name, version in sorted(others.items()))
        raise ConfigError(f"hosts need hicache-nixl {__version__}, as it is here; {listed}")
    hosts = Fleet(fleet.client).hosts()
    if not hosts:
        raise ConfigError(f"--scheduler {scheduler}: none of its workers answers; {START}")
    for name in fleet.only:
        if not any(host.answers_to(name) for host in hosts.values()):
            known = [f"{host.name} ({', '.join(host.workers.values())})" for host in hosts.values()]
            raise ConfigError(f"host {name!r} is unknown; expected one of {', '.join(known)}")
