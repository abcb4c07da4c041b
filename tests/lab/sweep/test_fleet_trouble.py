"""Trouble between a sweep and real workers: an answer that never comes, a connection that breaks, a busy host."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client
from fleets import Cluster, cluster, points_of_workers
from processes import wait_until
from tiny_sweeps import begun

from hicache_nixl.lab.sweep import lanes as module
from hicache_nixl.lab.sweep.fleet import connecting
from hicache_nixl.lab.sweep.grid import Grid
from hicache_nixl.lab.sweep.lanes import BUSY, Answer, Job, Lanes
from hicache_nixl.lab.sweep.remote import RESOURCE
from hicache_nixl.lab.sweep.sweep import Step, facts_of_fleet, resume


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as made:
        made.add("host-a")
        made.add("host-b")
        made.wait()
        yield made


def refused(host: str | None = None) -> Job:
    """Return a point that takes no kernel, as its process refuses it."""
    request = {"action": "run", "notebooks": {}, "profile": "none", "parameters": {}, "slug": "1"}
    return Job("1", request, host, exclusive=True)


@pytest.mark.timeout(120)
def test_a_worker_that_dies_between_its_end_and_its_answer_has_its_point_run_elsewhere(two, monkeypatch):
    monkeypatch.setattr(module, "FETCH", 2.0)
    take = Lanes._take

    def kill_and_take(lanes: Lanes, key: str) -> Answer | None:
        if two.workers["host-a"].poll() is None:
            two.kill("host-a")
        return take(lanes, key)

    monkeypatch.setattr(Lanes, "_take", kill_and_take)
    with connecting(two.address) as fleet:
        (answer,) = Lanes(fleet, [refused()]).answers()
    assert (answer.told["state"], answer.host, answer.job.deaths) == ("refused", "host-b", ["host-a"])


@pytest.mark.timeout(120)
def test_a_connection_that_breaks_and_comes_back_is_the_death_of_no_worker(two):
    broken: list[dict[str, str]] = []

    def break_off(running: dict[str, str]) -> None:
        if running and not broken:
            wait_until(lambda: points_of_workers(two.workers["host-a"].pid))
            broken.append(running)
            comm = fleet.client.scheduler_comm.comm
            fleet.client.loop.add_callback(comm.abort)

    with connecting(two.address) as fleet:
        (answer,) = Lanes(fleet, [refused("host-a")], break_off).answers()
    assert broken
    assert (answer.told["state"], answer.host, answer.job.deaths) == ("refused", "host-a", [])


def test_workers_that_a_look_of_the_client_itself_leaves_out_are_not_gone(two):
    with connecting(two.address) as fleet:
        before = fleet.hosts()

        def look(**how: object) -> dict[str, object]:
            return {"n_workers": 2, "workers": {}}

        fleet.client.scheduler_info = look
        fleet._looked = 0.0
        assert fleet.hosts() == before


class TestBusy:
    """Another client has a task on host-a that asks for the whole machine."""

    @pytest.fixture
    def busy(self, two: Cluster) -> Iterator[Cluster]:
        with connecting(two.address) as fleet:
            shares = fleet.hosts()["host-a"].shares
            (address,) = fleet.hosts()["host-a"].workers
        with Client(two.address, set_as_default=False) as other:
            future = other.submit(time.sleep, 60, workers=[address], resources={RESOURCE: shares}, pure=False)
            wait_until(lambda: any(future.key in keys for keys in other.processing().values()))
            yield two
            future.cancel()
            two.kill("host-a")  # its thread sleeps on

    def test_a_point_that_waits_there_says_so_and_ctrl_c_does_not_wait_for_it(self, tiny, busy, tmp_path):
        started = begun(tmp_path / "s", Grid(notebooks=("04",)), ["04_waits"], ["host-a"])
        interrupted: list[float] = []

        def interrupt(step: Step) -> None:
            if not interrupted and f"host-a{BUSY}" in step.running.values():
                interrupted.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)

        result = resume(str(started.folder), scheduler=busy.address, watch=interrupt)
        assert time.monotonic() - interrupted[0] < 15
        assert [point.state for point in result.sweep.points.values()] == ["missing"]

    def test_the_doctor_says_which_host_it_waits_for(self, busy):
        told: list[str] = []

        def tell(line: str) -> None:
            told.append(line)
            if line == f"1 of 2 hosts, host-a{BUSY}":
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            facts_of_fleet(busy.address, None, tell)
