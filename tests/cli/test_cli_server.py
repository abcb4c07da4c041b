"""The command server: what it teaches, lists, asks and refuses, and a server (a script) that it runs until a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import have_ended, wait_until
from test_cli import Run, shown
from test_cli import run as run_in_this_process

from hicache_nixl.cli import server_output
from hicache_nixl.lab.server import versions

run = run_in_this_process  # the fixture that runs a command line
FAKE = Path(__file__).parents[1] / "lab" / "server" / "fake_server.py"
# ``server run`` of a script in the place of SGLang; its last argument is how the script answers.
PROGRAM = f"""
import sys
from pathlib import Path
from hicache_nixl.lab import server as package
from hicache_nixl.lab.server import Environment, server
fake = lambda *_: Environment("0.5.11", Path(sys.executable), Path("/nowhere"))
package.install = server.install = fake
server._model_folder = lambda *_: Path("/nowhere")
how = sys.argv.pop()
server.command = lambda _, model, port, *more: [
    sys.executable, {str(FAKE)!r}, str(port), how, "sglang::scheduler"]
from hicache_nixl.cli import main
main()
"""


STARTING = "starting sglang 0.5.11 (backend nixl, layout page_first), which takes 20 s or more; log: "
DETAILS = '"cached_tokens_details":'


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty folder for what is installed."""
    monkeypatch.setenv("HICACHE_NIXL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(cache: Path, name: str, size: int) -> None:
    """Put a file into the folder of servers."""
    path = cache / "servers" / name / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * size)


@pytest.mark.parametrize(
    ("line", "taught"),
    [
        ("server --help", ["server install 0.5.11", "server run 0.5.11", "list", "remove", "without a GPU"]),
        ("server install --help", ["3.5 GB", "Ctrl-C keeps", "HICACHE_NIXL_CACHE", "Exit codes"]),
        ("server list --help", ["--json", "installed, bytes"]),
        ("server remove --help", ["--yes", "Exit codes"]),
        ("server run --help", ["--backend", "--lifetime", "--layout", "--nofile-limit", "--storage-dir", "--port"]),
        ("server run --help", ["--model", "--log", "--nofile-limit 400", "cached_tokens_details of the second answer is null", "Exit codes"]),
    ],
    ids=shown,
)  # fmt: skip
def test_the_help_teaches(run: Run, line, taught):
    answer = run(line)
    assert answer.code == 0
    assert [word for word in taught if word not in answer.prose] == []


class TestList:
    def test_nothing_is_installed(self, run: Run, cache):
        answer = run("server list")
        assert answer.code == 0
        assert all(f"{version} no" in answer.prose for version in versions())
        assert answer.out.endswith(f"\n0 bytes in {cache}/servers\n")
        assert not cache.exists()

    def test_json_has_what_is_installed_and_the_sizes(self, run: Run, cache):
        from hicache_nixl.lab.server import environment

        for folder in environment._folders("0.5.11"):
            put(cache, folder.name, 1000)
            (folder / environment.WHOLE).touch()
        (environment._folders("0.5.11")[0] / f".step-{environment._connector_step()}").touch()
        put(cache, environment._folders("0.5.23")[1].name, 10)
        put(cache, "model-small", 5)
        found = json.loads(run("server list --json").out)
        assert {key: found[key] for key in ("folder", "bytes", "common", "other")} == {
            "folder": f"{cache}/servers",
            "bytes": 2015,
            "common": 1000,
            "other": 5,
        }
        assert found["releases"][0] == {"version": "0.5.11", "installed": True, "bytes": 1000}
        assert found["releases"][-1] == {"version": "0.5.23", "installed": False, "bytes": 10}
        assert "0.5.23 in part 10 bytes" in run("server list").prose

    def test_a_cache_that_is_no_folder_is_an_error(self, run: Run, monkeypatch):
        monkeypatch.setenv("HICACHE_NIXL_CACHE", "/dev/null")
        for line in ("server list", "server install 0.5.11", "server remove --yes"):
            answer = run(line)
            assert (answer.code, answer.out) == (2, "")
            assert answer.error().startswith("/dev/null/servers: ")
            assert answer.error().endswith("; set HICACHE_NIXL_CACHE to a folder that can be written to")


class TestRemove:
    def test_nothing_is_no_error(self, run: Run, cache):
        assert run("server remove").out == "0 bytes were freed\n"

    def test_it_needs_yes_where_it_cannot_ask(self, run: Run, cache):
        put(cache, "model-small", 2048)
        answer = run("server remove")
        assert answer.code == 2
        assert answer.error() == f"{cache}/servers has 2.0 KiB; give --yes to remove it"
        assert run("server remove --yes").out == "2.0 KiB were freed\n"
        assert not (cache / "servers").exists()

    @pytest.mark.parametrize(("typed", "code"), [("n\n", 1), ("y\n", 0)])
    def test_it_asks_in_a_terminal(self, cache, typed, code):
        pexpect = pytest.importorskip("pexpect")
        put(cache, "model-small", 2048)
        command = ["-c", "from hicache_nixl.cli import main; main()", "server", "remove"]
        terminal = pexpect.spawn(sys.executable, command, timeout=60, encoding="utf-8", dimensions=(24, 200))
        terminal.expect_exact("servers with 2.0 KiB? [y/N]:")
        terminal.send(typed)
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == code
        assert (cache / "servers").exists() == (code == 1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("server run 0.5.11 --backend file", "backend: 'file' is unknown; expected one of nixl, hicache_nixl"),
        (
            "server run 0.5.11 --lifetime pooled",
            "--lifetime pooled has no effect with --backend nixl; expected hicache_nixl",
        ),
        ("server run 0.5.11 --layout x", "layout: 'x' is unknown; expected one of layer_first, page_first, "),
        ("server run 0.5.11 --model x", "model: 'x' is unknown; expected one of small, larger"),
        ("server run 0.5.11 --log {tmp}", "--log {tmp}: it is a folder; expected the name of a new file"),
        ("server run 0.5.11 --storage-dir ''", "--storage-dir: the path is empty; give one, or leave the option out"),
        ("server run 0.5.11 --storage-dir {tmp}/a/b", "storage folder {tmp}/a/b: there is no folder {tmp}/a"),
        ("server run 0.5.11 --nofile-limit 99999999", "nofile_limit is 99999999; the hard limit is "),
        ("server run 0.5.11 --nofile-limit 199", "nofile_limit is 199; a server needs 200 to start"),
        ("server run one", "sglang one is not a version; expected one such as 0.5.11; releases that work: "),
        ("server install 0.0.0.1", "sglang 0.0.0.1 is not available: "),
    ],
    ids=shown,
)  # fmt: skip
def test_what_cannot_work_is_one_line_and_ends_with_2(run: Run, cache, tmp_path, monkeypatch, line, says):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    answer = run(line.format(tmp=tmp_path))
    assert (answer.code, answer.out) == (2, "")
    assert answer.error().startswith(says.format(tmp=tmp_path))


def ask(lines: list[str]) -> str:
    """Paste the loop that was printed into a shell; return what it prints until the server has ended."""
    first = next(at for at, line in enumerate(lines) if line.startswith("    url="))
    last = lines.index("    done\n")
    done = subprocess.run(
        ["sh", "-c", "".join(lines[first : last + 1])], capture_output=True, text=True, timeout=60
    )
    return done.stdout


def test_a_command_for_another_shell_begins_with_the_path_of_this_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bin/hicache-nixl", "server"])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "hicache-nixl").touch(0o755)
    assert server_output.program() == f"{tmp_path}/bin/hicache-nixl"
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    assert server_output.program() == "hicache-nixl"
    monkeypatch.setattr(sys, "argv", ["/somewhere/hicache_nixl/cli/__main__.py"])
    assert server_output.program() == f"{sys.executable} -m hicache_nixl.cli"


class TestRunning:
    """Three processes: the command, the keeper, and the server with a child that it does not end."""

    @pytest.fixture
    def start(self, tmp_path) -> Iterator[object]:
        """Start ``server run`` in a process group of its own, as a shell does; return it and what it printed."""
        (tmp_path / "temporary").mkdir()
        environ = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
        started = []

        def start(how: str, *options: str) -> tuple[subprocess.Popen[str], list[str]]:
            command = [sys.executable, "-c", PROGRAM, "server", "run", "0.5.11", *options, how]
            process = subprocess.Popen(
                command,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                process_group=0,
            )
            started.append(process)
            lines = []
            while not lines or not lines[-1].startswith("press Ctrl-C"):
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr.read()
            return process, lines

        yield start
        for process in started:
            process.kill()
            process.communicate()

    @pytest.mark.parametrize(
        ("number", "ignored"),
        [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False)],
        ids=["Ctrl-C", "started with & by a script", "SIGTERM"],
    )
    def test_a_signal_ends_every_process(self, start, tmp_path, number, ignored):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else signal.getsignal(signal.SIGINT)
        try:
            process, lines = start("answer")
        finally:
            signal.signal(signal.SIGINT, before)
        tree = psutil.Process(process.pid).children(recursive=True)
        assert len(tree) == 3
        text = "".join(lines)
        assert f" watch {tree[1].pid} --storage-dir {tmp_path}/temporary/hicache" in text
        assert lines[0].startswith("sglang 0.5.11 (backend nixl, layout page_first): http://127.0.0.1:")
        os.killpg(process.pid, number)
        printed, errors = process.communicate(timeout=60)
        assert (process.returncode, printed) == (0, "ended; no process of the server is left\n")
        assert errors == STARTING + "stderr\n"
        assert have_ended(tree)
        assert list((tmp_path / "temporary").iterdir()) == []

    def test_killed_it_takes_its_server_with_it(self, start, tmp_path):
        process, _ = start("answer")
        tree = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        wait_until(lambda: have_ended(tree))
        wait_until(lambda: list((tmp_path / "temporary").iterdir()) == [])

    def test_a_server_that_ends_by_itself_is_told(self, start, tmp_path):
        process, lines = start("die", "--log", str(tmp_path / "log"))
        ask(lines)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert errors == (
            f"{STARTING}{tmp_path}/log\n"
            "error: the server ended with 3: RuntimeError: the scheduler is gone:\nRuntimeError: the scheduler is gone\n"
        )
        assert (tmp_path / "log").read_text() == "RuntimeError: the scheduler is gone\n"

    def test_its_log_is_on_stderr(self, start):
        process, lines = start("die")
        ask(lines)
        assert process.communicate(timeout=60)[1].startswith(
            f"{STARTING}stderr\nRuntimeError: the scheduler is gone\nerror: "
        )

    def test_the_loop_asks_new_prompts_twice_until_the_server_ends(self, start, tmp_path):
        process, lines = start("cached", "--log", str(tmp_path / "log"))
        assert ask(lines) == f'new   {DETAILS}null\nagain {DETAILS}{{"storage":640}}\n' * 2
        process.communicate(timeout=60)
        asked = (tmp_path / "log").read_text().splitlines()[:8]
        prompts = [json.loads(body)["input_ids"] for body in asked[::2]]
        assert asked[1::2] == ["/flush_cache"] * 4
        assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
        assert [len(prompt) for prompt in prompts] == [700] * 4
