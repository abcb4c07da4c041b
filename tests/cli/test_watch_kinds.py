"""hicache-nixl watch on real processes that leak, or do not: every kind, plateaus, trees of processes, and what it writes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.image
import psutil
import pytest
from processes import wait_until
from support import file_size_limit
from test_cli import Run
from test_cli import run as run_in_this_process

from hicache_nixl.watch.exporter import METRICS

run = run_in_this_process  # the fixture that runs a command line

# Opens something every 20 ms, as often as the third argument says, and keeps it.
OPENER = """
import os, socket, subprocess, sys, time
folder, kind, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
open_one = {
    "file": lambda n: os.open(f"{folder}/{n}", os.O_CREAT | os.O_RDWR),
    "socket": lambda n: socket.socket().detach(),
    "pipe": lambda n: os.pipe(),
    "eventfd": lambda n: os.eventfd(0),
    "timerfd": lambda n: os.open("/proc/self/ns/net", os.O_RDONLY),
    "null": lambda n: os.open("/dev/null", os.O_RDONLY),
    "call": lambda n: [os.close(fd) for fd in [os.open(f"{folder}/{n % 9}", os.O_CREAT)] if not time.sleep(0.01)],
}[kind]
print("ready", flush=True)
for n in range(times):
    open_one(n)
    time.sleep(0.02)
time.sleep(60)
"""
OFTEN = 3000
SHORT = "--interval 0.05 --duration 1.5 --horizon 0.1"


def metrics(port: int) -> str:
    """Return what is served, nothing before it is."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


@contextmanager
def opening(folder: Path, kind: str, times: int = OFTEN, title: str | None = None) -> Iterator[int]:
    """A process that opens things; its title is what stands first in its command line."""
    command = [title or sys.executable, "-S", "-c", OPENER, str(folder), kind, str(times)]
    with subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            yield child.pid
        finally:
            child.kill()


class TestEveryKind:
    @pytest.mark.parametrize(
        ("kind", "named"),
        [("socket", "sockets"), ("pipe", "pipes"), ("eventfd", "eventfds"), ("null", "devices")],
    )
    def test_one_that_grows_is_a_leak_of_that_kind(self, run: Run, tmp_path, kind, named):
        with opening(tmp_path, kind) as pid:
            answer = run(f"watch {pid} {SHORT}")
        assert answer.code == 3
        assert f"leak: {named} grow by " in answer.out

    def test_files_outside_the_storage_folder_are_a_leak_too(self, run: Run, tmp_path):
        (tmp_path / "pages").mkdir()
        with opening(tmp_path, "file") as pid:
            answer = run(f"watch {pid} --storage-dir {tmp_path}/pages {SHORT}")
        assert answer.code == 3
        assert "leak: regular files grow by " in answer.out

    def test_the_folder_and_the_files_that_grew_most_are_named(self, run: Run, tmp_path):
        with opening(tmp_path, "file") as pid:
            answer = run(f"watch {pid} {SHORT}")
            more = run(f"watch {pid} --paths {SHORT}")
        assert re.findall(r"^\+\d+, now \d+: (.*)", answer.out, re.MULTILINE) == [str(tmp_path)]
        assert re.findall(r"^\+\d+, now \d+: (.*)", more.out, re.MULTILINE) == [
            str(tmp_path)
        ]  # no file twice

    def test_files_that_calls_open_and_close_are_none(self, run: Run, tmp_path):
        with opening(tmp_path, "call") as pid:
            answer = run(f"watch {pid} --storage-dir {tmp_path} {SHORT}")
        assert answer.code == 0
        assert re.search(r"no leak seen in \d s: storage files do not grow", answer.out)

    def test_too_early_to_tell_says_how_long_to_watch(self, run: Run, tmp_path):
        with opening(tmp_path, "call") as pid:
            answer = run(f"watch {pid} --storage-dir {tmp_path} --interval 0.05 --duration 1")
        assert answer.code == 4
        assert "undecided: too early to tell, watch about " in answer.out
        assert "per minute would reach the limit within 24 h" in answer.out


class TestPlateau:
    def test_a_leak_is_withdrawn_when_the_growth_ends(self, run: Run, tmp_path):
        with opening(tmp_path, "file", times=50) as pid:
            answer = run(
                f"watch {pid} --storage-dir {tmp_path} --interval 0.05 --duration 4 --horizon 0.1 --json"
            )
        assert "leak: storage files grow by " in answer.err
        assert "earlier: storage files grew by " in answer.err
        assert "and grow no longer (now 50, highest 50)" in answer.err
        assert (answer.code, json.loads(answer.out)["state"]) == (0, "no leak")


@contextmanager
def parent_of_an_opener(folder: Path, kind: str) -> Iterator[psutil.Process]:
    """A process that opens nothing, whose child does."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', *sys.argv[1:]])"
    command = [sys.executable, "-S", "-c", code, OPENER, str(folder), kind, str(OFTEN)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline() == "ready\n"
            yield psutil.Process(parent.pid)
        finally:
            for child in psutil.Process(parent.pid).children():
                child.kill()
            parent.kill()


class TestTree:
    def test_the_wrong_process_of_a_tree_is_refused_and_the_right_one_named(self, run: Run, tmp_path):
        with parent_of_an_opener(tmp_path, "file") as parent:
            (child,) = parent.children()
            wait_until(lambda: list(tmp_path.iterdir()))
            answer = run(f"watch {parent.pid} --storage-dir {tmp_path} {SHORT}")
        assert answer.code == 2
        assert f"process {parent.pid} (" in answer.error()
        assert f"its child {child.pid} (" in answer.error()
        assert "watch that one, or add --children" in answer.error()

    def test_one_whose_child_opens_its_first_file_later_is_refused_then(self, run: Run, tmp_path):
        with parent_of_an_opener(tmp_path, "call") as parent:
            child = parent.children()[0].pid
            answer = run(f"watch {parent.pid} --storage-dir {tmp_path} --interval 0.05 --duration 20")
        assert answer.code == 2
        assert f"its child {child} (" in answer.error()

    def test_with_children_each_process_is_judged_by_itself(self, run: Run, tmp_path):
        with parent_of_an_opener(tmp_path, "file") as parent:
            child = parent.children()[0].pid
            answer = run(f"watch {parent.pid} --children --storage-dir {tmp_path} {SHORT} --json")
        assert answer.code == 3
        states = {one["pid"]: one["state"] for one in json.loads(answer.out)["processes"]}
        assert states == {parent.pid: "no leak", child: "leak"}

    def test_a_child_that_is_started_later_is_watched_too(self, run: Run, tmp_path):
        code = "import subprocess, sys, time; time.sleep(1); subprocess.run([sys.executable, *sys.argv[1:]])"
        command = [sys.executable, "-S", "-c", code, "-S", "-c", OPENER, str(tmp_path), "socket", str(OFTEN)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
            try:
                answer = run(f"watch {parent.pid} --children --interval 0.05 --duration 5")
            finally:
                for child in psutil.Process(parent.pid).children():
                    child.kill()
                parent.kill()
        assert answer.code == 3
        assert "leak: sockets grow by " in answer.out


class TestAll:
    def test_every_scheduler_is_found_by_its_title(self, run: Run, tmp_path):
        with (
            opening(tmp_path, "call", title="sglang::scheduler_TP0") as healthy,
            opening(tmp_path, "socket", title="sglang::scheduler_TP1") as leaking,
            opening(tmp_path, "socket", title="sglang::detokenizer") as other,
        ):
            answer = run(f"watch --all --storage-dir {tmp_path} {SHORT} --json")
        assert answer.code == 3
        states = {one["pid"]: one["state"] for one in json.loads(answer.out)["processes"]}
        # the machine may run other schedulers
        ours = {pid: state for pid, state in states.items() if pid in (healthy, leaking, other)}
        assert ours == {healthy: "no leak", leaking: "leak"}
        assert f"process {leaking} (sglang::scheduler_TP1):" in answer.err


class TestWhatItWrites:
    def test_json_is_one_object_and_nothing_else(self, run: Run, tmp_path):
        with opening(tmp_path, "file") as pid:
            answer = run(f"watch {pid} --storage-dir {tmp_path} {SHORT} --json")
        told = json.loads(answer.out)
        assert (answer.code, told["exit_code"], told["state"], told["ended"]) == (
            3,
            3,
            "leak",
            "duration reached",
        )
        (process,) = told["processes"]
        assert (process["pid"], process["state"]) == (pid, "leak")
        assert process["limit"] > process["open_fds"] > 10
        found = process["kinds"]["storage_fds"]
        assert found["leaks"]
        assert found["per_minute"]["low"] <= found["per_minute"]["value"] <= found["per_minute"]["high"]
        assert process["seconds_to_limit"]["value"] > 0
        assert process["grew_most"]["folders"][0]["path"] == str(tmp_path)
        assert "leak: storage files grow by" in answer.err

    def test_png_draws_it(self, run: Run, tmp_path):
        path = tmp_path / "watch.png"
        with opening(tmp_path, "socket") as pid:
            assert run(f"watch {pid} {SHORT} --png {path}").code == 3
        assert matplotlib.image.imread(path).shape[:2] > (300, 900)

    def test_a_figure_that_does_not_fit_on_the_disk_leaves_the_verdict(self, run: Run, tmp_path):
        with opening(tmp_path, "socket") as pid, file_size_limit(1000):
            answer = run(f"watch {pid} {SHORT} --png {tmp_path}/watch.png")
        assert answer.code == 3
        assert f"note: no figure, {tmp_path}/watch.png: File too large" in answer.out

    def test_metrics_are_served_while_it_watches(self, tmp_path):
        """All of them, for the process and its kinds, to a real request."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        code = "from hicache_nixl.cli import main; main()"
        arguments = ["--interval", "0.05", "--duration", "30", "--prometheus", str(port)]
        with opening(tmp_path, "socket") as pid:
            command = [sys.executable, "-c", code, "watch", str(pid), *arguments]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as watching:
                try:
                    wait_until(lambda: f'leaking{{kind="socket",pid="{pid}"}} 1.0' in metrics(port))
                    text = metrics(port)
                finally:
                    watching.terminate()
        assert watching.returncode == 3
        assert [name for name in METRICS if f"\n{name}{{" not in text] == []

    def test_a_figure_that_cannot_be_written_is_refused_before_anything_is_watched(self, run: Run, tmp_path):
        (tmp_path / "watch.png").touch()
        began = time.monotonic()
        assert run(f"watch {os.getpid()} --png {tmp_path}/watch.png").code == 2
        assert time.monotonic() - began < 5


def test_nothing_is_left_of_a_watch(run: Run, tmp_path):
    threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with opening(tmp_path, "call") as pid:
        run(f"watch {pid} --interval 0.05 --duration 0.6 --prometheus 29464")
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, fds)
