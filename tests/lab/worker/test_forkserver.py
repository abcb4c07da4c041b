"""Workers are forks of one process, and begin as a fresh interpreter would."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest
from processes import fork_servers_of, have_ended, wait_until

from hicache_nixl.lab.experiments.replay import replay
from hicache_nixl.lab.worker.client import Worker, WorkerError
from hicache_nixl.lab.worker.forkserver import FORK_SERVER
from hicache_nixl.lab.worker.schedule import Schedule
from hicache_nixl.lab.worker.setup import Setup

GONE = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
SETUP = Setup("leaky", page_bytes=4096, pages=2)


@pytest.fixture
def pair() -> Iterator[tuple[Worker, Worker]]:
    """Two workers; the second is forked while the first has files open."""
    with Worker(SETUP) as first:
        first.call("set", 2)
        with Worker(SETUP) as second:
            yield first, second


class TestAFreshWorker:
    def test_it_has_no_descriptors_but_its_own(self, pair):
        _, second = pair
        fds = second.fds()
        assert fds.fd[:3].tolist() == [0, 1, 2]
        assert fds.kind.tolist() == ["device", "regular", "regular", "socket"]
        assert fds.target[1] == fds.target[2]

    def test_it_is_a_process_of_the_one_fork_server_in_a_session_of_its_own(self, pair):
        (server,) = fork_servers_of()
        for worker in pair:
            assert psutil.Process(worker.pid).ppid() == server.pid
            assert os.getsid(worker.pid) == worker.pid

    def test_what_one_opened_and_registered_is_not_in_the_other(self, pair):
        first, second = pair
        assert (first.storage_fds(), second.storage_fds()) == (4, 0)
        row = second.call("set", 1)
        assert (row.storage_fds, row.registrations) == (2, 4)

    def test_it_works_in_the_folder_of_its_moment(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        with Worker(SETUP) as worker:
            assert os.readlink(f"/proc/{worker.pid}/cwd") == str(tmp_path)


ENDLESS = Schedule.steady(200_000, 16)  # always interrupted


@pytest.fixture
def attack(tmp_path) -> Iterator[Callable[[signal.Signals], None]]:
    """Send the fork server a signal once a worker has pages in the folder; it is ended after the test."""
    attacked: list[psutil.Process] = []

    def send(number: signal.Signals) -> None:
        wait_until(lambda: list(tmp_path.glob("*/*")))
        attacked.extend(fork_servers_of())
        attacked[0].send_signal(number)

    threads = []
    Worker(SETUP).close()  # its imports take longer than the replay is given

    def start(number: signal.Signals) -> None:
        threads.append(threading.Thread(target=send, args=[number]))
        threads[0].start()

    yield start
    threads[0].join(30)
    assert len(attacked) == 1
    FORK_SERVER.end()
    assert have_ended(attacked)


@pytest.mark.slow
class TestItIsAttackedDuringAReplay:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
    def test_the_replay_ends_within_its_timeout_and_leaves_nothing(self, tmp_path, attack, number):
        attack(number)
        start = time.monotonic()
        with pytest.raises(WorkerError, match="the worker did not answer within 3 s, at: call"):
            replay(ENDLESS, "scoped", page_bytes=4096, storage_dir=tmp_path, timeout=3)
        assert time.monotonic() - start < 10
        assert workers_below(tmp_path) == []
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
    def test_a_worker_that_is_killed_too_is_an_error_at_once(self, tmp_path, attack, number):
        with Worker(SETUP, storage_dir=tmp_path) as worker:
            assert worker.call("set", 2).pages_ok == 2
            attack(number)
            wait_until(lambda: all(server.status() in GONE for server in fork_servers_of()))
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(WorkerError, match="the worker died"):
                worker.call("set", 2)
        assert list(tmp_path.iterdir()) == []

    def test_a_fork_server_that_is_stopped_is_an_error_for_the_next_worker_and_then_replaced(
        self, tmp_path, attack
    ):
        with Worker(SETUP, storage_dir=tmp_path) as worker:
            worker.call("set", 1)
            attack(signal.SIGSTOP)
            wait_until(lambda: all(server.status() in GONE for server in fork_servers_of()))
            with pytest.raises(WorkerError, match="did not answer within 1 s: the fork server"):
                Worker(SETUP, storage_dir=tmp_path, timeout=1)
            assert fork_servers_of() == []
            assert len(list(tmp_path.iterdir())) == 1
        with Worker(SETUP, storage_dir=tmp_path) as worker:
            assert worker.call("set", 2).pages_ok == 2
        assert list(tmp_path.iterdir()) == []


def workers_below(folder) -> list[int]:
    """Return the processes with the folder in what they have open, however they were orphaned."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(file.path.startswith(f"{folder}/") for file in process.open_files()):
                found.append(process.pid)
    return found


class TestTheForkServerIsKilled:
    def test_its_workers_go_on_and_the_next_one_has_another(self, tmp_path):
        with Worker(SETUP, storage_dir=tmp_path) as orphan:
            (server,) = fork_servers_of()
            server.send_signal(signal.SIGKILL)
            server.wait(10)
            assert orphan.call("set", 2).pages_ok == 2
            with Worker(SETUP, storage_dir=tmp_path) as worker:
                assert worker.call("set", 2).pages_ok == 2
                assert [found.pid for found in fork_servers_of()] != [server.pid]
            left = psutil.Process(orphan.pid)
        wait_until(lambda: have_ended([left]), seconds=10)
        assert list(tmp_path.iterdir()) == []
