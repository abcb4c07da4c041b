"""Real SGLang servers: the leak reaches the limit, ours stays flat, two servers share a folder, and all of it ends.

Each class starts its servers once.  A start takes 20 to 60 seconds.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from processes import have_ended, wait_until

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.server import Answer, Server, ServerError, install
from hicache_nixl.lab.server.server import pages_of

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

OLD, NEW = "0.5.11", "0.5.23"
CACHED = 2048  # tokens of a prompt whose pages are stored; the last 40 do not fill a page
PROMPT = CACHED + 40
PAGES = CACHED // 64
FILES = 2 * PAGES  # keys and values
LIMIT = 400  # descriptors: some 62 at the start, and room for five calls that leave 64 open
START = 180.0  # seconds
RUN = [sys.executable, "-c", "from hicache_nixl.cli import main; main()", "server", "run"]
RANDOM = random.Random(0)


@pytest.fixture(scope="module", autouse=True)
def environments() -> None:
    """Skip where what the servers need is not there and cannot be installed."""
    for version in (OLD, NEW):
        try:
            install(version)
        except (ConfigError, ServerError) as error:
            pytest.skip(f"sglang {version} cannot be installed here: {error}")


def new_prompt() -> list[int]:
    """Return a prompt that no server has seen."""
    return [RANDOM.randrange(3, 1000) for _ in range(PROMPT)]


def ask_twice(server: Server) -> tuple[Answer, Answer]:
    """Ask a new prompt, and again when its pages are in storage only."""
    prompt, before = new_prompt(), server.stored()
    cold = server.ask(prompt)
    assert (cold.storage, cold.host, cold.device) == (0, 0, 0)
    server.settle(before + PAGES)
    server.flush()
    return cold, server.ask(prompt)


def open_now(server: Server) -> int:
    return len(server.fds())


@pytest.fixture(scope="class")
def leaking() -> Iterator[Server]:
    with Server(OLD, nofile_limit=LIMIT) as server:
        server.ask([5] * 8)
        yield server


@pytest.fixture(scope="class", params=["scoped", "pooled"])
def lifetime(request) -> str:
    return request.param


@pytest.fixture(scope="class")
def servers(lifetime, tmp_path_factory) -> Iterator[list[Server]]:
    """Start a server of 0.5.11 and one of 0.5.23, with one storage folder."""
    folder = tmp_path_factory.mktemp("pages")
    options = {"capacity_gb": 1} if lifetime == "pooled" else {}
    made = [
        Server(version, "hicache_nixl", lifetime=lifetime, options=options, storage_dir=folder)
        for version in (OLD, NEW)
    ]
    with made[0], made[1]:
        yield made


class TestSglangsOwnBackendOf0511:
    """Its descriptors reach the limit; the server then answers without its storage, for ever."""

    def test_each_backup_and_each_prefetch_leaves_its_files_open_until_there_are_no_more(self, leaking):
        counts = [open_now(leaking)]
        for _ in range(2):
            prompt, before = new_prompt(), leaking.stored()
            cold = leaking.ask(prompt)
            leaking.settle(before + PAGES)
            counts.append(open_now(leaking))
            leaking.flush()
            again = leaking.ask(prompt)
            counts.append(open_now(leaking))
            assert (again.storage, again.tokens) == (CACHED, cold.tokens)
        assert [after - before for before, after in pairwise(counts)] == [FILES] * 4
        for _ in range(2):
            cold, again = ask_twice(leaking)
            assert (again.storage, again.tokens) == (0, cold.tokens)
        assert open_now(leaking) > LIMIT - FILES
        assert "Too many open files" in leaking.log()

    def test_a_scheduler_that_is_killed_in_an_answer_is_an_error_in_bounded_time(self, leaking):
        since = time.monotonic()
        os.kill(leaking.pid, signal.SIGSTOP)  # so that the answer has begun and has no end
        with subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {leaking.pid}"]), pytest.raises(ServerError):
            leaking.ask(new_prompt())
        assert time.monotonic() - since < 60
        wait_until(leaking.process.ended)


class TestOurs:
    """A server of 0.5.11 and one of 0.5.23, with one storage folder."""

    def test_descriptors_stay_and_outputs_are_those_without_a_cache(self, servers):
        for server in servers:
            ask_twice(server)  # opens what is used from then on
            before = server.fds()
            for _ in range(3):
                cold, again = ask_twice(server)
                assert (again.storage, again.tokens) == (CACHED, cold.tokens)
            assert sorted(server.fds().target) == sorted(before.target)

    def test_what_one_has_stored_the_other_loads(self, servers):
        for first, second in (servers, servers[::-1]):
            prompt, before = new_prompt(), first.stored()
            cold = first.ask(prompt)
            first.settle(before + PAGES)
            found = second.ask(prompt)
            assert (found.storage, found.tokens) == (CACHED, cold.tokens)


class TestEnd:
    @pytest.fixture
    def temporary(self) -> Iterator[Path]:
        """The folder of temporary files; not one of pytest's, whose paths are too long for the server's sockets."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    @pytest.fixture
    def start(self, temporary, tmp_path) -> Iterator[subprocess.Popen[str]]:
        """``server run`` of our connector in a process group of its own, as a shell starts it."""
        options = [OLD, "--backend", "hicache_nixl", "--log", str(tmp_path / "log")]
        with subprocess.Popen(
            [*RUN, *options],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        ) as process:
            yield process
            process.kill()

    def tree_with_scheduler(self, pid: int) -> list[psutil.Process]:
        def named() -> bool:
            for one in command.children(recursive=True):
                with suppress(psutil.Error):
                    if "sglang::scheduler" in " ".join(one.cmdline()):
                        return True
            return False

        command = psutil.Process(pid)
        wait_until(named, START)
        return command.children(recursive=True)

    def test_ctrl_c_ends_all_of_it_and_the_printed_commands_work_before(self, start, temporary):
        lines = []
        while not lines or not lines[-1].startswith("press Ctrl-C"):
            lines.append(start.stdout.readline())
            assert lines[-1], lines
        watch = next(line for line in lines if " watch " in line)
        first = next(at for at, line in enumerate(lines) if line.startswith("    url="))
        with subprocess.Popen(
            ["sh", "-c", "".join(lines[first : lines.index("    done\n") + 1])],
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        ) as loop:
            answers = [loop.stdout.readline() for _ in range(4)]
            os.killpg(loop.pid, signal.SIGKILL)
        assert [answer.split()[0] for answer in answers] == ["new", "again"] * 2
        loaded = [f'"storage":{pages_of(range(700)) * 64}' in answer for answer in answers]
        assert loaded == [False, True] * 2
        tree = self.tree_with_scheduler(start.pid)
        assert int(watch.split(" watch ")[1].split()[0]) in [one.pid for one in tree]
        os.killpg(start.pid, signal.SIGINT)
        printed, _ = start.communicate(timeout=60)
        assert (start.returncode, printed) == (0, "ended; no process of the server is left\n")
        assert have_ended(tree)
        assert list(temporary.iterdir()) == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
    def test_a_command_that_is_ended_while_the_server_starts_leaves_nothing(self, start, temporary, number):
        tree = self.tree_with_scheduler(start.pid)
        start.send_signal(number)
        start.communicate(timeout=60)
        wait_until(lambda: have_ended(tree))
        wait_until(lambda: list(temporary.iterdir()) == [])

    def test_a_server_that_cannot_start_says_why_and_leaves_nothing(self):
        others = psutil.Process().children()  # of tests that ran before in this process
        with pytest.raises(
            ServerError, match=r"^the server .*'capacity' is unknown; did you mean capacity_gb\?:\n"
        ):
            Server(OLD, "hicache_nixl", options={"capacity": 1}).__enter__()
        assert set(psutil.Process().children()) <= set(others)
