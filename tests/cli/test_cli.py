"""The command: what it prints, what it writes, and one line for what cannot work."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import nbformat
import pytest
from tiny_notebooks import FAIL, failing_notebook, holding_notebook

from hicache_nixl import cli
from hicache_nixl.lab import execute as reproduction

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Answer:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def prose(self) -> str:
        """What was printed, without frames and line breaks."""
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", self.out).split())

    def error(self) -> str:
        """Return the one line, after any progress bar, of a command that failed."""
        before, mark, message = self.err.rpartition("error: ")
        assert mark, self.err
        assert len(message.splitlines()) == 1, self.err
        assert before == "" or before.endswith("\n")
        return message.rstrip()


Run = Callable[[str], Answer]


def shown(value: object) -> str:
    """Name a test after the command line, not after what is expected of it."""
    return value if isinstance(value, str) else ""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line as the installed command does, in this process."""

    def run_line(line: str) -> Answer:
        monkeypatch.setattr("sys.argv", ["hicache-nixl", *shlex.split(line)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Answer(int(ended.value.code or 0), ANSI.sub("", printed.out), ANSI.sub("", printed.err))

    return run_line


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of runs, away from the project's own."""
    monkeypatch.setattr(reproduction, "runs_folder", lambda: tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, runs: Path, tmp_path: Path) -> Path:
    """Two notebooks of a few cells in the place of the project's; the second has a claim that fails."""
    paths = [holding_notebook(tmp_path, "01_holds"), failing_notebook(tmp_path, "02_fails")]
    monkeypatch.setattr(reproduction, "notebooks", lambda: {path.stem: path for path in paths})
    return runs


def test_the_installed_command_is_this_one():
    (script,) = entry_points(group="console_scripts", name="hicache-nixl")
    assert script.load() is cli.main


def test_ctrl_c_before_a_command_runs_is_no_traceback(run, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["hicache_nixl.cli.app"], "app", interrupted)
    assert run("doctor") == Answer(130, "", "interrupted\n")


def test_ctrl_c_in_a_command_is_one_word(run, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hicache_nixl.doctor.diagnosis.diagnose", interrupted)
    assert run("doctor") == Answer(130, "", "interrupted\n")


def test_the_command_is_there_before_torch_is():
    """Its import takes longer than all else that --help, watch and report do."""
    code = "import sys, hicache_nixl.cli, hicache_nixl.lab.report; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


class TestHelp:
    @pytest.mark.parametrize(
        ("line", "taught"),
        [
            ("--help", ["replay", "reproduce", "bench", "report", "compare"]),
            ("report --help", ["The folder of a run", "runs/NAME/index.html", "interrupted", "Exit codes"]),
            (
                "compare --help",
                ["FIRST", "SECOND", "--out", "Worse is", "--json", "hicache-nixl compare runs/ssd runs/nvme"],
            ),
            (
                "replay --help",
                ["--storage-dir", "--model", "--layers", "--csv", "--png", "--json", "--queue", "--all"],
            ),
            (
                "replay --help",
                ["columns operation and keys", "pr24671, single_call, steady", "server.log", "Exit codes"],
            ),
            ("reproduce --help", ["-p", "NAME=VALUE", "--profile", "--notebook", "--run", "--model"]),
            ("reproduce --help", ["or full (", "-p storage_dir=", "Exit codes", "runs/NAME"]),
        ],
        ids=shown,
    )
    def test_it_teaches(self, run, line, taught):
        answer = run(line)
        assert answer.code == 0
        assert [word for word in taught if word not in answer.prose] == []

    def test_without_a_command_it_shows_the_help(self, run):
        assert "reproduce" in run("").prose


class TestReproduceRefuses:
    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ("-p page_byte=4096", ["'page_byte' is unknown", "page_bytes", "storage_dir", "nofile_limit"]),
            ("--notebook 01 -p margin=1.5", ["'margin' is unknown", "01_reproduce_the_leak", "nofile_limit"]),
            ("--notebook 1,77", ["'77' is unknown", "01_reproduce_the_leak"]),
            ("--notebook 77", ["'77'", "01_reproduce_the_leak", "02_apply_the_fix", "03_before_and_after"]),
            ("--profile slow", ["'slow'", "full, quick"]),
            ("--run taken", ["'taken' exists already", "another name"]),
            ("--run ''", ["run ''", "letters, digits"]),
            ("--run .", ["run '.'", "does not begin with '.'"]),
            ("--run ../out", ["'../out'", "letters, digits"]),
            (
                "-p page_bytes=big",
                ["page_bytes of 01_reproduce_the_leak", "'big' is not a whole number", "65536"],
            ),
            ("--notebook 01 -p watched=/no.csv", ["parameter watched of 01_reproduce_the_leak: /no.csv"]),
            ("--notebook 02 -p x=1", ["02_apply_the_fix accepts"]),
            ("-p storage_dir=/etc/passwd", ["storage_dir /etc/passwd: is a file"]),
            ("-p calls=-3", ["calls of 01_reproduce_the_leak", "-3 is too small", "1 or more"]),
            ("-p queue=uring", ["queue of 01_reproduce_the_leak", "'uring'", "libaio, io_uring, posix_aio"]),
            ("-p strict=1", ["strict of 01_reproduce_the_leak", "1 is not true or false", "True"]),
            ("-p run_dir=/tmp", ["run_dir", "--run"]),
            ("-p page_bytes", ["-p page_bytes", "name=value"]),
            ("-p =3", ["-p =3", "name=value"]),
            ("-p storage_dir={tmp}/missing", ["storage_dir", "missing", "existing, writable folder"]),
            ("-p storage_dir={tmp}/runs/taken/file", ["storage_dir", "existing, writable folder"]),
            ("-p storage_dir=2024", ["storage_dir", "2024"]),
            ("--model Qwen2.5-32B --page-size 999999999", ["--page-size 999999999", "reduce --page-size"]),
            ("--model gpt-9", ["'gpt-9' is unknown", "Qwen2.5-32B"]),
        ],
        ids=shown,
    )
    def test_it_is_one_line_that_names_what_is_known_before_anything_runs(
        self, run, runs, tmp_path, arguments, names
    ):
        (runs / "taken").mkdir(parents=True)
        (runs / "taken" / "file").touch()
        answer = run(f"reproduce {arguments.format(tmp=tmp_path)}")
        message = answer.error()
        assert answer.err == f"error: {message}\n"
        assert [name for name in names if name not in message] == []
        assert answer.code == 2
        assert answer.out == ""
        assert [path.name for path in runs.iterdir()] == ["taken"]


class TestReproduce:
    def test_a_run_whose_claims_hold_ends_with_0_and_says_where_everything_is(self, run, tiny, tmp_path):
        answer = run(
            f"reproduce --notebook 01 --run mine -p storage_dir={tmp_path} -p 'sizes=[3]' "
            "--model Qwen2.5-32B --layers 1 --page-size 4"
        )
        assert answer.code == 0
        assert re.search(
            r"1 of 2 claims hold, 1 inconclusive; the report is \S+runs/mine/index.html", answer.prose
        )
        assert (tiny / "mine" / "index.html").exists()
        assert re.search(r"inconclusive: cost: 1\.20 \[1\.10, 1\.30\], expected at most 1\.25", answer.prose)
        assert re.search(r"01_holds \d+ 1 of 2", answer.prose)
        assert re.fullmatch(r"01_holds: \d+ s, 1 of 2 claims hold, 1 inconclusive\n", answer.err)
        assert (tiny / "mine" / "html" / "01_holds.html").exists()
        known = json.loads((tiny / "mine" / "provenance.json").read_text())
        assert known["planned"] == ["01_holds"]
        given = known["notebooks"]["01_holds"]["parameters"]
        assert given == {"page_bytes": 16384, "mla": False, "sizes": [3]}

    def test_a_failing_claim_ends_with_1_and_names_notebook_cell_and_claim(self, run, tiny):
        answer = run("reproduce --notebook 02 --run mine -p strict=false")
        executed = nbformat.read(tiny / "mine" / "notebooks" / "02_fails.ipynb", as_version=4)
        numbers = {cell.source: cell.get("execution_count") for cell in executed.cells}
        assert answer.code == 1
        message = answer.error()
        expected = (
            f"02_fails, cell {numbers[FAIL]}, claim flat: The count is flat. expected 135, measured 167"
        )
        assert message.startswith(expected)
        assert re.search(r"The executed notebook is in \S*mine/notebooks/$", message)
        assert "1 of 2 claims hold, 1 fail" in answer.prose


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    root = tmp_path_factory.mktemp("finished")
    path = holding_notebook(root, "01_holds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduction, "runs_folder", lambda: root / "runs")
        patch.setattr(reproduction, "notebooks", lambda: {path.stem: path})
        return reproduction.execute(run="one").folder


class TestPages:
    def test_report_replaces_the_page_of_a_run(self, run, finished):
        (finished / "index.html").unlink()
        answer = run(f"report {finished}")
        assert answer.code == 0
        assert re.search(r"1 of 2 claims hold, 1 inconclusive; the report is \S+one/index.html", answer.prose)
        assert (finished / "index.html").exists()

    def test_a_folder_that_cannot_be_written_to_has_a_way_out(self, run, finished):
        page = finished / "index.html"
        page.unlink(missing_ok=True)
        page.mkdir()
        answer = run(f"report {finished}")
        page.rmdir()
        assert answer.code == 1
        assert answer.error().endswith("; copy the run to a folder of yours")

    def test_compare_says_where_its_page_is(self, run, finished):
        other = shutil.copytree(finished, finished.parent / "two")
        provenance = (other / "provenance.json").read_text()
        (other / "provenance.json").write_text(
            provenance.replace('"page_bytes": 65536', '"page_bytes": 4096')
        )
        answer = run(f"compare {finished} {other}")
        assert answer.code == 0
        assert re.search(r"the comparison is \S+one-vs-two/index.html", answer.prose)
        assert "01: page_bytes" in (finished.parent / "one-vs-two" / "index.html").read_text()

    @pytest.mark.parametrize(
        ("line", "names"),
        [
            ("report {tmp}/missing", ["run", "missing", "provenance.json", "runs/NAME"]),
            ("report ''", ["the name of the run is empty"]),
            ("report /etc/passwd", ["/etc/passwd is a file"]),
            ("report nowhere", ["run nowhere", "provenance.json"]),
            ("compare {tmp} {tmp}/missing", ["run", "provenance.json"]),
        ],
        ids=shown,
    )
    def test_what_is_no_run_is_one_line(self, run, tmp_path, line, names):
        answer = run(line.format(tmp=tmp_path))
        assert answer.code == 2
        assert [name for name in names if name not in answer.error()] == []
        assert [path.name for path in tmp_path.iterdir()] == []
