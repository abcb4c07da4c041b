"""hicache-nixl watch as a person and a script use it: on real workers, in a real terminal, and with a signal."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pexpect
import psutil
import pyte
import pytest
from support import unshare, without_capabilities
from test_cli import Run, shown
from test_cli import run as run_in_this_process

from hicache_nixl import lab
from hicache_nixl.watch.recording import read_watch
from hicache_nixl.watch.verdict import Watch

run = run_in_this_process  # the fixture that runs a command line
COMMAND = [sys.executable, "-c", "from hicache_nixl.cli import main; main()", "watch"]
ROWS, COLUMNS = 40, 110
PATIENCE = 60
SOON = ("--horizon", "0.1")  # so that seconds are enough to say that nothing leaks
EVERY = 0.05  # seconds from call to call, on average
KEYS = 4
RATE = re.compile(r"leak: storage files grow by [\d,.]+ per minute \[([\d,.]+), ([\d,.]+)\], found after")


@dataclass
class Server:
    """A worker under steady traffic; ``counted`` has its storage files after each call, counted by itself."""

    worker: lab.Worker
    counted: list[tuple[float, int]] = field(default_factory=list)

    @property
    def arguments(self) -> list[str]:
        folder = str(self.worker.folder)
        return [str(self.worker.pid), "--storage-dir", folder, "--interval", "0.1", *SOON]

    def per_minute(self, since: float, until: float) -> tuple[float, float]:
        """Return the rate at which it left files open in that time, as sure as it is: to a call more or less."""
        (first, before), *_, (last, after) = [row for row in self.counted if since <= row[0] <= until]
        minutes, left, call = (last - first) / 60, after - before, 2 * KEYS
        return (left - call) / minutes, (left + call) / minutes


@contextmanager
def serving(lifetime: str, keys: int = KEYS) -> Iterator[Server]:
    """Run a worker that sets and gets pages, as long as the block lasts.

    The calls come irregularly: samples that kept step with them would all meet the same moment of a call, for seconds.
    """
    setup = lab.Setup(lifetime, queue="posix_aio", page_bytes=4096, pages=keys)
    over, pace = threading.Event(), random.Random(1)
    with lab.Worker(setup) as worker:
        server = Server(worker)

        def traffic() -> None:
            due = time.monotonic()
            while not over.is_set():
                try:
                    row = worker.call("get" if len(server.counted) % 2 else "set", keys)
                except lab.WorkerError:  # the test has killed it
                    return
                server.counted.append((time.monotonic(), row.storage_fds))
                due += EVERY * pace.uniform(0.5, 1.5)
                over.wait(max(0.0, due - time.monotonic()))

        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            yield server
        finally:
            over.set()
            thread.join()


class Terminal:
    """A command in a terminal of its own, and what stands on the screen."""

    def __init__(self, arguments: Sequence[str]):
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        environment = {**os.environ, "TERM": "xterm-256color"}
        self.child = pexpect.spawn(
            COMMAND[0], [*COMMAND[1:], *arguments], dimensions=(ROWS, COLUMNS), env=environment
        )

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).strip()

    def read(self) -> bool:
        """Take in what was printed; False at the end."""
        try:
            data = self.child.read_nonblocking(65536, timeout=0.1)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.text())):
            alive = self.read()
            assert alive or re.search(pattern, self.text()), self.text()
            assert time.monotonic() < deadline, self.text()
        return found

    def end(self) -> int:
        """Wait for the end of the command and return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.read():
            assert time.monotonic() < deadline, self.text()
        self.child.wait()
        return self.child.exitstatus

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close(force=True)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def cursor_is_shown(raw: bytes) -> bool:
    return raw.rfind(b"\x1b[?25h") > raw.rfind(b"\x1b[?25l") >= 0


def plain(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command without a terminal."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=100, **options)


@contextmanager
def sleeping(**options: object) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"], **options) as child:
        try:
            yield child
        finally:
            child.kill()


class TestInATerminal:
    def test_a_leaking_worker_is_found_within_seconds_with_its_true_rate(self, tmp_path):
        with (
            serving("leaky") as server,
            Terminal([*server.arguments, "--csv", f"{tmp_path}/w.csv"]) as terminal,
        ):
            terminal.wait_for("undecided: 1 sample of")
            began = time.monotonic()
            terminal.wait_for(r"storage files .* per minute .* leak")
            assert time.monotonic() - began < 15
            live = terminal.text()
            time.sleep(2)
            ended = time.monotonic()
            terminal.child.sendcontrol("c")
            assert terminal.end() == 3
            least, most = server.per_minute(began, ended)
        low, high = RATE.search(terminal.text()).groups()
        assert number(low) <= most
        assert least <= number(high)
        assert most - least < 0.1 * least
        assert number(high) < 3 * number(low)  # on a busy machine the calls come irregularly
        for row in ("storage files", "all descriptors", "regular files", "sockets"):
            assert re.search(rf"^ *{row} +\d", live, re.MULTILINE), live
        assert re.search(r"limit: \d+ of \d+ descriptors open \(soft RLIMIT_NOFILE\); \d+.* left \[", live)
        assert "interrupted; watched for" in terminal.text()
        assert cursor_is_shown(terminal.raw)
        seen = Watch.of(read_watch(tmp_path / "w.csv"))
        assert seen.answer() == re.search(r"leak: .*", terminal.text())[0]

    def test_a_worker_that_closes_what_it_opens_has_none(self):
        with serving("scoped") as server, Terminal(server.arguments) as terminal:
            terminal.wait_for(r"no leak seen in \d+ s: storage files do not grow")
            terminal.child.sendcontrol("c")
            assert terminal.end() == 0
        assert "interrupted; watched for" in terminal.text()
        assert cursor_is_shown(terminal.raw)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_with_the_summary_and_the_cursor_back(self, number):
        with sleeping() as child, Terminal([str(child.pid)]) as terminal:
            terminal.wait_for("undecided: 1 sample of")
            terminal.child.kill(number)
            assert terminal.end() == 4
        assert "interrupted; watched for" in terminal.text()
        assert cursor_is_shown(terminal.raw)

    def test_a_narrow_terminal_shows_the_table_too(self):
        with sleeping() as child, Terminal([str(child.pid)]) as terminal:
            terminal.screen.resize(ROWS, 60)
            terminal.child.setwinsize(ROWS, 60)
            terminal.wait_for("all descriptors")


class TestWithoutATerminal:
    def test_a_script_has_lines_the_summary_and_exit_code_3(self):
        with serving("leaky") as server:
            answer = plain(*server.arguments, "--duration", "4")
        assert answer.returncode == 3
        lines = answer.stdout.splitlines()
        assert lines[0].startswith(f"watching process {server.worker.pid} (")
        assert lines[0].endswith("every 0.1 s for 4 s")
        assert "undecided: 1 sample of" in lines[1]
        assert "leak: storage files grow" in lines[2]
        assert lines[3].startswith("duration reached; watched for 4 s")
        assert RATE.match(lines[4])
        assert "\x1b" not in answer.stdout
        assert answer.stderr == ""

    def test_one_without_a_leak_ends_with_0(self, run: Run):
        """A call opens 20 files; with 48, a machine too busy for pauses between the calls needs more than 5 s."""
        with serving("try_finally", keys=10) as server:
            answer = run(f"watch {' '.join(server.arguments)} --duration 5")
        assert answer.code == 0
        assert re.search(r"no leak seen in \d s: storage files do not grow", answer.out)

    def test_a_process_that_ends_is_said_to_and_judged_by_what_was_seen(self):
        with serving("leaky") as server:
            arguments = [*COMMAND, *server.arguments]
            with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as watching:
                out = ""
                while "leak: storage files grow" not in out:
                    out += watching.stdout.readline()
                psutil.Process(server.worker.pid).kill()
                out += watching.stdout.read()
        assert watching.returncode == 3
        assert f"process {server.worker.pid} has ended; watched for" in out

    def test_one_that_ends_without_a_leak_leaves_0(self, run: Run):
        with subprocess.Popen(
            ["bash", "-c", "sleep 1; exec 3</dev/null; sleep 1; exec 3<&-; sleep 1"]
        ) as child:
            answer = run(f"watch {child.pid} --interval 0.05 --horizon 0.1")
        assert answer.code == 0
        assert f"process {child.pid} has ended; watched for" in answer.out

    def test_sigterm_ends_it_with_the_summary(self):
        with sleeping() as child:
            with subprocess.Popen([*COMMAND, str(child.pid)], stdout=subprocess.PIPE, text=True) as watching:
                out = watching.stdout.readline() + watching.stdout.readline()
                watching.terminate()
                out += watching.stdout.read()
            assert watching.returncode == 4
        assert "interrupted; watched for" in out

    def test_without_a_storage_folder_the_regular_files_are_judged_and_their_folder_is_named(self, run: Run):
        with serving("leaky") as server:
            answer = run(f"watch {server.worker.pid} --interval 0.1 --duration 3")
        assert answer.code == 3
        assert "leak: regular files grow by" in answer.out
        assert f"add --storage-dir {server.worker.folder} to name them storage files" in answer.out

    def test_a_process_in_a_container_is_noted_once(self, run: Run, tmp_path):
        command = [
            *unshare(),
            "--pid",
            "--fork",
            "sh",
            "-c",
            f"mount -t tmpfs none {tmp_path}; echo; exec sleep 99",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as started:
            started.stdout.readline()
            inside = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()[0]
            try:
                answer = run(f"watch {inside} --storage-dir {tmp_path} --interval 0.05 --duration 1")
            finally:
                os.kill(int(inside), signal.SIGKILL)
        assert answer.code == 4
        assert "no storage file was seen open" in answer.out
        assert answer.out.count("runs in a container (PID 1 inside)") == 1

    def test_a_full_disk_ends_the_record_and_not_the_watch(self, tmp_path):
        command = ["prlimit", "--fsize=500", *COMMAND, "--csv", f"{tmp_path}/w.csv", "--interval", "0.05"]
        with sleeping() as child:
            answer = subprocess.run(
                [*command, *SOON, "--duration", "1", str(child.pid)],
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert answer.returncode == 4  # nothing was opened
        assert re.search(r"note: \S*w.csv ends after \d s: File too large", answer.stdout)
        assert re.search(r"watched for 1 s, (1\d|2\d) samples", answer.stdout)
        assert 1 <= len(read_watch(tmp_path / "w.csv")) < 10


class TestRefused:
    def test_a_process_of_another_user_is_named_with_the_way_out(self, run: Run):
        """Root without its capabilities is a user like any other; others are refused by the first process."""
        root = os.geteuid() == 0
        with sleeping(user=65534) if root else nullcontext() as child, without_capabilities():
            pid, user = (child.pid, psutil.Process(child.pid).username()) if root else (1, "root")
            answer = run(f"watch {pid}")
        assert answer.code == 2
        message = answer.error()
        assert message.startswith(f"process {pid} (")
        expected = f"belongs to {user} and cannot be inspected: run watch as {user} or with sudo"
        assert expected in message

    def test_the_way_out_is_not_what_was_done(self, run: Run):
        with sleeping() as child, without_capabilities():
            pid = 1 if psutil.Process(1).uids().effective == os.geteuid() else child.pid
            answer = run(f"watch {pid} --interval 0.05 --duration 0.6")
        assert "run watch as" not in answer.err

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ("", ["no PID was given", "pgrep"]),
            ("''", ["no PID was given", "pgrep"]),
            ("--children 12 13", ["--children", "expected one PID, not 2"]),
            ("--children '12\n13'", ["--children", "expected one PID, not 2"]),
            ("--all 12", ["--all finds the processes itself", "expected no PID"]),
            ("{pid} --all", ["--all finds the processes itself"]),
            ("--all", ["--all: no process with the title sglang::scheduler"]),
            ("--children {pid} --csv {tmp}/new.csv", ["--csv records one process"]),
            ("sglang", ["'sglang'", "the number of a process"]),
            ("1.5", ["'1.5'", "the number of a process"]),
            ("0", ["PID 0", "1 or more"]),
            ("-- -5", ["PID -5", "1 or more"]),
            ("4194305", ["PID 4194305", "no such process", "container", "docker inspect"]),
            ("{pid} --interval 0", ["--interval 0", "0.05 to 3600 seconds"]),
            ("{pid} --interval -1", ["--interval -1", "0.05 to 3600 seconds"]),
            ("{pid} --interval nan", ["--interval nan", "0.05 to 3600 seconds"]),
            ("{pid} --interval inf", ["--interval inf", "0.05 to 3600 seconds"]),
            ("{pid} --duration 0", ["--duration 0", "11 seconds or more", "12 samples"]),
            ("{pid} --duration nan", ["--duration nan", "expected a number of seconds"]),
            ("{pid} --duration inf", ["--duration inf", "goes on until Ctrl-C"]),
            ("{pid} --duration 1e300", ["--duration 1e+300", "at most"]),
            ("{pid} --prometheus nohost.invalid:9464", ["host nohost.invalid is unknown"]),
            ("{pid} --interval 2 --duration 21", ["--duration 21", "--interval 2", "22 seconds or more"]),
            ("{pid} --storage-dir {tmp}/missing", ["--storage-dir", "missing: No such file or directory"]),
            ("{pid} --storage-dir {tmp}/record.csv", ["--storage-dir", "record.csv: Not a directory"]),
            ("{pid} --horizon 0", ["--horizon 0", "expected hours"]),
            ("{pid} --horizon nan", ["--horizon nan", "expected hours"]),
            ("{pid} --png {tmp}/w.jpg", ["--png", "w.jpg", "ends in .png"]),
            ("{pid} --png {tmp}/missing/w.png", ["--png", "w.png", "an existing folder"]),
            ("{pid} --png {tmp}/old.png", ["--png", "old.png exists already", "a new file"]),
            ("{pid} --prometheus web", ["--prometheus web", "PORT or HOST:PORT"]),
            ("{pid} --prometheus 70000", ["--prometheus 70000", "1 to 65535"]),
            ("{pid} --prometheus 203.0.113.1:9464", ["--prometheus 203.0.113.1:9464", "Cannot assign"]),
            ("{pid} --csv {tmp}/record.csv", ["record.csv exists already", "a new file"]),
            ("{pid} --csv {tmp}/missing/new.csv", ["missing/new.csv: there is no folder"]),
        ],
        ids=shown,
    )
    def test_what_cannot_be_watched_is_one_line(self, run: Run, tmp_path, arguments, names):
        (tmp_path / "record.csv").write_text("precious")
        (tmp_path / "old.png").touch()
        answer = run(f"watch {arguments.format(tmp=tmp_path, pid=os.getpid())}")
        message = answer.error()
        assert answer.code == 2
        assert [name for name in names if name not in message] == []
        assert (tmp_path / "record.csv").read_text() == "precious"

    def test_nothing_is_written_for_a_process_that_cannot_be_watched(self, run: Run, tmp_path):
        assert run(f"watch 4194305 --csv {tmp_path}/new.csv").code == 2
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("option", ["--interval fast", "--duration long", "--every 3"])
    def test_an_option_that_is_none_is_named(self, run: Run, option):
        answer = run(f"watch 1 {option}")
        assert answer.code == 2
        assert option.split()[0] in answer.err


class TestHelp:
    def test_it_teaches_on_one_screen(self, run: Run):
        answer = run("watch --help")
        taught = ["--storage-dir", "--interval", "--csv", "--duration", "--horizon", "--prometheus", "--all"]
        taught += ["Exit codes", "scheduler", "3 leak", "4 undecided", "stays open between calls"]
        assert answer.code == 0
        assert [word for word in taught if word not in answer.prose] == []
        above, _, _ = answer.out.partition("╭")
        assert len(above.splitlines()) <= 26
        assert "Ctrl-C ends it" not in answer.prose
