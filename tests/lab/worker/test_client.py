"""A worker always ends, and its folder with it, whatever happens to either process."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from processes import PATIENCE, fork_servers_of, have_ended, wait_until, workers_of

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.experiments.replay import replay
from hicache_nixl.lab.worker import call
from hicache_nixl.lab.worker.client import Worker, WorkerError
from hicache_nixl.lab.worker.descriptors import count_fds
from hicache_nixl.lab.worker.schedule import Schedule
from hicache_nixl.lab.worker.setup import Setup

PAGE = 4096  # bytes
ENDLESS = Schedule.steady(200_000, 16)  # always interrupted

# A process that replays until it is stopped; its one argument is the storage folder.
ENDLESS_REPLAY = """
import sys
from hicache_nixl.lab.experiments.replay import replay
from hicache_nixl.lab.worker.schedule import Schedule
replay(Schedule.steady(200_000, 16), "try_finally", page_bytes=4096, storage_dir=sys.argv[1])
"""


def in_the_middle(storage_dir: Path) -> bool:
    """Whether a replay in this folder has stored its first page."""
    return any(storage_dir.glob("*/*_k"))


@contextmanager
def with_the_worker_of_a_replay(
    storage_dir: Path, action: Callable[[psutil.Process], None], when: Callable[[Path], object]
) -> Iterator[None]:
    """Do something to the worker of the replay that this thread is about to start."""

    def act() -> None:
        wait_until(lambda: when(storage_dir))
        time.sleep(0.3)  # some more steps
        (worker,) = workers_of()
        action(worker)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def assert_nothing_is_left(storage_dir: Path) -> None:
    assert workers_of() == []
    assert list(storage_dir.iterdir()) == []


class TestWorkerDies:
    def test_a_killed_worker_is_an_error_with_the_signal_and_its_last_lines(self, tmp_path):
        """The limit makes every call log a line, of which the last ones are in the error."""
        started = time.monotonic()
        with (
            with_the_worker_of_a_replay(tmp_path, lambda worker: worker.kill(), when=in_the_middle),
            pytest.raises(WorkerError) as caught,
        ):
            replay(ENDLESS, "leaky", page_bytes=PAGE, storage_dir=tmp_path, nofile_limit=128)
        assert time.monotonic() - started < PATIENCE
        first, heading, *lines = str(caught.value).splitlines()
        assert re.match(r"the worker died \(signal SIGKILL\) at: call", first)
        assert heading == "its last lines of output:"
        assert any("[Errno 24] Too many open files" in line for line in lines)
        assert len(lines) <= 12
        assert_nothing_is_left(tmp_path)

    def test_one_that_dies_between_its_answer_and_the_count_is_an_error_too(self, monkeypatch, tmp_path):
        """Nothing that it had is open any more, but 0 is not what was open after the call."""

        def count_when_it_has_died(pid: int) -> int:
            worker = psutil.Process(pid)
            worker.kill()
            wait_until(lambda: have_ended([worker]))
            return count_fds(pid)

        monkeypatch.setattr(call, "count_fds", count_when_it_has_died)
        with pytest.raises(WorkerError, match=r"the worker died \(signal SIGKILL\) at: call set 16\n"):
            replay(ENDLESS, page_bytes=PAGE, storage_dir=tmp_path)
        assert_nothing_is_left(tmp_path)

    def test_a_crash_in_the_worker_is_an_error_with_its_exit_code_and_the_reason(self, tmp_path):
        with pytest.raises(WorkerError, match=r"the worker died \(exit code 1\) at: open") as caught:
            Worker(Setup(page_bytes=2**50, pages=2), storage_dir=tmp_path)
        assert re.search("RuntimeError.*memory|MemoryError", str(caught.value))
        assert_nothing_is_left(tmp_path)


class TestWorkerRefuses:
    @pytest.mark.parametrize(
        ("limits", "reason"),
        [({"baseline_fds": 1}, "baseline_fds is 1; expected"), ({"nofile_limit": 10**7}, "the hard limit")],
    )
    def test_a_limit_that_cannot_work_is_an_error_of_the_configuration(self, tmp_path, limits, reason):
        with pytest.raises(ConfigError, match=reason):
            replay(Schedule.steady(2, 2), page_bytes=PAGE, storage_dir=tmp_path, **limits)
        assert_nothing_is_left(tmp_path)

    def test_what_cannot_be_had_is_refused_with_what_can_and_does_not_end_it(self):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        plugin = {"plugin": {"gds": {"active": True}}}
        with Worker(Setup("try_finally", page_bytes=PAGE, pages=2), baseline_fds=40) as worker:
            with pytest.raises(
                WorkerError, match="baseline_fds is 39; expected 40, which the worker itself has open"
            ):
                worker.request("limits", baseline_fds=39, nofile_limit=None)
            for limit in (2, 40, hard + 1):
                with pytest.raises(WorkerError, match=f"nofile_limit is {limit}; expected 41 to {hard}"):
                    worker.request("limits", baseline_fds=None, nofile_limit=limit)
            with pytest.raises(WorkerError, match="plugin GDS cannot be created"):
                worker.open(Setup(plugin_params=plugin, page_bytes=PAGE, pages=2))
            with pytest.raises(WorkerError, match="request 'sing' is unknown; expected one of open, limits"):
                worker.request("sing")
            with pytest.raises(WorkerError, match="step 'flood' is unknown; expected one of open, register"):
                worker.call("set", 2, fault=["flood", 1, "error"])
            with pytest.raises(
                WorkerError, match="operation 'sing' is unknown; expected one of set, get, exi"
            ):
                worker.call("sing", 2)
            worker.open(Setup("try_finally", page_bytes=PAGE, pages=2))
            assert worker.call("set", 2).pages_ok == 2


class TestWorkerHangs:
    @pytest.fixture(autouse=True)
    def running_fork_server(self, tmp_path_factory):
        """Its imports take longer than the workers here are given."""
        Worker(Setup("scoped", page_bytes=PAGE), storage_dir=tmp_path_factory.mktemp("first")).close()

    def test_one_that_does_not_come_up_in_time_is_ended(self, tmp_path):
        started = time.monotonic()
        with pytest.raises(WorkerError, match=r"did not answer within 0\.001 s"):
            replay(ENDLESS, page_bytes=PAGE, storage_dir=tmp_path, timeout=0.001)
        assert time.monotonic() - started < 10
        assert_nothing_is_left(tmp_path)

    def test_one_that_is_stopped_is_ended(self, tmp_path):
        """A stopped process takes no other signal than SIGKILL."""
        started = time.monotonic()
        with (
            with_the_worker_of_a_replay(
                tmp_path, lambda worker: worker.suspend(), when=lambda _: workers_of()
            ),
            pytest.raises(WorkerError, match=r"did not answer within 2 s"),
        ):
            replay(ENDLESS, "try_finally", page_bytes=PAGE, storage_dir=tmp_path, timeout=2)
        assert 2 <= time.monotonic() - started < PATIENCE
        assert_nothing_is_left(tmp_path)


@dataclass(frozen=True)
class Parent:
    """A process of its own that replays into a folder until it is stopped."""

    process: subprocess.Popen[bytes]
    storage_dir: Path

    def is_in_the_middle(self) -> bool:
        return in_the_middle(self.storage_dir)


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Parent]]:
    """Two processes in the middle of a replay, one for each test that ends one."""
    with ExitStack() as stack:
        found = {}
        for name in ("interrupted", "killed"):
            storage_dir = tmp_path_factory.mktemp(name)
            parent = subprocess.Popen(
                [sys.executable, "-c", ENDLESS_REPLAY, str(storage_dir)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            stack.enter_context(parent)
            stack.callback(parent.kill)
            found[name] = Parent(parent, storage_dir)
        wait_until(lambda: all(parent.is_in_the_middle() for parent in found.values()))
        yield found


class TestParentDies:
    def test_ctrl_c_ends_worker_and_folder_before_the_process_is_over(self, parents):
        parent = parents["interrupted"]
        (worker,) = workers = workers_of(parent.process.pid)
        assert worker.is_running()
        parent.process.send_signal(signal.SIGINT)
        _, errors = parent.process.communicate(timeout=PATIENCE)
        assert have_ended(workers)
        assert_nothing_is_left(parent.storage_dir)
        assert parent.process.returncode == -signal.SIGINT
        assert errors.decode().rstrip().endswith("KeyboardInterrupt")

    def test_the_worker_of_a_killed_process_cleans_up_by_itself_and_the_fork_server_ends(self, parents):
        parent = parents["killed"]
        workers, fork_servers = workers_of(parent.process.pid), fork_servers_of(parent.process.pid)
        assert (len(workers), len(fork_servers)) == (1, 1)
        parent.process.kill()
        parent.process.wait()
        wait_until(
            lambda: have_ended(workers + fork_servers) and not list(parent.storage_dir.iterdir()), seconds=10
        )


def test_an_exception_in_the_with_block_ends_it_and_closing_again_does_no_harm(tmp_path):
    worker = Worker(Setup(page_bytes=PAGE, pages=1), storage_dir=tmp_path)
    assert worker.folder.parent == tmp_path
    assert [found.pid for found in workers_of()] == [worker.pid]
    assert worker.call("set", 1).pages_ok == 1
    with pytest.raises(ZeroDivisionError), worker:
        raise ZeroDivisionError
    worker.close()
    assert_nothing_is_left(tmp_path)
    assert not os.path.exists(f"/proc/{worker.pid}")
