"""The notebooks as they are committed: parameters, size, and nothing of the machine that wrote them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from jupyter_client import KernelManager

from hicache_nixl import lab
from hicache_nixl.config import FILE_PER_PIECE
from hicache_nixl.lab import figures, plan
from hicache_nixl.lab.worker.setup import Setup

NOTEBOOKS = plan.notebooks()
PARAMETERS = {name: papermill.inspect_notebook(str(path)) for name, path in NOTEBOOKS.items()}
ASKED_FOR = {
    "storage_dir",
    "queue",
    "page_bytes",
    "keys_per_call",
    "calls",
    "layout",
    "mla",
    "baseline_fds",
    "nofile_limit",
    "repeats",
    "run_dir",
    "strict",
}
KERNEL = "hicache-nixl"
TYPES = {"str", "int", "float", "bool", "list"}
LONGEST_CELL = 12  # lines
MOST_CELLS = 12  # of code
MOST_WORDS = 500
PR = "https://github.com/sgl-project/sglang/pull/24671"
MAY_STATE = {"PR #24671"}  # the only number that a sentence of the ledger may contain as a literal
BEGUN = {
    "storage_dir",
    "run_dir",
    "strict",
    "keys_per_call",
    *Setup.__dataclass_fields__,
}  # used by lab.begin


@pytest.fixture(params=NOTEBOOKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS[name], as_version=4)


@pytest.fixture
def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_kernel_that_they_name_is_registered_and_runs_in_this_environment():
    manager = KernelManager(kernel_name=KERNEL)
    assert Path(manager.kernel_spec.resource_dir).is_relative_to(sys.prefix)
    assert manager.format_kernel_cmd()[0] == sys.executable


def test_they_are_numbered_in_the_order_in_which_each_names_the_next():
    names = list(NOTEBOOKS)
    assert [name[:3] for name in names] == [f"{number:02}_" for number in range(1, len(names) + 1)]
    prose = [prose_of(nbformat.read(path, as_version=4)) for path in NOTEBOOKS.values()]
    following = [re.findall(r"\*\*Next:\*\* `(\w+)`", text) for text in prose]
    assert following == [*([name] for name in names[1:]), []]


class TestParameters:
    def test_one_cell_is_tagged(self, code):
        tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1

    def test_each_has_a_type_a_comment_and_a_literal_value_of_that_type(self, name):
        assert PARAMETERS[name]
        for parameter, about in PARAMETERS[name].items():
            assert about["inferred_type_name"] in TYPES, parameter
            assert about["help"], parameter
            value = ast.literal_eval(about["default"])
            assert type(value).__name__ == about["inferred_type_name"], parameter

    def test_every_notebook_takes_a_disk_a_run_folder_and_strict(self, name):
        assert {"storage_dir", "run_dir", "strict"} <= set(PARAMETERS[name])

    def test_together_they_take_what_the_issue_asks_for(self):
        assert sorted(ASKED_FOR - set().union(*PARAMETERS.values())) == []

    def test_one_name_has_one_type_everywhere(self):
        types: dict[str, set[str]] = {}
        for parameters in PARAMETERS.values():
            for parameter, about in parameters.items():
                types.setdefault(parameter, set()).add(about["inferred_type_name"])
        assert {parameter: kinds for parameter, kinds in types.items() if len(kinds) > 1} == {}

    def test_each_is_used(self, name, code):
        """A name that no cell reads would be accepted and change nothing."""
        used = {
            node.id
            for cell in code
            for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        }
        assert set(PARAMETERS[name]) - used - BEGUN == set()
        assert "setup" in used or not set(PARAMETERS[name]) & set(Setup.__dataclass_fields__)


class TestProfiles:
    def test_there_are_quick_and_full_and_one_for_servers(self):
        assert list(plan.profiles()) == ["full", "quick", "server"]

    def test_each_notebook_is_in_a_profile_and_those_of_servers_only_in_theirs(self):
        listed = {name: plan.notebooks_of_profile(name, NOTEBOOKS) for name in plan.profiles()}
        assert listed["quick"] == listed["full"]
        assert sorted([*listed["quick"], *listed["server"]]) == list(NOTEBOOKS)

    @pytest.mark.parametrize("profile", plan.profiles())
    def test_a_profile_names_notebooks_and_parameters_that_exist(self, profile):
        sections = plan.read_profile(profile)
        assert set(sections) <= {"all", *NOTEBOOKS}
        assert set(sections.get("all", {})) <= set().union(*PARAMETERS.values())
        for name in set(sections) - {"all"}:
            assert set(sections[name]) <= set(PARAMETERS[name])

    @pytest.mark.parametrize("profile", plan.profiles())
    def test_its_values_have_the_types_of_the_defaults(self, profile):
        parameters = plan.parameters_for(NOTEBOOKS, plan.read_profile(profile), {})
        assert set(parameters) == set(NOTEBOOKS)


class TestCells:
    def test_there_are_no_outputs_and_no_execution_counts(self, code):
        assert [cell.source for cell in code if cell.outputs or cell.execution_count is not None] == []

    def test_nbstripout_finds_nothing_to_strip(self):
        command = [sys.executable, "-m", "nbstripout", "--verify", *map(str, NOTEBOOKS.values())]
        answer = subprocess.run(command, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stdout + answer.stderr

    def test_the_metadata_is_of_no_machine(self, notebook):
        assert set(notebook.metadata) <= {"kernelspec", "language_info"}
        assert dict(notebook.metadata.language_info) == {"name": "python"}
        assert notebook.metadata.kernelspec == {"display_name": KERNEL, "language": "python", "name": KERNEL}
        assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}

    def test_no_cell_is_long(self, code):
        lengths = {cell.source: len(cell.source.splitlines()) for cell in code}
        assert [source for source, length in lengths.items() if length > LONGEST_CELL] == []

    def test_there_are_few_cells(self, code):
        assert len(code) <= MOST_CELLS

    def test_no_version_of_sglang_is_written_in_a_cell(self, code):
        """They come from ``data/connectors.csv``."""
        assert [found for cell in code for found in re.findall(r"\b0\.5\.\d+", cell.source)] == []

    def test_library_functions_live_in_the_library(self, code):
        defined = [
            node.name
            for cell in code
            for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        assert defined == []

    def test_every_name_of_the_lab_that_it_uses_exists(self, code):
        source = "\n".join(cell.source for cell in code)
        assert [used for used in re.findall(r"\blab\.(\w+)", source) if not hasattr(lab, used)] == []
        drawn = re.findall(r"(?<!run\.)\bfigures\.(\w+)\(", source)
        assert drawn
        assert [used for used in drawn if not hasattr(figures, used)] == []

    def test_one_line_begins_its_run_and_is_named_after_its_file(self, name, code):
        source = "\n".join(cell.source for cell in code)
        assert re.findall(r'= lab\.begin\("(\w+)", globals\(\)\)', source) == [name]
        assert "lab.Run(" not in source

    def test_it_ends_with_its_claims(self, code):
        assert code[-1].source == "run.finish()"

    def test_every_claim_has_an_id_of_its_own(self, code):
        source = "\n".join(cell.source for cell in code)
        ids = re.findall(r'lab\.(?:exactly|every|never|at_most|above|longer|no_slower)\(\s*"(\w+)"', source)
        assert len(ids) == len(set(ids))

    def test_a_claim_expects_a_value_of_the_run_or_of_the_data(self, code):
        """A number that a cell states itself could only be 0 or 1."""
        stated = {
            ast.unparse(call): call.args[2].value
            for call in calls_of(code, "lab.exactly", "lab.at_most", "lab.above")
            if isinstance(call.args[2], ast.Constant) and not isinstance(call.args[2].value, str)
        }
        assert {claim: value for claim, value in stated.items() if value not in (0, 1)} == {}

    def test_a_sentence_has_no_number_that_was_written_in_the_cell(self, code):
        literals = [
            part.value
            for cell in code
            for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, ast.Assign) and {"told", "story"} & names_in(*node.targets)
            for part in ast.walk(node.value)
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        assert literals
        sentences = [re.sub("|".join(MAY_STATE), "", literal) for literal in literals]
        assert [sentence for sentence in sentences if re.search(r"\b\d", sentence)] == []

    def test_a_sentence_of_the_ledger_says_which_fault_and_which_pages_it_means(self, code):
        """It is read without the cell that states it."""
        source = "\n".join(cell.source for cell in code)
        assert re.findall(r"(?i)\b(?:each|every|no) fault\b(?! injected)[^\"]*\"", source) == []
        assert (
            re.findall("stores every page|takes no longer|second line|than in the reference run", source)
            == []
        )

    def test_microseconds_have_their_sign(self, code):
        assert [cell.source for cell in code if re.search(r"[\"{ ]us (?:per|in)\b", cell.source)] == []

    def test_titles_and_alt_texts_come_from_the_figure_that_is_drawn(self, code):
        """A figure's function works them out; a string of the cell may only be a name or a story."""
        calls = calls_of(code, "run.figure")
        assert calls
        given = [call for call in calls if not isinstance(call.args[1], ast.Starred)]
        assert [ast.unparse(call.args[0]) for call in given] in ([], ["'watched'"])

    def test_a_story_is_made_of_values_of_the_run(self, code):
        for cell in code:
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.keyword) and node.arg == "story":
                    assert isinstance(node.value, ast.Name | ast.Attribute)
                elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "story":
                    assert any(isinstance(part, ast.FormattedValue) for part in ast.walk(node.value))


def test_the_first_says_what_each_lifetime_is_and_links_to_the_review():
    prose = prose_of(nbformat.read(next(iter(NOTEBOOKS.values())), as_version=4))
    assert "A **lifetime** is" in prose
    assert [name for name in FILE_PER_PIECE if f"\n| `{name}` |" not in prose] == []
    assert f"({PR}/files)" in prose


def test_every_release_that_is_compared_is_linked_to_somewhere():
    prose = "".join(prose_of(nbformat.read(path, as_version=4)) for path in NOTEBOOKS.values())
    assert [url for url in set(lab.expected().url) if f"({url})" not in prose] == []


def test_five_to_nine_figures_tell_the_story_of_a_run_and_one_to_three_that_of_the_servers():
    told = {name: path.read_text().count("story=") for name, path in NOTEBOOKS.items()}
    assert 5 <= sum(told[name] for name in plan.notebooks_of_profile("quick", NOTEBOOKS)) <= 9
    assert 1 <= sum(told[name] for name in plan.notebooks_of_profile("server", NOTEBOOKS)) <= 3
    assert all(told.values())


def names_in(*nodes: ast.AST) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


def calls_of(code: list[nbformat.NotebookNode], *functions: str) -> list[ast.Call]:
    nodes = [node for cell in code for node in ast.walk(ast.parse(cell.source))]
    return [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) in functions]


def prose_of(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


class TestProse:
    def test_it_is_short(self, notebook):
        words = [word for word in prose_of(notebook).split() if re.search(r"\w", word)]
        assert len(words) <= MOST_WORDS

    def test_every_heading_is_a_question(self, notebook):
        headings = re.findall(r"^#+ (.*)", prose_of(notebook), re.MULTILINE)
        assert [heading for heading in headings if not heading.endswith("?")] == []

    def test_it_links_to_the_pr_and_to_releases_that_are_compared(self, notebook):
        links = re.findall(r"\]\((https?://[^)]+)\)", prose_of(notebook))
        assert PR in links
        assert set(links) - {PR, f"{PR}/files"} <= set(lab.expected().url)
        assert len(links) > 1

    def test_its_title_is_the_question_in_the_readme(self, name, notebook):
        readme = (NOTEBOOKS[name].parents[1] / "README.md").read_text()
        title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        assert f"| [{name}](notebooks/{name}.ipynb) | {title} |" in readme

    def test_135_is_said_to_be_an_inference_wherever_it_is_written(self, notebook):
        paragraphs = [part for cell in notebook.cells for part in re.split(r"\n\n|\n(?=\w+: )", cell.source)]
        assert [part for part in paragraphs if "135" in part and "inference" not in part] == []

    def test_one_title_comes_first(self, notebook):
        titles = [
            line
            for cell in notebook.cells
            if cell.cell_type == "markdown"
            for line in cell.source.splitlines()
            if re.match(r"# ", line)
        ]
        assert len(titles) == 1
        assert notebook.cells[0].source.startswith(titles[0])

    def test_it_says_what_it_shows_in_a_numbered_list(self, notebook):
        assert re.search(r"^1\. .*\n2\. ", notebook.cells[0].source, re.MULTILINE)

    def test_other_notebooks_that_it_names_exist(self, notebook):
        prose = prose_of(notebook)
        assert set(re.findall(r"`(\d\d_\w+)`", prose)) <= set(NOTEBOOKS)

    def test_input_files_that_it_names_exist(self, notebook):
        root = next(iter(NOTEBOOKS.values())).parents[1]
        prose = prose_of(notebook)
        named = re.findall(r"`(data/[\w./]+)`", prose)
        assert [file for file in named if not Path(root / file).exists()] == []
