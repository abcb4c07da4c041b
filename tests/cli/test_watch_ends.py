"""How hicache-nixl watch ends, and what its record becomes: exit codes, readers that go away, notebook 01."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from processes import wait_until
from test_cli import Run
from test_cli import run as run_in_this_process
from test_watch import COMMAND, SOON, sleeping

from hicache_nixl.watch.recording import WatchFile, read_watch
from hicache_nixl.watch.sample import KINDS, Sample

run = run_in_this_process  # the fixture that runs a command line
OPENER = """
import os, sys, time
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    time.sleep(0.4)
    os.open(os.path.join(sys.argv[1], str(number)), os.O_CREAT | os.O_RDWR)
time.sleep(100)
"""


@contextmanager
def watching(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Watch without a terminal, from the first sample on."""
    command = [*COMMAND, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        started.stdout.readline()
        assert "undecided: 1 sample of" in started.stdout.readline()
        yield started


@contextmanager
def unread(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Watch with an output that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, *map(str, arguments), "--interval", "0.05", *SOON]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as started:
        os.close(writer)
        yield started


class TestExitCode:
    @pytest.mark.parametrize(
        ("files", "code", "says"),
        [
            (0, 4, "undecided: no storage file was seen open"),
            (1, 4, "undecided: storage files rose from 0 to 1 in 1 step and none was closed; watch longer"),
            (4, 3, "leak: storage files grow by"),
        ],
        ids=["none", "one", "four"],
    )
    def test_files_that_are_opened_now_and_then_and_kept(self, tmp_path, files, code, says):
        opener = [sys.executable, "-S", "-c", OPENER, str(tmp_path), str(files)]
        times = ["--interval", "0.05", "--duration", "2.4"]
        with subprocess.Popen(opener, stdin=subprocess.PIPE, text=True) as child:
            with watching(child.pid, "--storage-dir", tmp_path, *times) as watch:
                child.stdin.write("now\n")
                child.stdin.flush()
                out = watch.stdout.read()
            child.kill()
        assert says in out
        assert watch.returncode == code

    def test_a_process_that_ends_before_it_can_be_judged_is_4(self):
        with sleeping() as child, watching(child.pid) as watch:
            child.kill()
            out = watch.stdout.read()
        assert "has ended; watched for" in out
        assert "undecided: " in out
        assert watch.returncode == 4

    def test_a_process_at_its_limit_from_the_start_is_4(self, run: Run):
        code = "import os, time; [os.dup(0) for _ in range(17)]; time.sleep(100)"
        with subprocess.Popen(["prlimit", "--nofile=20", sys.executable, "-S", "-c", code]) as child:
            wait_until(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) == 20)
            answer = run(f"watch {child.pid} --interval 0.05 --duration 1")
            child.kill()
        assert "undecided: the process is at its limit" in answer.out
        assert answer.code == 4

    def test_the_end_of_the_process_is_noticed_between_two_samples(self):
        with sleeping() as child, watching(child.pid, "--interval", "3600") as watch:
            child.kill()
            killed = time.monotonic()
            out = watch.stdout.read()
        assert time.monotonic() - killed < 10
        assert f"process {child.pid} has ended" in out
        assert watch.returncode == 4


class TestWithoutAReader:
    """As under head, which goes away after a few lines."""

    def test_it_goes_on_for_its_duration(self):
        with sleeping() as child, unread(child.pid, "--duration", "1") as watch:
            assert watch.stderr.read() == ""
        assert watch.returncode == 4  # nothing was opened

    def test_it_goes_on_for_its_record(self, tmp_path):
        path = tmp_path / "w.csv"
        with sleeping() as child, unread(child.pid, "--csv", path) as watch:
            while watch.poll() is None and (not path.exists() or path.read_text().count("\n") <= 30):
                time.sleep(0.05)
            watch.terminate()
            assert watch.stderr.read() == ""
        assert watch.returncode == 4  # nothing was opened
        assert len(read_watch(path)) >= 30

    @pytest.mark.slow
    def test_it_goes_on_as_long_as_it_serves_metrics(self):
        with sleeping() as child, unread(child.pid, "--prometheus", "29465") as watch:
            with pytest.raises(subprocess.TimeoutExpired):
                watch.wait(4)
            watch.terminate()
            assert watch.stderr.read() == ""

    def test_else_it_ends_with_what_it_has_seen(self):
        with sleeping() as child, unread(child.pid) as watch:
            assert watch.stderr.read() == ""
        assert watch.returncode == 4


class TestRecord:
    def test_one_without_a_sample_is_not_left_behind(self, tmp_path):
        """Stopped as soon as the file is there: before the first sample, or after it."""
        with sleeping() as child:
            command = [*COMMAND, str(child.pid), "--csv", str(tmp_path / "w.csv")]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as watching:
                while not list(tmp_path.iterdir()) and watching.poll() is None:
                    time.sleep(0.001)
                os.kill(watching.pid, signal.SIGINT)
        assert [path for path in tmp_path.iterdir() if path.read_text().count("\n") < 2] == []

    def test_the_command_that_is_printed_can_be_pasted_whatever_the_path(self, run: Run, tmp_path):
        path = tmp_path / "a server's; record.csv"
        with sleeping() as child:
            csv = shlex.quote(str(path))
            answer = run(f"watch {child.pid} --interval 0.05 --duration 1 --csv {csv}")
        samples, command = answer.out.splitlines()[-2:]
        assert samples == f"samples: {csv}; to see them beside those of the PR:"
        assert shlex.split(command) == [
            "hicache-nixl",
            "reproduce",
            "--notebook",
            "01",
            "-p",
            f"watched={path}",
        ]


class TestInNotebook01:
    """A record becomes a parameter of notebook 01; what is none stops before anything runs."""

    def test_the_path_of_a_record_is_made_absolute(self, run: Run, monkeypatch, tmp_path):
        given = []
        monkeypatch.setattr("hicache_nixl.lab.execute.runs_folder", lambda: tmp_path / "runs")
        monkeypatch.setattr(
            "hicache_nixl.lab.execute.run_notebook", lambda *call: given.append(call[3]) or sys.exit(0)
        )
        monkeypatch.chdir(tmp_path)
        with WatchFile("server.csv") as record:
            record.write(Sample(datetime.now(UTC), 0.0, 1, dict.fromkeys(KINDS, 0), 9))
        run("reproduce --notebook 01 -p watched=server.csv")
        assert given[0]["watched"] == f"{tmp_path}/server.csv"

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ("missing.csv", "missing.csv: No such file or directory; expected a CSV of hicache-nixl watch"),
            ("fds.csv", "fds.csv: no column time"),
            ("2024", "parameter watched of 01_reproduce_the_leak: 2024 is not text"),
        ],
    )
    def test_what_is_none_is_one_line_before_anything_runs(
        self, run: Run, monkeypatch, tmp_path, value, says
    ):
        monkeypatch.setattr("hicache_nixl.lab.execute.runs_folder", lambda: tmp_path / "runs")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "fds.csv").write_text("call,open_fds\n1,2\n")
        answer = run(f"reproduce --notebook 01 -p watched={value}")
        assert answer.code == 2
        assert says in answer.error()
        assert not (tmp_path / "runs").exists()
