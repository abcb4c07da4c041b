"""A lane for each host: one measurement at a time on it, or several points that only count."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from . import remote
from .child import INTERRUPTED
from .fleet import GONE, Fleet, FleetLostError, Host
from .remote import DIED, FAILED, PATIENCE, RESOURCE

if TYPE_CHECKING:
    from distributed import Future

MOST_DEATHS = 3  # of the workers of one point
GRACE = 30.0  # seconds that a host, or all of them, may be away before its points fail
TICK = 0.2  # seconds
FETCH = 60.0  # seconds for an answer to come from its worker; a run has some MB
DISCONNECTED = "scheduler-connection-lost"  # why Dask cancels the tasks of a client that connects again
BUSY = " (busy)"  # follows a host on which a job waits for what else runs there


@dataclass
class Job:
    """A request for a host.

    Attributes
    ----------
    slug : str
    request : dict
        What ``child`` reads.
    host : str or None
        The host that it must run on.
    exclusive : bool
        Whether nothing else of a sweep may run on its machine meanwhile.
    deaths : list of str
        The hosts on which its worker or its process has died.
    """

    slug: str
    request: dict[str, Any]
    host: str | None
    exclusive: bool
    deaths: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """What came of a job.

    Attributes
    ----------
    job : Job
    host : str
        Where it ran; empty where it did not.
    told : dict
        The answer of ``child``, with its ``state``.
    archive : bytes
        The folder of the run as a tar file; empty where there is none.
    """

    job: Job
    host: str
    told: dict[str, Any]
    archive: bytes = b""


@dataclass(frozen=True)
class _Running:
    job: Job
    host: Host
    future: Future


class Lanes:
    """Gives each host its jobs, in their order.

    Parameters
    ----------
    fleet : Fleet
    jobs : sequence of Job
    started : callable, optional
        Called with what runs where when that has changed.
    """

    def __init__(
        self,
        fleet: Fleet,
        jobs: Sequence[Job],
        started: Callable[[dict[str, str]], object] = lambda running: None,
    ):
        self.fleet, self.started = fleet, started
        self.waiting = list(jobs)
        self._running: dict[str, _Running] = {}
        self._busy: set[str] = set()
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._seen: dict[str | None, float] = dict.fromkeys({job.host for job in jobs}, time.monotonic())

    def running(self) -> dict[str, str]:
        """Return where each job that runs does so; ``BUSY`` follows a host on which it waits for another sweep."""
        return {
            one.job.slug: one.host.name + BUSY * (one.host.name in self._busy)
            for one in self._running.values()
        }

    def answers(self) -> Iterator[Answer]:
        """Run the jobs; yield what came of each when it has ended.

        Raises
        ------
        FleetLostError
            When the scheduler has gone away.
        """
        told: dict[str, str] = {}
        while self.waiting or self._running:
            hosts = self.fleet.hosts()
            yield from self._lost(hosts)
            yield from self._away(hosts)
            for host in hosts.values():
                self._start(host, hosts)
            self._busy = {host.name for host in hosts.values() if host.busy}
            if (running := self.running()) != told:
                told = running
                self.started(running)
            with suppress(queue.Empty):
                answer = self._take(self._done.get(timeout=TICK))
                if answer is not None:
                    yield answer

    def end(self) -> Iterator[Answer]:
        """Ask the jobs that run to end, wait for that, and yield what came of those that had ended before.

        Those that wait on their host for another sweep are dropped.

        Raises
        ------
        FleetLostError
            When the scheduler has gone away.
        """
        self.waiting.clear()
        for key, one in list(self._running.items()):
            begun = self.fleet.run(remote.end, [key], workers=[one.host.worker], on_error="ignore")
            if key not in begun.get(one.host.worker, ()):
                self._running.pop(key).future.release()
        deadline = time.monotonic() + PATIENCE + 2 * remote.LOOKS
        while self._running and time.monotonic() < deadline:
            with suppress(queue.Empty):
                answer = self._take(self._done.get(timeout=TICK))
                if answer is not None and answer.told["state"] != INTERRUPTED:
                    yield answer
            present = {host.worker for host in self.fleet.hosts().values()}
            for key in [key for key, one in self._running.items() if one.host.worker not in present]:
                self._running.pop(key).future.release()
            self.waiting.clear()

    def _start(self, host: Host, hosts: dict[str, Host]) -> None:
        """Give a host the jobs that it has room for."""
        while (job := self._next(host, hosts)) is not None:
            mine = [one for one in self._running.values() if one.host.machine == host.machine]
            alone = job.exclusive or any(one.job.exclusive for one in mine)
            if len(mine) >= (1 if alone else host.shares):
                return
            self.waiting.remove(job)
            key = f"hicache-nixl-{job.slug}-{uuid4().hex}"
            future = self.fleet.client.submit(
                remote.work,
                {**job.request, "exclusive": job.exclusive},
                key=key,
                workers=[host.worker],
                allow_other_workers=False,
                resources={RESOURCE: host.shares if job.exclusive else 1},
                retries=0,
                pure=False,
            )
            self._running[key] = _Running(job, host, future)
            future.add_done_callback(lambda ended: self._done.put(ended.key))

    def _next(self, host: Host, hosts: dict[str, Host]) -> Job | None:
        """Return the next job for a host; one that died there goes to another host, where it may."""
        for job in self.waiting:
            elsewhere = job.host is None and host.name in job.deaths and not {*hosts} <= {*job.deaths}
            if job.host in (None, host.name) and not elsewhere:
                return job
        return None

    def _lost(self, hosts: dict[str, Host]) -> Iterator[Answer]:
        """Take back the jobs of workers that are gone."""
        present = {address for host in hosts.values() for address in host.workers}
        for key in [key for key, one in self._running.items() if one.host.worker not in present]:
            one = self._running.pop(key)
            one.future.release()
            answer = self._again(one, "its worker died")
            if answer is not None:
                yield answer

    def _away(self, hosts: dict[str, Host]) -> Iterator[Answer]:
        """Give up jobs whose host has been away for too long."""
        now = time.monotonic()
        self._seen |= dict.fromkeys([*hosts, *([None] if hosts else [])], now)
        for job in list(self.waiting):
            if now - self._seen[job.host] > GRACE:
                self.waiting.remove(job)
                who = f"host {job.host}" if job.host else "every host"
                died = f" {_times(job.deaths)}" if job.deaths else ""
                yield Answer(job, "", {"state": FAILED, "reason": f"{who} has left the cluster{died}"})

    def _take(self, key: str) -> Answer | None:
        """Return what came of a task that has ended; None where it runs again."""
        one = self._running.pop(key, None)
        if one is None:
            return None  # of a worker that was gone before
        if one.future.status == "error":
            return self._raised(one, one.future.exception())
        try:
            line, _, archive = one.future.result(timeout=FETCH).partition(b"\n")
        except CancelledError as error:
            if getattr(error, "reason", "") == DISCONNECTED:  # nobody died
                self.waiting.insert(0, one.job)
                return None
            return self._again(one, "its worker died")
        except TimeoutError:  # Dask waits for ever for the answer of a worker that is gone
            one.future.release()
            return self._again(one, "its worker died before it had sent its answer")
        except (OSError, AttributeError) as error:  # the latter of a closed client
            raise FleetLostError(GONE) from error
        told = json.loads(line)
        if told["state"] == DIED:
            return self._again(one, told["reason"])
        return Answer(one.job, one.host.name, told, archive)

    def _raised(self, one: _Running, error: BaseException | None) -> Answer | None:
        """Return what an error in a worker is, or that of Dask for a task whose workers died often."""
        if type(error).__name__ == "KilledWorker":
            return self._again(one, "its worker died")
        told = {"state": FAILED, "reason": f"{type(error).__name__}: {error}"}
        return Answer(one.job, one.host.name, told)

    def _again(self, one: _Running, reason: str) -> Answer | None:
        """Let a job whose worker died run again, unless it has died often."""
        one.job.deaths.append(one.host.name)
        if len(one.job.deaths) < MOST_DEATHS:
            self.waiting.insert(0, one.job)
            return None
        told = {"state": FAILED, "reason": f"{reason} {_times(one.job.deaths)}"}
        return Answer(one.job, one.host.name, told)


def _times(deaths: Sequence[str]) -> str:
    """Say how often a worker has died, and where.

    Examples
    --------
    >>> _times(["node7", "node7", "node8"])
    '(3 deaths: node7, node8)'
    """
    count = len(deaths)
    return f"({count} death{'s' * (count > 1)}: {', '.join(dict.fromkeys(deaths))})"
