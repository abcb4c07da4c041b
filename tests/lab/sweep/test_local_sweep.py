"""A sweep on this machine: the runs that come back, what fails, and going on with what is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from fleets import points_of_workers
from processes import have_ended, wait_until
from tiny_sweeps import TinyNotebooks, begun

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.report import build
from hicache_nixl.lab.runs.record import read_record
from hicache_nixl.lab.sweep import fleet as fleets
from hicache_nixl.lab.sweep import sweep as sweeps
from hicache_nixl.lab.sweep.grid import Grid
from hicache_nixl.lab.sweep.lanes import Answer, Lanes
from hicache_nixl.lab.sweep.record import read_sweep
from hicache_nixl.lab.sweep.sweep import Result, Step, _facts_jobs, _kept, resume, sweep

PAGES = {"page_bytes": (4096, 8192)}


class Hosts:
    """A fleet in which nothing runs."""

    def __init__(self, *names: str):
        self.names = names

    def hosts(self) -> dict[str, fleets.Host]:
        return {name: fleets.Host(name, name, {name: name}, name, 1) for name in self.names}


def of(*notebooks: str, **parameters: object) -> Grid:
    return Grid(notebooks=notebooks, parameters=parameters)


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    return []


@pytest.fixture(scope="module")
def ran(tiny: TinyNotebooks, patch: pytest.MonkeyPatch, steps: list[Step]) -> Result:
    """A sweep of two points, one of which has a claim that fails, with a secret in the environment."""
    patch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    return sweep(of("05", **PAGES), run="mine", watch=steps.append)


class TestWhatComesBack:
    def test_each_point_is_an_ordinary_run(self, ran):
        for slug, point in ran.sweep.points.items():
            record = read_record(ran.sweep.folder / "points" / slug)
            assert [*record.notebooks] == ["05_fails"]
            assert record.parameters("05_fails")["page_bytes"] == point.values["page_bytes"]
            assert build(record).exists()

    def test_a_claim_that_fails_is_reported_and_the_other_point_is_right(self, ran):
        right, wrong = ran.sweep.points.values()
        assert (right.state, right.errors, right.verdict) == ("ended", [], "2 of 2 claims hold")
        assert (wrong.state, wrong.verdict) == ("ended", "1 of 2 claims hold, 1 fail")
        assert "claim flat: The count is flat. expected 135, measured 167" in wrong.errors[0]
        assert ran.sweep.verdict() == "2 of 2 points ran, claims fail at 1"

    def test_the_host_has_told_its_facts(self, ran):
        (facts,) = ran.sweep.hosts.values()
        assert facts["queues that work"].startswith("libaio")
        assert ran.sweep.problems == {}

    def test_the_record_is_read_back_as_it_was(self, ran):
        assert read_sweep(ran.sweep.folder) == ran.sweep

    def test_nothing_of_the_environment_is_in_it(self, ran):
        files = [path for path in ran.sweep.folder.rglob("*") if path.is_file()]
        assert [path for path in files if b"hush-hush" in path.read_bytes()] == []

    def test_its_progress_names_what_runs_and_what_has_ended(self, ran, steps):
        assert {slug for step in steps for slug in step.running} >= {*ran.sweep.points}
        assert {step.ended.slug for step in steps if step.ended} == {*ran.sweep.points}

    def test_the_page_links_to_each_run_and_names_the_claim_that_does_not_hold_everywhere(self, ran):
        text = ran.page.read_text()
        for slug in ran.sweep.points:
            assert f'href="points/{slug}/index.html"' in text
        assert "exactly where page_bytes is 8192" in text
        links = set(re.findall(r'href="([^"#:]+)["#]', text))
        assert [link for link in links if not (ran.sweep.folder / link).exists()] == []

    def test_nothing_is_left_running(self, ran):
        assert points_of_workers(os.getpid()) == []


class TestResume:
    @pytest.fixture
    def half(self, tiny: TinyNotebooks, ran: Result, tmp_path: Path) -> Path:
        """A sweep of which one point is missing, and another run was being unpacked."""
        folder = Path(shutil.copytree(ran.sweep.folder, tmp_path / "half"))
        first, _ = known = json.loads((folder / "sweep.json").read_text())["points"]
        slug = first["slug"]
        (folder / "points" / slug).rename(folder / "points" / f"{slug}.unfinished")
        text = (folder / "sweep.json").read_text()
        whole = json.loads(text)
        whole["points"] = [{**first, "state": "missing"}, known[1]]
        (folder / "sweep.json").write_text(json.dumps(whole))
        return folder

    def test_it_runs_what_is_missing_and_nothing_else(self, half):
        steps: list[Step] = []
        result = resume(str(half), watch=steps.append)
        assert [step.ended.slug for step in steps if step.ended] == [next(iter(result.sweep.points))]
        assert [point.state for point in result.sweep.points.values()] == ["ended", "ended"]
        assert sorted(path.name for path in (half / "points").iterdir()) == [*result.sweep.points]

    def test_a_failure_keeps_its_reason_when_it_is_interrupted_before_the_point_has_run_again(
        self, half, monkeypatch
    ):
        def interrupted(lanes: Lanes) -> Iterator[Answer]:
            raise KeyboardInterrupt
            yield

        known = json.loads((half / "sweep.json").read_text())
        wrong = known["points"][1]
        wrong |= {"state": "failed", "reason": "it crashed", "deaths": 2}
        (half / "sweep.json").write_text(json.dumps(known))
        monkeypatch.setattr(Lanes, "answers", interrupted)
        result = resume(str(half))
        again = result.sweep.points[wrong["slug"]]
        assert (again.state, again.reason, again.deaths) == ("failed", "it crashed", 2)
        assert result.sweep.verdict() == "0 of 2 points ran, 1 failed, 1 missing"
        assert "it crashed" in result.page.read_text()

    def test_it_refuses_another_grid(self, half):
        with pytest.raises(ConfigError, match="sweep half has another grid; leave the grid out, or start"):
            resume(str(half), of("05", page_bytes=(4096,)))

    def test_what_is_no_sweep_is_named(self, tiny, tmp_path):
        with pytest.raises(ConfigError, match=r"sweep .*: .*sweep.json does not exist; expected the name of"):
            resume(str(tmp_path))


@pytest.mark.slow
def test_a_point_whose_kernel_dies_has_failed_with_the_reason_and_the_other_goes_on(tiny, tmp_path):
    started = begun(tmp_path / "s", of("06", **PAGES), ["06_dies"], [_this_host()])
    result = resume(str(started.folder))
    right, wrong = result.sweep.points.values()
    assert (right.state, wrong.state) == ("ended", "failed")
    assert "06_dies, cell 5: DeadKernelError" in wrong.reason
    assert read_record(result.sweep.run_of(wrong.slug)).unfinished == ["06_dies"]
    assert "06_dies, cell 5: DeadKernelError" in result.page.read_text()


@pytest.mark.slow
def test_two_counts_share_this_machine_and_two_measurements_do_not(tiny, tmp_path):
    most = {}
    for name in ("01_counts", "02_measures"):
        started = begun(tmp_path / name, of(name, **PAGES), [name], [_this_host()])
        steps: list[Step] = []
        resume(str(started.folder), watch=steps.append)
        most[name] = max(len(step.running) for step in steps)
    assert most == {"01_counts": 2, "02_measures": 1}


def test_ctrl_c_ends_the_points_that_run_with_their_kernels_and_keeps_the_rest(tiny, tmp_path):
    started = begun(tmp_path / "s", of("04", **PAGES), ["04_waits"], [_this_host()])
    seen: list[psutil.Process] = []

    def interrupt() -> None:
        wait_until(lambda: any(child.children() for child in points_of_workers(os.getpid())), 90)
        for child in points_of_workers(os.getpid()):
            seen.extend([child, *child.children(recursive=True)])
        time.sleep(1)  # until the kernel runs its cells
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    result = resume(str(started.folder))
    assert result.interrupted
    assert {point.state for point in result.sweep.points.values()} == {"missing"}
    assert seen
    wait_until(lambda: have_ended(seen))
    assert "2 did not run" in result.page.read_text()


class TestScheduler:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
        """Which schedulers a sweep connects to; no host of theirs has anything to do."""
        seen: list[str | None] = []

        @contextmanager
        def connecting(scheduler: str | None, only: object) -> Iterator[Hosts]:
            seen.append(scheduler)
            yield Hosts()

        monkeypatch.setattr(sweeps, "connecting", connecting)
        return seen

    @pytest.mark.parametrize("had", [None, "tcp://10.0.0.1:8786"])
    def test_a_sweep_that_goes_on_uses_the_one_that_it_had(self, tiny, asked, tmp_path, had):
        begun(tmp_path / "s", of("01"), ["01_counts"], [], scheduler=had)
        resume(str(tmp_path / "s"))
        assert asked == [had]

    def test_another_one_overrides_it_and_is_used_from_then_on(self, tiny, asked, tmp_path):
        begun(tmp_path / "s", of("01"), ["01_counts"], [], scheduler="tcp://10.0.0.1:8786")
        resume(str(tmp_path / "s"), scheduler="tcp://10.0.0.2:8786")
        resume(str(tmp_path / "s"))
        assert asked == ["tcp://10.0.0.2:8786"] * 2

    def test_one_that_is_lost_after_ctrl_c_leaves_a_page(self, tiny, asked, tmp_path, monkeypatch):
        def interrupted(lanes: Lanes) -> Iterator[Answer]:
            raise KeyboardInterrupt
            yield

        def lost(lanes: Lanes) -> Iterator[Answer]:
            raise fleets.FleetLostError(fleets.GONE)
            yield

        monkeypatch.setattr(Lanes, "answers", interrupted)
        monkeypatch.setattr(Lanes, "end", lost)
        begun(tmp_path / "s", of("01"), ["01_counts"], ["host-a"], scheduler="tcp://10.0.0.1:8786")
        result = resume(str(tmp_path / "s"))
        assert result.interrupted
        assert "1 did not run" in result.page.read_text()


class TestFacts:
    def test_hosts_that_have_points_to_run_are_asked_again_and_others_are_not(self, folder):
        started = begun(folder, of("01"), ["01_counts"], ["host-a", "host-b"])
        first, _ = started.points.values()
        first.state = "ended"
        jobs = _facts_jobs(Hosts("host-a", "host-b", "host-c"), started, started.to_run())
        assert [job.host for job in jobs] == ["host-b", "host-c"]

    def test_every_host_is_asked_again_where_a_point_may_run_on_any(self, folder):
        grid = Grid(notebooks=("01",), every_host=False)
        started = begun(folder, grid, ["01_counts"], ["host-a"])
        fleet = Hosts("host-a")
        assert [job.host for job in _facts_jobs(fleet, started, started.to_run())] == ["host-a"]
        started.points[next(iter(started.points))].state = "ended"
        assert _facts_jobs(fleet, started, started.to_run()) == []

    @pytest.mark.parametrize(
        ("folders", "name"), [(("/a",), "storage"), (("/a", "/b"), "storage of /a")], ids=["one", "two"]
    )
    def test_those_of_a_disk_name_its_folder_where_there_are_several(self, folder, folders, name):
        started = begun(folder, of("01", storage_dir=folders), ["01_counts"], ["host-a"])
        (job,) = _facts_jobs(Hosts("host-a"), started, started.to_run())
        _kept(started, Answer(job, "host-a", {"state": "ended", "facts": {"storage": "ext4", "NIXL": "1"}}))
        assert started.hosts["host-a"] == {name: "ext4", "NIXL": "1"}

    def test_those_of_before_go_when_a_host_cannot_tell_its_facts(self, folder):
        started = begun(folder, of("01"), ["01_counts"], ["host-a"])
        (job,) = _facts_jobs(Hosts("host-a"), started, started.to_run())
        _kept(started, Answer(job, "host-a", {"state": "failed", "reason": "x"}))
        assert (started.hosts, started.problems) == ({}, {"host-a": "x"})


class TestRefused:
    def test_a_point_that_cannot_work_is_refused_before_anything_runs(self, tiny):
        with pytest.raises(ConfigError, match="'aio' is unknown; expected one of libaio"):
            sweep(of("01", queue=("libaio", "aio")), run="never")
        assert not (tiny.runs / "never").exists()

    def test_a_run_that_exists_is_not_written_into(self, ran):
        with pytest.raises(ConfigError, match=r"run 'mine' exists already"):
            sweep(of("01"), run="mine")

    def test_an_unknown_host_is_named_with_those_that_are_there(self, tiny):
        grid = Grid(notebooks=("01",), hosts=("node7",))
        with pytest.raises(ConfigError, match=f"host 'node7' is unknown; expected one of {_this_host()}"):
            sweep(grid, run="never")

    @pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "127.0.0.1:9"])
    def test_a_scheduler_that_cannot_be_reached_is_one_line_that_says_how_to_start_one(
        self, tiny, monkeypatch, address
    ):
        monkeypatch.setattr(fleets, "CONNECT", 0.5)
        expected = rf"--scheduler {address}: it cannot be reached within 0 s; start it with `dask scheduler`"
        with pytest.raises(ConfigError, match=expected):
            sweep(of("01"), scheduler=address, run="never")

    @pytest.mark.parametrize("address", ["nonsense://x", "tcp://x"])
    def test_an_address_of_another_form_is_one_line_with_one_that_works(self, tiny, address):
        expected = rf"--scheduler {address}: .*; expected one such as tcp://"
        with pytest.raises(ConfigError, match=expected) as caught:
            sweep(of("01"), scheduler=address, run="never")
        assert "within" not in str(caught.value)

    def test_without_dask_it_says_what_to_install(self, tiny, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "distributed", None)
        with pytest.raises(ConfigError, match=r"pip install 'hicache-nixl\[sweep\]'"):
            sweep(of("01"), run="never")


def _this_host() -> str:
    return os.uname().nodename
