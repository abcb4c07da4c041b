"""The command doctor: one screen, its exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest
from support import TESTS
from test_cli import Run
from test_cli import run as run_in_this_process

from hicache_nixl.config import QUEUES
from hicache_nixl.lab.worker.releases import source_of

run_here = run_in_this_process  # the fixture that runs a command line
COMMAND = [sys.executable, "-c", "from hicache_nixl.cli import main; main()", "doctor"]
SCREEN = (45, 80)  # lines and columns; some lines more where something is wrong
PATIENCE = 60


def run(*arguments: str, prefix: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its output in a pipe."""
    return subprocess.run(
        [*prefix, *COMMAND, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def by_what(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in rows}


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for temporary files of the healthy run."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def healthy(temporary: Path) -> subprocess.CompletedProcess[str]:
    """A run on this machine as it is."""
    return run("--storage-dir", str(temporary), TMPDIR=str(temporary), COLUMNS="80")


class TestOneScreen:
    def test_it_ends_with_0_and_nothing_on_stderr(self, healthy):
        assert (healthy.returncode, healthy.stderr) == (0, "")
        assert healthy.stdout.endswith("The connector can run here.\n")

    def test_it_fits_the_screen_and_has_no_control_characters(self, healthy):
        lines = healthy.stdout.splitlines()
        assert max(map(len, lines)) <= SCREEN[1]
        assert len(lines) <= SCREEN[0]
        assert re.findall(r"[^\n -~]", healthy.stdout) == []

    def test_every_plugin_has_a_line_with_its_state_in_each_build(self, healthy):
        lines = [line.split() for line in healthy.stdout.splitlines()]
        assert ["NIXL", "plugin", "nixl_cu12", "nixl_cu13", "reason"] in lines
        assert ["POSIX", "ok", "ok"] in lines
        assert ["OBJ", "ok", "no", "libcuobjclient.so.1", "is", "not", "installed"] in lines
        assert any(line[:3] == ["GDS", "no", "no"] for line in lines)

    @pytest.mark.parametrize(
        "what",
        [
            *(f"queue {queue}" for queue in QUEUES),
            *("open files", "storage folder", "file system", "O_DIRECT", "your SGLang", "this package"),
            *(
                "pages in files",
                "files, O_DIRECT",
                "pages in S3 (OBJ)",
                "GPU storage (GDS)",
                "pages in 3FS",
            ),
            *("notebooks, quick", "notebooks, full", "releases to compare"),
        ],
    )
    def test_every_check_has_its_line_with_a_state(self, healthy, what):
        assert re.search(rf"^{re.escape(what)} +(ok|note|no) +\S", healthy.stdout, re.MULTILINE)

    def test_the_leak_is_the_first_answer_and_what_can_run_the_second(self, healthy):
        answers = ("Which connector leaks?", "What can run here?", "This machine", "NIXL plugin")
        places = [healthy.stdout.index(f"\n{answer}") for answer in answers]
        assert places == sorted(places)

    def test_only_plugins_that_hicache_uses_are_shown(self, healthy):
        assert not {"GUSLI", "UCX", "INFINIA"} & set(healthy.stdout.split())

    def test_it_leaves_nothing(self, healthy, temporary):
        assert list(temporary.iterdir()) == []


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with a storage folder that is a file, few descriptors, and a build of NIXL that does not load."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "file").touch()
    (folder / "nixl_cu12").mkdir()
    (folder / "nixl_cu12" / "__init__.py").write_text("raise ImportError('not for this platform')\n")
    few = ("prlimit", "--nofile=64:64")
    ended = run("--json", "--storage-dir", f"{folder}/file", prefix=few, PYTHONPATH=str(folder))
    assert (ended.returncode, ended.stderr) == (1, "")
    return json.loads(ended.stdout)


class TestExitCodes:
    """0 is in TestOneScreen, 1 in TestBrokenMachine, 2 below."""

    @pytest.mark.parametrize("limit", [300, 1024])
    def test_few_descriptors_end_it_with_4_and_the_last_line_says_so(self, tmp_path, limit):
        ended = run("--storage-dir", str(tmp_path), prefix=("prlimit", f"--nofile={limit}:{limit}"))
        assert ended.returncode == 4
        assert ended.stdout.endswith("The connector can run here, but the limit of open files is too low.\n")

    @pytest.mark.slow
    def test_an_sglang_that_leaks_ends_it_with_3_and_the_last_line_says_so(self, tmp_path):
        wheel = source_of("sglang==0.5.11")
        with zipfile.ZipFile(wheel) as files:
            files.extractall(tmp_path / "site-packages")
        ended = run("--storage-dir", str(tmp_path), "--sglang", f"{tmp_path}/site-packages")
        assert ended.returncode == 3
        words = " ".join(ended.stdout.split())
        assert "leaks file descriptors (measured: 2 open files" in words
        assert words.endswith("The connector can run here. That of your SGLang leaks.")

    def test_the_keys_of_the_json_are_those_that_the_help_names(self, run_here: Run, broken):
        told = run_here("doctor --help").prose
        names = [*broken, *broken["machine"][0], *broken["builds"][0]]
        assert [name for name in names if name not in told] == []


class TestBrokenMachine:
    def test_it_is_not_usable_and_says_why(self, broken):
        assert broken["usable"] is False
        can_run = by_what(broken["can_run"])
        assert can_run["pages in files"]["detail"] == "no storage folder"
        assert can_run["pages in S3 (OBJ)"]["state"] == "no"

    def test_the_folder_has_a_way_out(self, broken):
        row = by_what(broken["machine"])["storage folder"]
        assert row["state"] == "no"
        assert row["detail"].endswith("/file (--storage-dir) cannot be used: it is a file")
        assert row["advice"] == "Choose a folder"

    def test_the_queues_were_tried_all_the_same(self, broken):
        rows = by_what(broken["machine"])
        assert rows["queue libaio"]["detail"] == "moves pages (tried in the folder for temporary files)"

    def test_the_limit_is_named(self, broken):
        row = by_what(broken["machine"])["open files"]
        assert row["state"] == "no"
        assert row["detail"].startswith("soft 64, hard 64")

    def test_the_build_that_cannot_be_loaded_is_named_and_the_other_was_tried(self, broken):
        cu12, cu13 = broken["builds"]
        assert cu12["problem"] == "ImportError: not for this platform"
        assert "POSIX" in [plugin["name"] for plugin in cu13["plugins"] if plugin["state"] == "ok"]


def test_where_nixl_cannot_be_loaded_it_ends_with_1_and_says_what_to_install(tmp_path):
    for package in ("nixl", "nixl_cu12", "nixl_cu13"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('not for this platform')\n")
    ended = run("--storage-dir", str(tmp_path), PYTHONPATH=str(tmp_path), COLUMNS="80")
    assert (ended.returncode, ended.stderr) == (1, "")
    words = " ".join(ended.stdout.split())
    assert "nixl_cu13 ImportError: not for this platform" in words
    assert "pip install nixl" in words
    assert ended.stdout.endswith("The connector cannot run here.\n")
    assert "Traceback" not in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= SCREEN[1]


@pytest.mark.parametrize(("name", "expected"), [("missing", "no such folder"), (".", "no SGLang in it")])
def test_a_folder_without_sglang_is_one_line_and_ends_with_2(run_here: Run, tmp_path, name, expected):
    ended = run_here(f"doctor --sglang {tmp_path}/{name}")
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(
        rf"error: --sglang \S+: {expected}; expected the site-packages folder .*\n", ended.err
    )


def test_its_help_teaches(run_here: Run):
    words = run_here("doctor --help").prose
    for taught in (
        "--storage-dir",
        "--sglang",
        "--json",
        "Exit codes",
        "Nothing is left behind",
        "/mnt/nvme",
    ):
        assert taught in words


def test_ctrl_c_ends_it_with_its_processes_and_leaves_nothing(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(TESTS)}
    command, *arguments = [*COMMAND, "--storage-dir", str(tmp_path)]
    with pexpect.spawn(
        command,
        arguments,
        env=environment,
        dimensions=SCREEN,
        encoding="utf8",
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell may have started us with it ignored
    ) as terminal:
        terminal.expect("trying queues of the POSIX plugin", timeout=PATIENCE)
        started = psutil.Process(terminal.pid).children(recursive=True)
        assert started
        terminal.sendintr()
        terminal.expect(pexpect.EOF, timeout=PATIENCE)
        terminal.wait()
        assert terminal.exitstatus == 130
        assert "Traceback" not in terminal.before
    psutil.wait_procs(started, timeout=PATIENCE)
    assert [process for process in started if process.is_running()] == []
    assert list(tmp_path.iterdir()) == []
