"""reproduce while it runs: bars in a terminal, lines elsewhere, and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import psutil
import pyte
import pytest
from support import TESTS
from tiny_notebooks import BEGIN, FINISH, HOLD, write_notebook

ROWS, COLUMNS = 30, 110
PATIENCE = 60
WAIT = "import time\nfor _ in range(600): time.sleep(0.1)"
MAIN = """
import sys
from pathlib import Path
from hicache_nixl.cli import main
from hicache_nixl.lab import execute
root = Path(sys.argv.pop(1))
execute.notebooks = lambda: {path.stem: path for path in sorted(root.glob("*.ipynb"))}
execute.runs_folder = lambda: root / "runs"
main()
"""


def command(root: Path) -> list[str]:
    return [sys.executable, "-c", MAIN, str(root), "reproduce", "--run", "mine"]


@pytest.fixture
def environment() -> dict[str, str]:
    paths = [str(TESTS), str(TESTS.parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TERM": "xterm-256color"}


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """Two notebooks that run to their end."""
    for name in ("01_first", "02_second"):
        write_notebook(tmp_path / f"{name}.ipynb", BEGIN.format(name=name), HOLD_AS.format(name), FINISH)
    return tmp_path


HOLD_AS = 'run.claim(lab.exactly("sum_{}", "One and one is two.", 2, 1 + 1))'


PAUSE = "import time; time.sleep(3)"  # so that the time left is shown long enough to be seen


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A notebook that states a claim and then runs for a minute, and one after it."""
    for name in ("01_long", "02_never"):
        write_notebook(tmp_path / f"{name}.ipynb", BEGIN.format(name=name), HOLD, PAUSE, WAIT, FINISH)
    return tmp_path


@pytest.fixture
def terminal(long: Path, environment: dict[str, str]) -> Iterator[pexpect.spawn]:
    program, *arguments = command(long)
    with pexpect.spawn(
        program,
        arguments,
        env=environment,
        dimensions=(ROWS, COLUMNS),
        encoding="utf8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have it ignored
    ) as spawned:
        yield spawned


def screen(raw: str) -> list[str]:
    seen = pyte.Screen(COLUMNS, ROWS)
    pyte.Stream(seen).feed(raw)
    return [line.rstrip() for line in seen.display if line.strip()]


@pytest.mark.slow
def test_where_there_is_no_terminal_it_is_a_line_for_each_notebook_that_ended(short, environment):
    line = [*command(short), "--notebook", "2,1"]
    ended = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    lines = [rf"0{n}_{name}: \d+ s, 1 of 1 claims hold\n" for n, name in ((1, "first"), (2, "second"))]
    assert re.fullmatch("".join(lines), ended.stderr)
    assert not {"\r", "\x1b"} & set(ended.stdout + ended.stderr)
    assert ended.stdout.rstrip().endswith(
        "2 of 2 claims hold; the report is " + os.path.relpath(short / "runs/mine/index.html")
    )


@pytest.mark.slow
class TestInATerminal:
    def test_a_bar_shows_the_time_left_and_ctrl_c_says_what_is_kept_and_unfinished(self, terminal, long):
        terminal.expect(r"01_long \S*━.* cell [1-5] of 7 \d+ s, about \d+ s left", timeout=PATIENCE)
        terminal.expect(r"cell 5 of 7", timeout=PATIENCE)
        started = psutil.Process(terminal.pid).children(recursive=True)
        assert started
        terminal.sendintr()
        terminal.expect(r"interrupted, ending \.\.\.", timeout=1)
        terminal.expect(pexpect.EOF, timeout=PATIENCE)
        terminal.wait()
        lines = screen(terminal.before)
        assert terminal.exitstatus == 130
        assert "1 of 1 claims hold; interrupted in notebook 01, cell 6; not run: 02" in lines
        assert [line.split() for line in lines if line.startswith(" 0")] == [
            ["01_long", "interrupted"],
            ["02_never", "not", "run"],
        ]
        assert [
            text for text in ("Traceback", "Kernel died", "never retrieved") if text in terminal.before
        ] == []
        shown = os.path.relpath(long / "runs" / "mine")
        assert f"kept in {shown}/" in "\n".join(lines)
        assert (long / "runs" / "mine" / "claims.csv").exists()
        _, alive = psutil.wait_procs(started, timeout=PATIENCE)
        assert alive == []

    @pytest.mark.slow
    def test_sigterm_ends_it_as_ctrl_c_does(self, terminal):
        terminal.expect(r"cell 5 of 7", timeout=PATIENCE)
        terminal.kill(signal.SIGTERM)
        terminal.expect("interrupted in notebook 01", timeout=PATIENCE)
        terminal.expect(pexpect.EOF, timeout=PATIENCE)
        terminal.wait()
        assert terminal.exitstatus == 130
