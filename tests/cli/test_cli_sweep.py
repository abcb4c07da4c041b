"""The command sweep: what it prints, its exit codes, Ctrl-C, and one line for what cannot work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fleets import cluster
from processes import have_ended, wait_until
from support import TESTS
from test_cli import Run
from test_cli import run as run_in_this_process
from tiny_sweeps import TinyNotebooks, begun, no_facts

from hicache_nixl.lab import execute
from hicache_nixl.lab.sweep import record, remote
from hicache_nixl.lab.sweep import sweep as sweeps
from hicache_nixl.lab.sweep.grid import Grid
from hicache_nixl.lab.sweep.lanes import Answer, Job

run = run_in_this_process  # the fixture that runs a command line
HOST = os.uname().nodename
START = 90  # seconds for a kernel to start on a busy machine
MAIN = """
import sys
from pathlib import Path
from hicache_nixl.cli import main
from hicache_nixl.lab.sweep import sweep
folder = Path(sys.argv.pop(1))
sweep.notebooks = lambda: {path.stem: path for path in folder.glob("*.ipynb")}
sweep._facts_jobs = lambda *given: []
main()
"""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TinyNotebooks:
    made = TinyNotebooks(tmp_path)
    monkeypatch.setattr(sweeps, "notebooks", made.known)
    monkeypatch.setattr(sweeps, "_facts_jobs", no_facts)
    monkeypatch.setattr(remote, "_lock_of_machine", lambda: tmp_path / "lock")
    for place in (execute, record):
        monkeypatch.setattr(place, "runs_folder", lambda: made.runs)
    return made


def with_large_pages(tiny: TinyNotebooks, notebook: str) -> Path:
    """Begin a sweep of two points."""
    grid = Grid(notebooks=(notebook[:2],), parameters={"page_bytes": (4096, 8192)})
    return begun(tiny.runs / "mine", grid, [notebook], [HOST]).folder


class TestResult:
    def test_a_claim_that_fails_ends_it_with_1_and_is_named_with_its_point(self, run: Run, tiny):
        folder = with_large_pages(tiny, "05_fails")
        answer = run("sweep --resume mine")
        assert answer.code == 1
        assert "2 of 2 points ran, claims fail at 1; the page is" in answer.out
        lines = answer.err.splitlines()
        assert lines[0] == "2 points; Ctrl-C ends the sweep and keeps what has run"
        points = [f"page_bytes={size} on {HOST}" for size in (4096, 8192)]
        assert sorted(line for line in lines if line.endswith(": started")) == [
            f"{point}: started" for point in points
        ]
        assert sorted(line.partition(": ")[0] for line in lines[1:-1]) == sorted(2 * points)
        assert "error: 002-8192" in lines[-1]
        assert "claim flat: The count is flat." in lines[-1]
        assert (folder / "index.html").exists()
        self.then_nothing_is_left_to_do(run)

    def then_nothing_is_left_to_do(self, run: Run) -> None:
        answer = run("sweep --resume mine --json")
        known = json.loads(answer.out)
        assert [*known] == ["name", "page", "verdict", "points", "hosts", "problems"]
        assert [Path(point["run"]).name for point in known["points"]] == [
            point["slug"] for point in known["points"]
        ]
        assert [line for line in answer.err.splitlines() if not line.startswith("error: ")] == []
        told = run("sweep --help").prose
        assert [name for name in known if name not in told] == []

    def test_a_point_that_others_have_interrupted_ends_it_with_1(self, run: Run, tiny, monkeypatch):
        done = record.read_sweep(with_large_pages(tiny, "01_counts"))
        for slug in done.points:
            done.keep(Answer(Job(slug, {}, HOST, True), HOST, {"state": "interrupted"}))
        monkeypatch.setattr(sweeps, "resume", lambda *given, **more: sweeps.Result(done, done.page))
        answer = run("sweep --resume mine")
        assert answer.code == 1
        assert "its process was interrupted on its host" in answer.error()


class TestRefused:
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("-p no_such=1", "parameter 'no_such' is unknown"),
            ("-p queue=", "queue has no value"),
            ("-p queue=aio", "'aio' is unknown; expected one of libaio"),
            ("-p sizes=1,2", "1 is not a list"),
            ("--notebook 77", "notebook '77' is unknown"),
            ("--profile none", "profile 'none' is unknown"),
            ("--host node7", "host 'node7' is unknown; expected one of"),
            ("--run ../x", "expected a name of letters"),
            ("--run mine", "run 'mine' exists already"),
            ("--run mine --resume mine", "--run names a new sweep, and --resume goes on with one"),
            ("--resume none", "sweep none: .*sweep.json does not exist"),
            ("--resume mine -p page_bytes=4096", "sweep mine has another grid"),
            ("''", "the path of the grid is empty"),
            ("no.yaml", "grid no.yaml cannot be read"),
            (
                "--scheduler tcp://127.0.0.1:9",
                "it cannot be reached within .* start it with `dask scheduler`",
            ),
        ],
    )
    def test_it_is_one_line_and_nothing_was_run(self, run: Run, tiny, monkeypatch, line, says):
        monkeypatch.setattr("hicache_nixl.lab.sweep.fleet.CONNECT", 0.5)
        with_large_pages(tiny, "01_counts")
        answer = run(f"sweep {line}")
        assert (answer.code, answer.out) == (2, "")
        assert re.search(says, answer.error())
        assert os.listdir(tiny.runs) == ["mine"]
        assert os.listdir(tiny.runs / "mine" / "points") == []


def test_its_help_teaches(run: Run):
    words = run("sweep --help").prose
    for taught in (
        "--scheduler",
        "--resume",
        "--any-host",
        "-p keys_sweep=[1,2],[4,8]",
        "parameters: {queue: [libaio, io_uring]}",
        "tcp://10.0.0.1:8786",
        "one point at a time",
        "Exit codes",
        "130",
    ):
        assert taught in words


class TestInterrupted:
    @pytest.fixture
    def started(self, tiny: TinyNotebooks) -> Iterator[subprocess.Popen[str]]:
        folder = with_large_pages(tiny, "04_waits")
        tmp = str(tiny.folder.parent)  # what is left there when the command is killed goes with it
        with subprocess.Popen(
            [sys.executable, "-c", MAIN, str(tiny.folder), "sweep", "--resume", str(folder)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "TMPDIR": tmp},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have it ignored
        ) as process:
            yield process
            process.kill()

    def kernels_of(self, process: subprocess.Popen[str]) -> list[psutil.Process]:
        """Wait until a point has a kernel; return all processes that the command has started."""
        wait_until(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 3, START)
        return psutil.Process(process.pid).children(recursive=True)

    def test_ctrl_c_ends_it_with_130_and_says_how_to_go_on(self, started):
        seen = self.kernels_of(started)
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=90)
        assert started.returncode == 130, err
        assert "interrupted, ending the points that run ..." in err
        assert f"go on: hicache-nixl sweep --resume {started.args[-1]}" in out
        assert "Traceback" not in out + err
        wait_until(lambda: have_ended(seen))

    @pytest.mark.parametrize("how", [{"interrupted": True}, {"lost": "it is gone"}], ids=["ctrl-c", "lost"])
    def test_a_sweep_of_a_fleet_says_how_to_go_on_with_its_scheduler(self, run: Run, tiny, monkeypatch, how):
        done = record.read_sweep(with_large_pages(tiny, "04_waits"))
        done.scheduler = "tcp://10.0.0.1:8786"
        monkeypatch.setattr(sweeps, "resume", lambda *given, **more: sweeps.Result(done, done.page, **how))
        answer = run("sweep --resume mine")
        assert "go on: hicache-nixl sweep --resume mine --scheduler tcp://10.0.0.1:8786" in (
            answer.out + answer.err
        )

    @pytest.mark.slow
    def test_a_second_ctrl_c_ends_it_at_once_and_its_processes_end_too(self, started):
        seen = self.kernels_of(started)
        started.send_signal(signal.SIGINT)
        assert any(line.startswith("interrupted") for line in started.stderr)
        started.send_signal(signal.SIGINT)
        assert started.wait(timeout=5) == 130
        wait_until(lambda: have_ended(seen))

    @pytest.mark.slow
    def test_when_it_is_killed_its_processes_end(self, started):
        seen = self.kernels_of(started)
        started.kill()
        wait_until(lambda: have_ended(seen))


class TestDoctorOfAFleet:
    @pytest.mark.slow
    def test_a_row_for_each_host_marks_what_differs_and_the_worst_decides(self, run: Run, tmp_path):
        with cluster(tmp_path) as made:
            made.add("host-a")
            made.add("host-b", prefix=("prlimit", "--nofile=300:300"))
            made.wait()
            answer = run(f"doctor --scheduler {made.address} --storage-dir {tmp_path}")
            as_json = run(f"doctor --scheduler {made.address} --storage-dir {tmp_path} --json")
        assert answer.code == as_json.code == 4
        assert "2 hosts: 1 few open files, 1 ok" in answer.out
        assert re.search(r"host-b +few .* 300 \*", answer.out)
        assert "  soft 300, hard 300: host-b" in answer.out.splitlines()
        hosts = json.loads(as_json.out)["hosts"]
        assert hosts["host-b"]["facts"]["open files"] == "soft 300, hard 300"
        assert hosts["host-a"]["diagnosis"]["enough_files"] is True

    def test_a_host_that_did_not_answer_has_no_facts_in_its_row(self, run: Run, monkeypatch):
        found = {"host-a": {"state": "failed", "reason": "it is gone"}}
        monkeypatch.setattr(sweeps, "facts_of_fleet", lambda *given: found)
        answer = run("doctor --scheduler tcp://10.0.0.1:8786")
        assert answer.code == 1
        assert re.search(r"host-a +did.*( -){7} *\n", re.sub(" +", " ", answer.out))
        assert "host-a did not answer: it is gone" in answer.out

    def test_a_scheduler_that_cannot_be_reached_is_one_line(self, run: Run, monkeypatch):
        monkeypatch.setattr("hicache_nixl.lab.sweep.fleet.CONNECT", 0.5)
        answer = run("doctor --scheduler tcp://127.0.0.1:9")
        assert (answer.code, answer.out) == (2, "")
        assert "start it with `dask scheduler`" in answer.error()

    def test_a_folder_of_this_machine_says_nothing_about_others(self, run: Run, tmp_path):
        answer = run(f"doctor --scheduler tcp://127.0.0.1:9 --sglang {tmp_path}")
        assert answer.code == 2
