"""Workers are forks of one process, and begin as a fresh interpreter would."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest
from processes import fork_servers_of, have_ended, wait_until

from hicache_nixl.lab.worker.client import Worker
from hicache_nixl.lab.worker.setup import Setup

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
