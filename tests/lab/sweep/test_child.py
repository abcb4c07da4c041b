"""The process of a point: it waits for its machine, which it has alone where it measures."""

from __future__ import annotations

import fcntl
import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest
from processes import PATIENCE

from hicache_nixl.lab.sweep.remote import MACHINE
from hicache_nixl.lab.sweep.remote import _lock_of_machine as lock_of_machine

HELD = 3.0  # seconds, in which a process has started
CHILD = ("-m", "hicache_nixl.lab.sweep.child")
# It ignores SIGINT, as a call into NIXL or CUDA that does not return.
HANGS = """
import os, signal, time
from hicache_nixl.lab.sweep import child

def hang(request, folder):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(told, b"it hangs\\n")
    time.sleep(1000)

child.ENDING, told = 1.0, os.dup(1)
child.ACTIONS["run"] = hang
child.main()
"""


class TestMachine:
    @pytest.fixture
    def lock(self, tmp_path: Path) -> Iterator[IO[str]]:
        with open(tmp_path / "lock", "w") as file:
            yield file

    def started(
        self, lock: IO[str], folder: Path, exclusive: bool, program: Sequence[str] = CHILD, **request: object
    ) -> subprocess.Popen[bytes]:
        """Start the process of a point; without notebooks, it is refused, which takes no kernel."""
        process = subprocess.Popen(
            [sys.executable, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        (folder / "own").mkdir()
        whole = {"action": "run", "slug": "1", "notebooks": {}, "profile": "none", "parameters": {}}
        whole |= {"folder": str(folder / "own"), "lock": lock.name, "exclusive": exclusive, **request}
        process.stdin.write(json.dumps(whole).encode() + b"\n")
        process.stdin.flush()
        return process

    def waits(self, process: subprocess.Popen[bytes]) -> bool:
        return select.select([process.stdout], [], [], HELD)[0] == []

    def told(self, process: subprocess.Popen[bytes]) -> dict[str, object]:
        told = json.loads(process.stdout.readline())
        process.stdout.read()
        process.stdin.close()
        return told

    @pytest.mark.parametrize(
        ("held", "exclusive"), [(fcntl.LOCK_EX, False), (fcntl.LOCK_SH, True)], ids=["measurement", "count"]
    )
    def test_it_waits_for_what_it_must_not_run_beside(self, lock, tmp_path, held, exclusive):
        fcntl.flock(lock, held)
        with self.started(lock, tmp_path, exclusive) as process:
            assert self.waits(process)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert self.told(process)["state"] == "refused"

    def test_two_counts_run_beside_each_other(self, lock, tmp_path):
        fcntl.flock(lock, fcntl.LOCK_SH)
        with self.started(lock, tmp_path, exclusive=False) as process:
            assert self.told(process)["state"] == "refused"

    def test_it_ends_with_its_worker_while_it_waits(self, lock, tmp_path):
        fcntl.flock(lock, fcntl.LOCK_EX)
        with self.started(lock, tmp_path, exclusive=True) as process:
            assert self.waits(process)
            process.stdin.close()
            assert json.loads(process.stdout.readline()) == {"state": "interrupted"}

    def test_one_that_hangs_does_not_keep_its_machine(self, lock, tmp_path):
        with self.started(lock, tmp_path, exclusive=True, program=["-c", HANGS]) as process:
            assert process.stdout.readline() == b"it hangs\n"
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            process.stdin.close()
            assert process.wait(PATIENCE) == -signal.SIGKILL
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not (tmp_path / "own").exists()

    @pytest.mark.slow
    def test_its_time_begins_when_it_has_waited(self, tiny, lock, tmp_path):
        notebooks = {"01_counts": tiny.known()["01_counts"].read_text()}
        fcntl.flock(lock, fcntl.LOCK_EX)
        begun = time.monotonic()
        with self.started(lock, tmp_path, True, notebooks=notebooks, profile="quick") as process:
            time.sleep(3 * HELD)
            fcntl.flock(lock, fcntl.LOCK_UN)
            told = self.told(process)
        assert told["state"] == "ended"
        assert told["seconds"] < time.monotonic() - begun - 3 * HELD


def test_the_lock_of_a_machine_is_that_of_all_its_workers_and_of_no_other_machine(monkeypatch):
    own = lock_of_machine()
    assert lock_of_machine() == own
    monkeypatch.setenv(MACHINE, "rack/1")
    assert lock_of_machine().parent == own.parent
    assert lock_of_machine() != own
