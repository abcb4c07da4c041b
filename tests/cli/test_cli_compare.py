"""hicache-nixl compare in a shell and in CI: a short summary, JSON, and an exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hicache_nixl import lab
from hicache_nixl.cli.app import app
from hicache_nixl.cli.report import MOST
from hicache_nixl.lab.runs.run import Run


def make(folder: Path, *, left: int = 0, queue: str = "libaio", more: int = 0) -> Path:
    """A finished run of one notebook with a count, and ``more`` claims that hold."""
    run = Run("01_counts", folder, {"queue": queue}, strict=False)
    run.claim(lab.exactly("flat", "Nothing is left.", 0, left, "descriptors"))
    for number in range(more):
        run.claim(lab.exactly(f"more_{number}", "One is one.", 1, 1))
    run.finish()
    (folder / "notebooks").mkdir()
    source = Path(lab.__file__).parents[2] / "notebooks" / "01_reproduce_the_leak.ipynb"
    shutil.copy(source, folder / "notebooks" / "01_counts.ipynb")
    return folder


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_equal_runs_exit_with_0(tmp_path):
    answer = compare(make(tmp_path / "a"), make(tmp_path / "b"))
    assert answer.exit_code == 0, answer.output
    first, last = answer.stdout.splitlines()
    assert first == "claims   in both: 1, only in a: 0, only in b: 0"
    assert last.startswith("nothing is worse in b than in a; the comparison is ")


def test_a_claim_that_fails_now_exits_with_3_and_settings_come_first(tmp_path):
    answer = compare(make(tmp_path / "a"), make(tmp_path / "b", left=2, queue="io_uring", more=3))
    assert answer.exit_code == 3
    setting, claims, worse, last = answer.stdout.splitlines()
    assert setting == "setting  01: queue: libaio -> io_uring"
    assert claims == "claims   in both: 1, only in a: 0, only in b: 3"
    assert worse == "worse    claim flat: Nothing is left. 0 descriptors (holds) -> 2 descriptors (fails)"
    assert last.startswith("1 thing is worse in b than in a; ")


def test_fixed_is_better_and_exits_with_0(tmp_path):
    answer = compare(make(tmp_path / "a", left=2), make(tmp_path / "b"))
    assert answer.exit_code == 0
    assert "nothing is worse in b than in a; 1 better" in answer.stdout


@pytest.mark.parametrize(("left", "code"), [(0, 0), (2, 3)])
def test_json_has_the_same_and_nothing_else_is_on_stdout(tmp_path, left, code):
    answer = compare(make(tmp_path / "a"), make(tmp_path / "b", left=left), "--json")
    result = json.loads(answer.stdout)
    assert answer.exit_code == code
    assert len(result["worse"]) == (left > 0)
    assert (result["first"], result["second"], result["claims_in_both"]) == ("a", "b", 1)
    assert Path(result["page"]).exists()


def test_many_changes_are_a_few_lines(tmp_path):
    a, b = make(tmp_path / "a", more=20), make(tmp_path / "b", more=20)
    table = (b / "claims.csv").read_text()
    (b / "claims.csv").write_text(table.replace(",holds,", ",fails,"))
    answer = compare(a, b)
    assert answer.exit_code == 3
    assert f"and {21 - MOST} more worse, on the page" in answer.stdout
    assert len(answer.stdout.splitlines()) == MOST + 3
