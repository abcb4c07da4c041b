"""The keeper: it ends every process of a command, also when its own parent is killed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest
from processes import have_ended, wait_until

from hicache_nixl.lab.keeper import kept

PATIENCE = 0.3  # seconds between SIGTERM and SIGKILL
STUBBORN = "trap '' TERM; trap '' INT; (trap '' TERM; while :; do sleep 0.1; done) & echo up; wait"
ORPHANED = "(setsid sh -c 'sleep 1000 & sleep 1000 & echo up') & wait; sleep 1000"


@contextmanager
def keeping(folder: Path, command: str, **options: int) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run a command of the shell; give its keeper, and what the command prints."""
    folder.mkdir()
    printed = folder.with_suffix(".log")
    with (
        open(printed, "wb") as output,
        kept(["sh", "-c", command], os.environ, folder, output, patience=PATIENCE, **options) as keeper,
    ):
        yield keeper, printed


def tree_of(pid: int, most_at_least: int) -> list[psutil.Process]:
    keeper = psutil.Process(pid)
    wait_until(lambda: len(keeper.children(recursive=True)) >= most_at_least)
    return [keeper, *keeper.children(recursive=True)]


@pytest.mark.parametrize(
    ("command", "processes"), [(STUBBORN, 2), (ORPHANED, 3)], ids=["stubborn", "orphaned"]
)
class TestEveryProcessEnds:
    def test_when_the_parent_says_so(self, tmp_path, command, processes):
        with keeping(tmp_path / "folder", command) as (keeper, printed):
            wait_until(lambda: printed.read_text() == "up\n")
            tree = tree_of(keeper.pid, processes)
        assert have_ended(tree)
        assert not (tmp_path / "folder").exists()

    def test_when_the_parent_is_killed(self, tmp_path, command, processes):
        code = f"""
import os, time
from pathlib import Path
from hicache_nixl.lab.keeper import kept
folder = Path({str(tmp_path)!r}) / "folder"
folder.mkdir()
with open(folder.with_suffix(".log"), "wb") as output:
    with kept(["sh", "-c", {command!r}], os.environ, folder, output, patience={PATIENCE}) as keeper:
        print(keeper.pid, flush=True)
        time.sleep(1000)
"""
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
            keeper = int(parent.stdout.readline())
            wait_until(lambda: (tmp_path / "folder.log").read_text() == "up\n")
            tree = tree_of(keeper, processes)
            parent.kill()
        wait_until(lambda: have_ended(tree))
        assert not (tmp_path / "folder").exists()

    def test_ctrl_c_in_the_terminal_is_left_to_the_parent(self, tmp_path, command, processes):
        with keeping(tmp_path / "folder", command) as (keeper, printed):
            wait_until(lambda: printed.read_text() == "up\n")
            tree = tree_of(keeper.pid, processes)
            os.kill(keeper.pid, signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                keeper.wait(0.3)
        assert have_ended(tree)


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 128 + 9)],
    ids=["good", "bad", "killed"],
)
def test_the_exit_code_is_passed_on(tmp_path, command, code):
    with keeping(tmp_path / "folder", command) as (keeper, _):
        assert keeper.wait(30) == code
    assert not (tmp_path / "folder").exists()


def test_what_a_command_leaves_behind_ends_with_it(tmp_path):
    with keeping(tmp_path / "folder", "sleep 1000 & echo $!") as (keeper, printed):
        assert keeper.wait(30) == 0
        assert not psutil.pid_exists(int(printed.read_text()))


def test_a_folder_that_others_use_stays_when_the_command_ends_by_itself(tmp_path):
    with keeping(tmp_path / "folder", "exit 0", shared=True) as (keeper, _):
        assert keeper.wait(30) == 0
        assert (tmp_path / "folder").exists()
    with keeping(tmp_path / "other", "sleep 1000", shared=True):
        pass
    assert not (tmp_path / "other").exists()


SHARING = """
import multiprocessing, sys, time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
resource_tracker.register = lambda *_: None  # as if it were killed with the process
lock = multiprocessing.get_context("spawn").Lock()
block = SharedMemory(create=True, size=64)
theirs = SharedMemory(sys.argv[1])
print(lock._semlock.name[1:], block.name, flush=True)
time.sleep(1000)
"""


def test_what_processes_leave_in_shared_memory_is_removed(tmp_path):
    """Not what was there before, or what a process of others has opened."""
    block = SharedMemory(create=True, size=64)
    before = set(os.listdir("/dev/shm"))
    try:
        command = shlex.join([sys.executable, "-c", SHARING, block.name])
        with keeping(tmp_path / "folder", f"{command} & wait") as (_, printed):
            wait_until(lambda: len(printed.read_text().split()) == 2)
            lock, mine = printed.read_text().split()
            assert {f"sem.{lock}", mine} <= set(os.listdir("/dev/shm"))
        now = set(os.listdir("/dev/shm"))
        assert block.name in before & now
        assert not {f"sem.{lock}", mine} & now
    finally:
        block.close()
        block.unlink()


def test_shared_memory_that_another_process_uses_stays(tmp_path):
    command = shlex.join([sys.executable, "-c", SHARING.replace("SharedMemory(sys.argv[1])", "0")])
    with keeping(tmp_path / "folder", f"{command} & wait") as (_, printed):
        wait_until(lambda: len(printed.read_text().split()) == 2)
        block = SharedMemory(printed.read_text().split()[1])
    try:
        assert block.name in os.listdir("/dev/shm")
    finally:
        block.close()
        block.unlink()


def test_the_limit_of_descriptors_is_that_of_the_command(tmp_path):
    with keeping(tmp_path / "folder", "ulimit -n; ulimit -Hn", nofile=77) as (keeper, printed):
        assert keeper.wait(30) == 0
    assert printed.read_text() == "77\n77\n"


def test_a_command_that_does_not_exist_is_in_the_output(tmp_path):
    with (
        tempfile.TemporaryFile("w+") as output,
        kept(["/no/such/command"], {}, tmp_path / "none", output) as keeper,
    ):
        assert keeper.wait(30) == 1
        output.seek(0)
        assert "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/command'" in output.read()
