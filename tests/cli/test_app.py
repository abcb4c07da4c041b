"""What all commands share: help, version, completion in a shell, JSON, and files that are not overwritten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import typer.main
from test_cli import Run, shown
from test_cli import run as run_in_this_process

from hicache_nixl import __version__
from hicache_nixl.cli import app
from hicache_nixl.cli.app import PATHS, check_new_files, print_json
from hicache_nixl.errors import ConfigError

run = run_in_this_process  # the fixture that runs a command line
COMMANDS = sorted(typer.main.get_command(app).commands)
SERVER = [["server", name] for name in ("install", "list", "remove", "run")]
MAIN = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'hicache-nixl'; from hicache_nixl.cli import main; main()",
]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_h_is_help(run: Run, command):
    short, long = run(f"{command} -h"), run(f"{command} --help")
    assert short.code == long.code == 0
    assert short.out == long.out != ""


def test_version_is_one_line(run: Run):
    answer = run("--version")
    assert (answer.code, answer.out) == (0, f"hicache-nixl {__version__}\n")


class TestCompletion:
    def complete(self, *words: str) -> list[str]:
        environment = {
            **os.environ,
            "_HICACHE_NIXL_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["hicache-nixl", *words]),
            "COMP_CWORD": str(len(words)),
        }
        ended = subprocess.run(MAIN, env=environment, capture_output=True, text=True, timeout=60)
        assert ended.stderr == ""
        return ended.stdout.split()

    def test_commands_are_completed(self):
        assert self.complete("re") == ["reproduce", "replay", "report"]

    def test_options_are_completed(self):
        assert "--storage-dir" in self.complete("doctor", "--st")

    def test_it_can_be_installed_for_a_shell(self, tmp_path):
        pytest.importorskip("shellingham")
        command = " ".join([sys.executable, "-c", f'"{MAIN[2]}"', "--install-completion; true"])
        ended = subprocess.run(
            ["bash", "-c", command],  # the shell is that of the parent process
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "completion installed" in ended.stdout, ended.stderr
        (script,) = [path for path in tmp_path.rglob("*.sh") if path.is_file()]
        assert "_HICACHE_NIXL_COMPLETE=complete_bash" in script.read_text()


class TestJson:
    def test_numbers_of_numpy_and_what_json_does_not_have(self, capsys):
        values = {"a": np.int64(3), "b": [np.float64("nan"), 1.5], "c": {"d": Path("/x")}, 4: np.bool_(True)}
        print_json(values)
        assert json.loads(capsys.readouterr().out) == {"a": 3, "b": [None, 1.5], "c": {"d": "/x"}, "4": True}


class TestNewFile:
    def test_a_name_in_an_existing_folder_is_not_refused_and_nothing_is_left_there(self, tmp_path):
        check_new_files(csv=tmp_path / "new.csv", png=None)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "says"),
        [("there.csv", "exists already"), ("no/new.csv", "there is no folder"), (".", "it is a folder")],
    )
    def test_what_exists_is_never_overwritten(self, tmp_path, name, says):
        (tmp_path / "there.csv").write_text("precious")
        with pytest.raises(ConfigError, match=f"^--csv .*{says}"):
            check_new_files(csv=tmp_path / name)
        assert (tmp_path / "there.csv").read_text() == "precious"

    def test_a_folder_that_cannot_be_written_to_is_refused(self):
        with pytest.raises(ConfigError, match=r"^--csv /proc/new.csv: .*; expected a new file in a folder"):
            check_new_files(csv=Path("/proc/new.csv"))

    def test_an_interrupt_leaves_no_file(self, monkeypatch, tmp_path):
        touch = Path.touch

        def interrupted(path: Path, **options: bool) -> None:
            touch(path, **options)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Path, "touch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check_new_files(csv=tmp_path / "new.csv")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", ["replay steady", "watch {pid}"])
    def test_a_table_and_its_figure_are_two_files(self, run: Run, tmp_path, command):
        answer = run(f"{command.format(pid=os.getpid())} --csv {tmp_path}/x.png --png {tmp_path}/./x.png")
        assert answer.code == 2
        assert answer.error().endswith("name two different files")
        assert list(tmp_path.iterdir()) == []


class TestEmptyPath:
    """As an unset variable of a shell gives."""

    @pytest.mark.parametrize(
        ("line", "option"),
        [
            ("replay --csv ''", "--csv"),
            ("replay steady --png ''", "--png"),
            ("replay --html=", "--html"),
            ("replay --storage-dir '' --mla", "--storage-dir"),
            ("watch 1 --csv ''", "--csv"),
            ("watch 1 --png ''", "--png"),
            ("watch 1 --storage-dir ''", "--storage-dir"),
            ("doctor --storage-dir=", "--storage-dir"),
            ("doctor --sglang ''", "--sglang"),
            ("compare a b --out ''", "--out"),
            ("server run 0.5.11 --log ''", "--log"),
        ],
        ids=shown,
    )
    def test_it_is_not_the_current_folder(self, run: Run, line, option):
        answer = run(line)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err == f"error: {option}: the path is empty; give one, or leave the option out\n"

    @pytest.mark.parametrize(
        "names", [[name] for name in COMMANDS if name != "server"] + SERVER, ids=" ".join
    )
    def test_it_is_refused_by_every_option_that_is_a_path(self, names):
        command = typer.main.get_command(app)
        for name in names:
            command = command.commands[name]
        hints = get_type_hints(command.callback)
        paths = [one.opts[0] for one in command.params if hints.get(one.name) == Path | None]
        assert [option for option in paths if option not in PATHS] == []

    def test_an_empty_schedule_is_unknown(self, run: Run):
        assert "schedule '' is unknown" in run("replay ''").error()


class TestOutput:
    """A disk that is full, and a reader that has gone away."""

    @pytest.mark.parametrize(
        "line",
        [
            "-h",
            "replay steady --calls 1 --keys 1 --page-bytes 4096 --json",
            "watch {pid} --interval 0.05 --duration 1",
        ],
    )
    def test_that_cannot_be_written_is_one_line(self, line):
        with open("/dev/full", "w") as full:
            ended = subprocess.run(
                [*MAIN, *line.format(pid=os.getpid()).split()],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )
        expected = "error: cannot write to standard output: No space left on device\n"
        assert (ended.returncode, ended.stderr) == (1, expected)

    @pytest.mark.parametrize(("line", "code"), [("-h", 0), ("doctor -h", 0), ("report {tmp}", 2)])
    def test_that_nobody_reads_changes_no_exit_code(self, tmp_path, line, code):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as unread:
            ended = subprocess.run(
                [*MAIN, *line.format(tmp=tmp_path).split()],
                stdout=unread,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )
        assert ended.returncode == code
        assert "Traceback" not in ended.stderr
