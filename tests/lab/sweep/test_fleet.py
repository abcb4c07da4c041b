"""A sweep over three real worker processes that count as three hosts, one healthy and two with something missing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from distributed.comm import CommClosedError
from fleets import Cluster, cluster, points_of_workers, refuse_io_uring
from processes import have_ended, wait_until
from tiny_sweeps import TinyNotebooks, begun

from hicache_nixl import __version__
from hicache_nixl.errors import ConfigError
from hicache_nixl.lab import plan
from hicache_nixl.lab.sweep import sweep as sweeps
from hicache_nixl.lab.sweep.facts import differences
from hicache_nixl.lab.sweep.fleet import Fleet, FleetLostError, connecting
from hicache_nixl.lab.sweep.grid import Grid
from hicache_nixl.lab.sweep.record import read_sweep
from hicache_nixl.lab.sweep.sweep import Result, Step, resume, sweep

HOSTS = ["host-a", "host-b", "host-c"]
FEW = 300  # descriptors
OTHER_NIXL = "1.4.9"


def other_version(folder: Path, package: str, version: str) -> str:
    """Return a folder of modules in which a package has another version."""
    about = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return str(folder)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """host-a has another version of NIXL, host-b few descriptors, host-c no io_uring."""
    folder = tmp_path_factory.mktemp("fleet")
    paths = other_version(folder / "other", "nixl", OTHER_NIXL)
    with cluster(folder) as made:
        known = os.pathsep.join([paths, made.environment["PYTHONPATH"]])
        made.add("host-a", PYTHONPATH=known)
        made.add("host-b", prefix=("prlimit", f"--nofile={FEW}:{FEW}"))
        made.add("host-c", before=refuse_io_uring)
        made.wait()
        yield made


@pytest.fixture(scope="module")
def ran(tiny: TinyNotebooks, fleet: Cluster) -> Result:
    """A notebook that moves pages with io_uring, on every host."""
    grid = Grid(notebooks=("03",), parameters={"queue": ("io_uring",)})
    return sweep(grid, scheduler=fleet.address, run="fleet")


class TestThreeHosts:
    def test_each_point_runs_on_every_host(self, ran):
        assert [point.host for point in ran.sweep.points.values()] == HOSTS

    def test_the_point_without_io_uring_has_failed_with_the_reason_and_the_others_go_on(self, ran):
        healthy, few, refused = ran.sweep.points.values()
        assert (healthy.state, few.state, refused.state) == ("ended", "ended", "failed")
        assert "plugin POSIX cannot be created with {'use_uring': 'true'}" in refused.reason
        assert "plugin POSIX cannot be created" in ran.page.read_text()

    def test_its_host_says_so_too_and_the_limit_of_the_other_is_among_what_differs(self, ran):
        found = {one.what: one.values for one in differences(ran.sweep.hosts)[0]}
        assert found["queues that work"][1] == ("libaio, posix_aio", ["host-c"])
        assert found["open files"][1] == (f"soft {FEW}, hard {FEW}", ["host-b"])
        assert f"soft {FEW}, hard {FEW}" in ran.page.read_text()

    def test_versions_that_differ_are_told(self, ran):
        found = {one.what: one.values for one in differences(ran.sweep.hosts)[0]}
        assert found["NIXL"][1] == (OTHER_NIXL, ["host-a"])
        assert OTHER_NIXL in ran.page.read_text()

    def test_a_host_is_chosen_by_its_name_and_others_are_left_out(self, fleet):
        with connecting(fleet.address, ["host-b"]) as chosen:
            assert list(chosen.hosts()) == ["host-b"]


def test_a_sweep_that_goes_on_is_run_by_the_hosts_of_its_scheduler(tiny, fleet, ran, tmp_path):
    assert read_sweep(ran.sweep.folder).scheduler == fleet.address
    grid = Grid(notebooks=("01",), hosts=("host-a",))
    started = begun(tmp_path / "s", grid, ["01_counts"], ["host-a"], fleet.address)
    (point,) = resume(str(started.folder)).sweep.points.values()
    assert (point.state, point.host) == ("ended", "host-a")


@pytest.mark.parametrize("error", [CommClosedError("closed"), AttributeError("broadcast"), TimeoutError()])
def test_a_scheduler_that_does_not_answer_a_call_is_lost(error):
    def run(*given: object, **how: object) -> None:
        raise error

    with pytest.raises(FleetLostError, match="the scheduler does not answer any more"):
        Fleet(SimpleNamespace(run=run)).run(os.getpid)


def test_a_limit_that_is_too_low_for_a_notebook_is_the_reason_there_and_is_not_asked_of_this_machine(
    tiny, fleet, monkeypatch, tmp_path
):
    monkeypatch.setattr(sweeps, "notebooks", plan.notebooks)
    grid = Grid(notebooks=("01",), parameters={"nofile_limit": (1024,)}, hosts=("host-b",))
    started = begun(tmp_path / "s", grid, ["01_reproduce_the_leak"], ["host-b"])
    (point,) = resume(str(started.folder), scheduler=fleet.address).sweep.points.values()
    assert point.state == "failed"
    assert point.reason.endswith(f"1024 is above the hard limit of RLIMIT_NOFILE, which is {FEW} here")


def test_a_point_whose_worker_is_killed_in_the_middle_runs_elsewhere(tiny, tmp_path):
    grid = Grid(notebooks=("02",), every_host=False)
    started = begun(tmp_path / "s", grid, ["02_measures"], HOSTS[:2])
    with cluster(tmp_path) as made:
        made.add("host-a")
        made.add("host-b")
        made.wait()
        children: list[psutil.Process] = []

        def kill(step: Step) -> None:
            if not children and "host-a" in step.running.values():
                wait_until(lambda: points_of_workers(made.workers["host-a"].pid))
                children.extend(points_of_workers(made.workers["host-a"].pid))
                made.kill("host-a")

        result = resume(str(started.folder), scheduler=made.address, watch=kill)
        (point,) = result.sweep.points.values()
        assert (point.state, point.host, point.deaths) == ("ended", "host-b", 1)
        wait_until(lambda: have_ended(children))  # the process of the point ended with its worker
    assert sorted(path.name for path in (started.folder / "points").iterdir()) == [*result.sweep.points]


def test_a_worker_with_another_version_of_this_package_is_refused_and_named(tiny, tmp_path):
    paths = other_version(tmp_path / "other", "hicache-nixl", "0.0.9")
    with cluster(tmp_path) as made:
        made.add("host-a", PYTHONPATH=paths)
        made.add("host-b", PYTHONPATH="")
        made.wait()
        expected = f"hosts need hicache-nixl {__version__}, as it is here; host-a has 0.0.9"
        with pytest.raises(ConfigError, match=expected):
            sweep(Grid(notebooks=("01",)), scheduler=made.address, run="never")


def test_a_scheduler_without_workers_says_how_to_start_them(tiny, tmp_path):
    with (
        cluster(tmp_path) as made,
        pytest.raises(ConfigError, match="it has no workers; start it with `dask"),
    ):
        sweep(Grid(notebooks=("01",)), scheduler=made.address, run="never")


@pytest.mark.slow
def test_when_the_scheduler_goes_away_the_sweep_ends_and_points_end_on_their_hosts(tiny, tmp_path):
    started = begun(tmp_path / "s", Grid(notebooks=("04",)), ["04_waits"], ["host-a"])
    with cluster(tmp_path) as made:
        made.add("host-a")
        made.wait()
        children: list[psutil.Process] = []

        def end_scheduler(step: Step) -> None:
            if step.running and not children:
                wait_until(lambda: points_of_workers(made.workers["host-a"].pid))
                children.extend(points_of_workers(made.workers["host-a"].pid))
                threading.Timer(0.5, os.kill, (made.scheduler.pid, signal.SIGKILL)).start()

        result = resume(str(started.folder), scheduler=made.address, watch=end_scheduler)
        assert result.lost.startswith("the scheduler does not answer any more")
        assert [point.state for point in result.sweep.points.values()] == ["missing"]
        wait_until(lambda: have_ended(children))


@pytest.mark.slow
def test_when_the_scheduler_goes_away_at_ctrl_c_the_sweep_ends_with_its_page(tiny, tmp_path):
    started = begun(tmp_path / "s", Grid(notebooks=("04",)), ["04_waits"], ["host-a"])
    with cluster(tmp_path) as made:
        made.add("host-a")
        made.wait()

        def end_both(step: Step) -> None:
            if step.running:
                made.scheduler.kill()
                os.kill(os.getpid(), signal.SIGINT)

        result = resume(str(started.folder), scheduler=made.address, watch=end_both)
    assert result.interrupted
    assert "1 did not run" in result.page.read_text()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_leak_is_reproduced_on_the_hosts_that_have_io_uring(tiny, fleet, monkeypatch):
    monkeypatch.setattr(sweeps, "notebooks", plan.notebooks)
    grid = Grid(
        notebooks=("01",),
        parameters={"queue": ("io_uring",), "page_bytes": (4096,), "nofile_limit": (256,)},
        hosts=("host-a", "host-c"),
    )
    result = sweep(grid, scheduler=fleet.address, run="real")
    healthy, refused = result.sweep.points.values()
    assert (healthy.state, refused.state) == ("ended", "failed")
    assert "use_uring" in refused.reason
    assert "At the one point, leaky leaves 4032 files open" in result.page.read_text()
