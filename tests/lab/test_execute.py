"""Notebooks that are run without a browser: what a run keeps, and how a failure is reported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from tiny_notebooks import (
    ALT,
    BEGIN,
    DIE,
    FAIL,
    FINISH,
    HOLD,
    WAVER,
    failing_notebook,
    holding_notebook,
    write_notebook,
)

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab import execute as reproduction
from hicache_nixl.lab.execute import Outcome, Step, execute, run_notebook
from hicache_nixl.lab.runs.claims import tally
from hicache_nixl.lab.runs.record import read_record


@dataclass(frozen=True)
class Ran:
    """A notebook that ran: what came of it, in which folder, and what it left around that."""

    outcome: Outcome
    folder: Path
    left_in_current_folder: list[str]

    @property
    def executed(self) -> nbformat.NotebookNode:
        return nbformat.read(self.folder / "notebooks" / f"{self.outcome.notebook}.ipynb", as_version=4)

    def count_of(self, source: str) -> int:
        """Return the execution count of a cell, as its reader sees it."""
        (cell,) = [cell for cell in self.executed.cells if cell.source == source]
        return cell.execution_count


def run_tiny(root: Path, notebook: Path, **parameters: Any) -> Ran:
    folder, here = root / "run", root / "here"
    folder.mkdir()
    here.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        outcome = run_notebook(notebook.stem, notebook, folder, parameters)
    return Ran(outcome, folder, [path.name for path in here.iterdir()])


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root = tmp_path_factory.mktemp("held")
    return run_tiny(root, holding_notebook(root), page_bytes=4096, sizes=[7])


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root = tmp_path_factory.mktemp("failed")
    return run_tiny(root, failing_notebook(root))


class Elements(HTMLParser):
    """The elements of a page: (tag, attributes)."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


class TestSuccess:
    def test_it_has_no_error_and_its_claims_are_counted(self, held):
        assert held.outcome.error is None
        assert (held.outcome.count("holds"), held.outcome.count("inconclusive")) == (1, 1)
        assert held.outcome.count("fails") == 0
        assert held.outcome.seconds > 0
        assert tally(held.outcome.claims) == "1 of 2 claims hold, 1 inconclusive"

    def test_the_executed_notebook_is_kept_with_its_outputs(self, held):
        code = [cell for cell in held.executed.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert held.executed.cells[-1].outputs

    def test_the_parameters_are_injected_and_noted(self, held):
        known = json.loads((held.folder / "provenance.json").read_text())
        assert known["notebooks"]["00_holds"]["parameters"] == {
            "page_bytes": 4096,
            "mla": False,
            "sizes": [7],
        }

    def test_figures_claims_and_the_page_are_in_the_folder(self, held):
        files = {str(path.relative_to(held.folder)) for path in held.folder.rglob("*") if path.is_file()}
        assert files == {
            "claims.csv",
            "figures.csv",
            "figures/00_holds_square.png",
            "figures/narrow/00_holds_square.png",
            "html/00_holds.html",
            "notebooks/00_holds.ipynb",
            "provenance.json",
        }

    def test_each_claim_has_the_number_of_the_cell_that_stated_it(self, held):
        cells = held.outcome.claims.set_index("id").cell
        assert cells.to_dict() == {"sum": str(held.count_of(HOLD)), "cost": str(held.count_of(WAVER))}

    def test_nothing_is_left_in_the_current_folder_and_no_kernel_lives(self, held):
        assert held.left_in_current_folder == []
        children = [" ".join(child.cmdline()) for child in psutil.Process().children()]
        assert [command for command in children if "ipykernel" in command] == []


@pytest.fixture
def page(held: Ran) -> str:
    return held.outcome.html.read_text()


@pytest.fixture
def elements(page: str) -> list[tuple[str, dict[str, str | None]]]:
    return Elements(page).found


class TestPage:
    def test_no_element_asks_another_host(self, elements):
        asked = [
            (tag, value)
            for tag, attributes in elements
            for name, value in attributes.items()
            if name in ("src", "srcset", "data", "action") or (name == "href" and tag != "a")
            if re.match(r"\s*(https?:)?//", value or "")
        ]
        assert asked == []

    def test_no_script_and_no_style_asks_another_host(self, page):
        assert re.findall(r"@import[^;]*|url\(\s*['\"]?(?:https?:)?//[^)]*", page) == []
        assert re.findall(r"(?:import|require)\w*\s*\(?\s*\[?['\"]https?://[^'\"]*", page) == []

    def test_figures_keep_their_alt_texts(self, elements):
        pictures = [attributes for tag, attributes in elements if tag == "img"]
        assert [picture["alt"] for picture in pictures] == [ALT]
        assert pictures[0]["src"].startswith("data:image/png;base64,")

    def test_it_shows_the_ledger(self, page):
        assert "One and one is two." in page


class TestFailingClaim:
    def test_the_error_names_the_notebook_the_cell_and_the_claim(self, failed):
        expected = (
            f"01_fails, cell {failed.count_of(FINISH)}: ClaimsFailedError: "
            f"cell {failed.count_of(FAIL)}, claim flat: The count is flat. expected 135, measured 167"
        )
        assert failed.outcome.error == expected

    def test_the_executed_notebook_is_kept_with_the_failing_cell_marked(self, failed):
        (finish,) = [cell for cell in failed.executed.cells if cell.source == FINISH]
        assert [output.ename for output in finish.outputs if output.output_type == "error"] == [
            "ClaimsFailedError"
        ]
        assert failed.executed.cells[-1].execution_count is None

    def test_claims_and_page_are_kept(self, failed):
        assert failed.outcome.claims.verdict.tolist() == ["holds", "fails"]
        assert "ClaimsFailedError" in failed.outcome.html.read_text()
        assert tally(failed.outcome.claims) == "1 of 2 claims hold, 1 fail"


def test_a_kernel_that_dies_is_an_error_that_names_the_notebook(tmp_path, capfd):
    last_words = "import os\nos.write(2, b'no more memory\\n')"
    ran = run_tiny(tmp_path, write_notebook(tmp_path / "02_dies.ipynb", last_words, DIE))
    assert ran.outcome.error.startswith("02_dies")
    assert "ernel died" in ran.outcome.error
    assert ran.outcome.error.endswith("no more memory")
    assert capfd.readouterr().err == ""  # nothing of it comes into the terminal
    assert ran.outcome.html.exists()


class TestCrash:
    """A cell that ends a notebook after claims were stated."""

    @pytest.mark.parametrize(
        ("cell", "error"),
        [
            pytest.param("1 / 0", "ZeroDivisionError: division by zero", id="it raises"),
            pytest.param(DIE, "DeadKernelError: Kernel died", id="the kernel dies"),
            pytest.param(
                "import time\ntime.sleep(60)",
                "CellTimeoutError: A cell timed out",
                marks=pytest.mark.slow,
                id="it takes too long",
            ),
        ],
    )
    def test_claims_made_before_it_are_kept_and_the_report_says_where_it_stopped(
        self, tmp_path, monkeypatch, cell, error
    ):
        monkeypatch.setattr(reproduction, "CELL_TIMEOUT", 10)  # enough for imports on a busy machine
        name = "02_stops"
        path = write_notebook(tmp_path / f"{name}.ipynb", BEGIN.format(name=name), HOLD, FAIL, cell, FINISH)
        ran = run_tiny(tmp_path, path)
        assert ran.outcome.claims.verdict.tolist() == ["holds", "fails"]
        first, second = ran.outcome.errors()
        assert "claim flat: The count is flat. expected 135, measured 167" in first
        assert second.startswith(f"{name}, cell 6: {error}")
        record = read_record(ran.outcome.html.parents[1])
        assert record.errors() == [second]
        assert (record.state, record.verdict()) == (
            "fails",
            f"1 of 2 claims hold, 1 fail; unfinished: {name}",
        )


class TestExecute:
    """A whole run from Python, on two small notebooks in the place of the project's."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        paths = [holding_notebook(tmp_path, "01_holds"), failing_notebook(tmp_path, "02_fails")]
        monkeypatch.setattr(reproduction, "notebooks", lambda: {path.stem: path for path in paths})
        monkeypatch.setattr(reproduction, "runs_folder", lambda: tmp_path / "runs")

    def test_it_returns_the_outcomes_the_verdict_and_the_page(self, tmp_path):
        result = execute(["01"], parameters={"page_bytes": 4096}, run="mine")
        assert result.folder == tmp_path / "runs" / "mine"
        assert [outcome.notebook for outcome in result.outcomes] == ["01_holds"]
        assert result.verdict == "1 of 2 claims hold, 1 inconclusive"
        assert result.page == result.folder / "index.html"
        assert result.page.exists()
        assert (result.errors(), result.not_run, result.interrupted) == ([], {}, None)

    def test_a_failed_claim_is_an_error_of_the_result_and_no_exception(self):
        result = execute(["02"])
        assert re.fullmatch(r"quick-\d{8}-\d{6}", result.folder.name)
        (error,) = result.errors()
        assert re.match(
            r"02_fails, cell \d, claim flat: The count is flat\. expected 135, measured 167", error
        )
        assert result.page.exists()

    @pytest.mark.slow
    def test_a_failed_claim_does_not_keep_later_notebooks_from_running(self, monkeypatch, tmp_path):
        cells = (BEGIN.format(name="01_other"), HOLD.replace("sum", "other"), FINISH)
        paths = [failing_notebook(tmp_path, "00_fails"), write_notebook(tmp_path / "01_other.ipynb", *cells)]
        monkeypatch.setattr(reproduction, "notebooks", lambda: {path.stem: path for path in paths})
        result = execute()
        assert [outcome.notebook for outcome in result.outcomes] == ["00_fails", "01_other"]
        assert (len(result.errors()), result.unfinished) == (1, ())

    def test_ctrl_c_keeps_what_has_run_and_names_what_is_unfinished(self, monkeypatch):
        def interrupted_in_the_second(name: str, *arguments: Any) -> Outcome:
            if name == "02_fails":
                raise KeyboardInterrupt
            return run_notebook(name, *arguments)

        monkeypatch.setattr(reproduction, "run_notebook", interrupted_in_the_second)
        result = execute()
        assert (result.interrupted, result.page) == ("02_fails", None)
        assert [outcome.notebook for outcome in result.outcomes] == ["01_holds"]
        assert result.unfinished == ("02_fails",)
        assert result.verdict == "1 of 2 claims hold, 1 inconclusive; unfinished: 02_fails"
        assert (result.folder / "html" / "01_holds.html").exists()

    def test_ctrl_c_while_the_report_is_made_keeps_everything_else(self, monkeypatch):
        def interrupted(record: Any) -> Path:
            raise KeyboardInterrupt

        monkeypatch.setattr(reproduction, "build", interrupted)
        result = execute(["01"])
        assert (result.interrupted, result.unfinished, result.page) == ("the report", (), None)
        assert result.verdict == "1 of 2 claims hold, 1 inconclusive"

    def test_a_run_that_a_crash_ended_names_what_is_unfinished(self, monkeypatch, tmp_path):
        """It is no verdict on the notebooks that did not run."""
        cells = (BEGIN.format(name="00_crashes"), HOLD, DIE)
        paths = [write_notebook(tmp_path / "00_crashes.ipynb", *cells), tmp_path / "01_holds.ipynb"]
        monkeypatch.setattr(reproduction, "notebooks", lambda: {path.stem: path for path in paths})
        result = execute()
        assert result.verdict == "1 of 1 claims hold; unfinished: 00_crashes, 01_holds"
        assert len(result.errors()) == 1

    def test_the_steps_count_code_cells_and_end_with_the_outcome(self):
        steps: list[Step] = []
        result = execute(["01"], watch=steps.append)
        assert [(step.notebook, step.done, step.cells) for step in steps[:-1]] == [
            ("01_holds", done, 7) for done in range(8)
        ]
        assert steps[-1] == Step("01_holds", 7, 7, result.outcomes[0])

    @pytest.mark.parametrize(
        "options",
        [
            {"wanted": ["77"]},
            {"profile": "slow"},
            {"parameters": {"page_byte": 1}},
            {"parameters": {"queue": "uring"}},
            {"run": "../out"},
        ],
        ids=str,
    )
    def test_what_cannot_work_is_refused_before_anything_runs(self, tmp_path, options):
        with pytest.raises(ConfigError):
            execute(**options)
        assert not (tmp_path / "runs").exists()


class TestRunFolder:
    @pytest.fixture(autouse=True)
    def runs(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.setattr(reproduction, "runs_folder", lambda: tmp_path / "runs")
        return tmp_path / "runs"

    def test_a_new_name_makes_a_folder(self, runs):
        assert reproduction.new_run_folder("my-disk_2.0+x") == runs / "my-disk_2.0+x"
        assert (runs / "my-disk_2.0+x").is_dir()

    def test_a_run_that_exists_is_not_written_into_again(self, runs):
        reproduction.new_run_folder("mine")
        with pytest.raises(ConfigError, match=r"run 'mine' exists already .* choose another name"):
            reproduction.new_run_folder("mine")

    @pytest.mark.parametrize("name", ["../mine", "a/b", ".hidden", "..", "two words", "", "a\0b", "a\n"])
    def test_a_name_that_is_no_plain_folder_name_is_refused(self, runs, name):
        with pytest.raises(ConfigError, match="expected a name of letters, digits"):
            reproduction.new_run_folder(name)
        assert not runs.exists()

    @pytest.mark.parametrize("name", ["mine", "x" * 300], ids=["runs is a file", "too long"])
    def test_a_folder_that_cannot_be_made_is_an_error_of_the_package(self, runs, name):
        if name == "mine":
            runs.touch()
        with pytest.raises(ConfigError, match="run '"):
            reproduction.new_run_folder(name)

    def test_a_name_of_its_own_tells_profile_and_time(self):
        assert re.fullmatch(r"quick-\d{8}-\d{6}", reproduction.default_run_name("quick"))


@pytest.mark.slow
def test_papermill_from_another_folder_writes_where_it_was_told(tmp_path):
    """Relative paths are those of the folder that papermill is called in."""
    notebook = holding_notebook(tmp_path)
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", f"../{notebook.name}", "out.ipynb"]
    ended = subprocess.run(
        [*command, "-p", "run_dir", "mine"],
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"mine", "out.ipynb"}
    assert (tmp_path / "here" / "mine" / "claims.csv").exists()
