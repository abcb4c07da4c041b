"""A server that does not start, hangs, dies, or is refused: the cause, and nothing left.  The servers are scripts."""

from __future__ import annotations

import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.server import Environment, Server, ServerError, process, server
from hicache_nixl.lab.server.process import Process

NOWHERE = Environment("0.5.11", Path(sys.executable), Path("/nowhere"))
FAKE = Path(__file__).with_name("fake_server.py")
BAD = "sleep 1000 & echo starting; echo 'OSError: [Errno 24] Too many open files'; echo aborted; "


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder in which a server's own folder is made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def shell(command: str) -> Callable[[int], list[str]]:
    return lambda port: ["sh", "-c", command]


@pytest.fixture
def make_server(monkeypatch, tmp_path) -> Callable[..., Server]:
    """Make servers that are a script."""

    def make(how: str, **options: object) -> Server:
        monkeypatch.setattr(server, "install", lambda version, progress: NOWHERE)
        monkeypatch.setattr(server, "_model_folder", lambda environment, name: tmp_path)
        arguments = (how, "sglang::scheduler")
        monkeypatch.setattr(
            server,
            "command",
            lambda _, model, port, *more: [sys.executable, str(FAKE), str(port), *arguments],
        )
        return Server("0.5.11", **options)

    return make


class TestStart:
    @pytest.mark.parametrize(
        ("command", "says"),
        [
            (
                BAD + "exit 3",
                r"^the server ended with 3: OSError: \[Errno 24\] Too many open files:\nstarting\n",
            ),
            (
                BAD + "kill -6 $$",
                r"^the server was ended by signal 6: OSError: .*:\nstarting\n(.*\n)*aborted",
            ),
            ("exit 0", r"^the server ended with 0:\n$"),
            (BAD + "wait", r"^the server was not healthy after 0.5 s: OSError: .*:\nstarting\n"),
        ],
        ids=["ends", "aborts", "ends at once", "hangs"],
    )
    def test_it_fails_with_the_cause_and_the_last_lines(self, monkeypatch, temporary, command, says):
        monkeypatch.setattr(process, "HEALTHY", 0.5 if command.endswith("wait") else 60)
        others = psutil.Process().children()  # of tests that ran before in this process
        with pytest.raises(ServerError, match=says):
            Process(NOWHERE, shell(f"{command} # {temporary}"))
        assert not [
            one for one in psutil.process_iter(["cmdline"]) if str(temporary) in str(one.info["cmdline"])
        ]
        assert set(psutil.Process().children()) <= set(others)
        assert list(temporary.iterdir()) == []

    def test_temporary_files_are_in_the_folder_that_is_removed(self, temporary):
        with pytest.raises(ServerError, match=f":\n{temporary}/hicache-nixl-server-"):
            Process(NOWHERE, shell("mktemp"))
        assert list(temporary.iterdir()) == []

    def test_a_process_that_is_no_sglang_is_refused(self, make_server, temporary):
        def start() -> None:
            Process(NOWHERE, lambda port: [sys.executable, str(FAKE), str(port), "answer", "other"])

        with pytest.raises(ServerError, match="no process of the server is named sglang::scheduler"):
            start()
        assert list(temporary.iterdir()) == []

    def test_a_port_that_is_taken(self, temporary):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"^port {port}: Address already in use; choose another"):
                Process(NOWHERE, shell("exit"), port=port)
        assert list(temporary.iterdir()) == []

    def test_a_port_that_is_none(self):
        with pytest.raises(ConfigError, match=r"^port 70000: expected 1 to 65535; leave"):
            Process(NOWHERE, shell("exit"), port=70000)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("file", "/file: it is a file, not a folder"),
            ("file/folder", "/file/folder: there is no folder .*/file"),
            ("a/b", "/a/b: there is no folder .*/a"),
        ],
    )
    def test_a_storage_folder_that_cannot_be_made(self, tmp_path, temporary, name, says):
        (tmp_path / "file").touch()
        for start in (partial(Process, NOWHERE, shell("exit")), partial(Server, "0.5.11")):
            with pytest.raises(ConfigError, match=f"^storage folder {tmp_path}{says}$"):
                start(storage_dir=tmp_path / name)
        assert list(temporary.iterdir()) == []

    def test_a_storage_folder_that_cannot_be_written_to(self):
        with pytest.raises(ConfigError, match=r"^storage folder /proc/none cannot be written to: "):
            Server("0.5.11", storage_dir="/proc/none")

    def test_a_limit_of_descriptors_that_cannot_work(self, temporary):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for limit, says in (
            (hard + 1, f"; the hard limit is {hard}$"),
            (199, "; a server needs 200 to start"),
        ):
            for start in (partial(Process, NOWHERE, shell("exit")), partial(Server, "0.5.11")):
                with pytest.raises(ConfigError, match=f"^nofile_limit is {limit}{says}"):
                    start(nofile_limit=limit)
        assert list(temporary.iterdir()) == []


class TestRunning:
    def test_all_of_it_ends_with_the_block(self, make_server, temporary):
        with make_server("answer") as running:
            assert running.ask([1, 2, 3]).tokens == (1,)
            processes = running.process.processes()
            assert len(processes) == 3
            assert running.pid == processes[1].pid
            assert running.process.ended() == ""
        assert not [one for one in processes if one.is_running()]
        assert list(temporary.iterdir()) == []

    def test_a_server_that_is_still_busy_is_asked_again_to_forget_its_pages(self, make_server, monkeypatch):
        with make_server("answer") as running:
            monkeypatch.setattr(server, "ENDED", 0.0)
            with pytest.raises(ServerError, match="HTTP Error 400"):
                running.flush()
            monkeypatch.setattr(server, "ENDED", 10.0)
            running.flush()

    def test_a_storage_folder_that_was_given_stays(self, make_server, tmp_path):
        with make_server("answer", storage_dir=tmp_path / "a") as running:
            (running.storage_dir / "page").touch()
        assert (tmp_path / "a" / "page").exists()

    @pytest.mark.parametrize(
        ("how", "says"),
        [
            ("die", "gave no answer: it broke off; its last lines:\nRuntimeError: the scheduler is gone"),
            ("hang", "gave no answer: timed out; its last lines:\n$"),
            ("refuse", "gave no answer: HTTP Error 400: too long; its last lines:\n$"),
        ],
    )
    def test_an_answer_that_does_not_come_is_an_error_in_bounded_time(
        self, make_server, monkeypatch, how, says
    ):
        monkeypatch.setattr(server, "ANSWERED", 1.0 if how == "hang" else 60)
        with make_server(how) as running:
            since = time.monotonic()
            with pytest.raises(ServerError, match=says):
                running.ask([1, 2, 3])
            assert time.monotonic() - since < 30

    def test_how_it_ended_by_itself_is_told(self, make_server):
        with make_server("die") as running:
            with pytest.raises(ServerError):
                running.ask([1, 2, 3])
            running.process._keeper.wait(30)
            assert running.process.ended() == (
                "the server ended with 3: RuntimeError: the scheduler is gone:\nRuntimeError: the scheduler is gone"
            )


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ({"backend": "file"}, "nixl, hicache_nixl"),
        ({"lifetime": "none"}, "scoped"),
        ({"layout": "page_last"}, "page_first"),
        ({"model": "huge"}, "small, larger"),
    ],
    ids=["backend", "lifetime", "layout", "model"],
)
def test_an_option_that_is_unknown_is_refused_with_those_that_are_known(option, known):
    (name, value), *_ = option.items()
    with pytest.raises(ConfigError, match=f"^{name}: '{value}' is unknown; expected one of .*{known}"):
        Server("0.5.11", **option)
