"""What a notebook leaves in the folder of its run: tables, figures, claims, provenance."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import psutil
import pytest
from PIL import Image

from hicache_nixl import lab
from hicache_nixl.errors import HiCacheNixlError
from hicache_nixl.lab.runs.claims import Claim, ClaimsFailedError, exactly
from hicache_nixl.lab.runs.folder import CLAIMS, RunFolder
from hicache_nixl.lab.runs.provenance import describe, provenance
from hicache_nixl.lab.runs.run import Run

matplotlib.use("Agg")

HOLDS = exactly("growth", "Two per key.", 2, 2)
FLAT = exactly("flat", "The count is flat.", 135, 135)
FAILS = exactly("flat", "The count is flat.", 135, 167)
UNSURE = Claim("cost", "It costs little.", "at most 1.25", "1.20 [1.10, 1.30]", "inconclusive")


def claims_file(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "claims.csv", dtype=str, keep_default_na=False)


class TestTables:
    def test_a_table_is_a_csv_named_after_its_notebook_and_comes_back(self, tmp_path):
        frame = pd.DataFrame({"call": [1, 2], "open_fds": [167, 199]})
        returned = Run("01_reproduce", tmp_path, {}).table("growth", frame)
        assert returned is frame
        text = (tmp_path / "tables" / "01_reproduce_growth.csv").read_text()
        assert text == "call,open_fds\n1,167\n2,199\n"


class TestFigures:
    @pytest.mark.parametrize("alt", ["A line from 135 to 4167.", 'Grows → "two per key", naïvely <b>'])
    def test_a_figure_is_a_png_that_carries_its_alt_text_and_is_closed(self, tmp_path, alt):
        figure, axes = plt.subplots()
        axes.plot([135, 4167])
        Run("01_reproduce", tmp_path, {}).figure("growth", figure, alt)
        with Image.open(tmp_path / "figures" / "01_reproduce_growth.png") as image:
            assert image.text["Description"] == alt
            assert min(image.size) > 100
        assert figure.number not in plt.get_fignums()


class TestClaims:
    def test_the_ledger_of_a_run_has_the_claims_of_all_its_notebooks(self, tmp_path):
        for name, claims in (("02_fix", [FLAT, UNSURE]), ("01_reproduce", [HOLDS])):
            run = Run(name, tmp_path, {})
            run.claim(*claims)
            run.finish()
        ledger = claims_file(tmp_path)
        assert ledger.columns.tolist() == CLAIMS
        assert ledger[["notebook", "id", "verdict"]].values.tolist() == [
            ["01_reproduce", "growth", "holds"],
            ["02_fix", "flat", "holds"],
            ["02_fix", "cost", "inconclusive"],
        ]

    def test_a_notebook_that_runs_again_replaces_its_own_claims_alone(self, tmp_path):
        for name, claim in (("01_a", HOLDS), ("02_b", FLAT), ("01_a", UNSURE)):
            run = Run(name, tmp_path, {})
            run.claim(claim)
            run.finish()
        assert claims_file(tmp_path)[["notebook", "id"]].values.tolist() == [
            ["01_a", "cost"],
            ["02_b", "flat"],
        ]

    def test_claims_are_in_the_folder_as_soon_as_they_are_stated(self, tmp_path):
        Run("01_a", tmp_path, {}).claim(HOLDS, FAILS)
        assert claims_file(tmp_path).id.tolist() == ["growth", "flat"]

    def test_a_notebook_that_starts_again_has_no_claims_and_no_figures_yet(self, tmp_path):
        run = Run("01_a", tmp_path, {})
        run.claim(HOLDS)
        run.figure("growth", plt.subplots()[0], "A line.")
        Run("01_a", tmp_path, {})
        assert len(claims_file(tmp_path)) == 0
        assert len(RunFolder(tmp_path).figures()) == 0

    def test_a_claim_can_name_the_figure_that_shows_it(self, tmp_path):
        run = Run("01_a", tmp_path, {})
        run.claim(HOLDS, figure="line")
        run.claim(FLAT)
        run.figure("line", plt.subplots()[0], "A line.")
        run.finish()
        assert claims_file(tmp_path).figure.tolist() == ["line", ""]

    def test_a_claim_of_a_figure_that_was_not_drawn_is_an_error(self, tmp_path):
        run = Run("01_a", tmp_path, {})
        run.claim(HOLDS, figure="lime")
        with pytest.raises(ValueError, match="figures that were not drawn: lime"):
            run.finish()

    def test_finish_returns_the_claims_of_this_notebook_with_their_cells(self, tmp_path):
        run = Run("01_a", tmp_path, {})
        run.claim(HOLDS)
        run.claim(UNSURE)
        table = run.finish()
        assert table.columns.tolist()[:3] == ["cell", "id", "sentence"]
        assert table.cell.tolist() == [0, 0]
        assert table.id.tolist() == ["growth", "cost"]

    def test_what_was_measured_stays_as_it_was_written(self, tmp_path):
        """Numbers and an empty text come back from the file as the same text."""
        for name, measured in (("01_a", 135), ("02_b", "NA"), ("03_c", "")):
            run = Run(name, tmp_path, {})
            run.claim(exactly(f"value_{name}", 'A value, in quotes: "a, b".', measured, measured))
            run.finish()
        ledger = claims_file(tmp_path)
        assert ledger.measured.tolist() == ["135", "NA", ""]
        assert ledger.sentence.unique().tolist() == ['A value, in quotes: "a, b".']

    def test_a_failing_claim_raises_and_is_named_with_both_values(self, tmp_path):
        run = Run("01_a", tmp_path, {}, strict=True)
        run.claim(HOLDS, FAILS, UNSURE)
        with pytest.raises(ClaimsFailedError) as caught:
            run.finish()
        assert str(caught.value) == ("cell 0, claim flat: The count is flat. expected 135, measured 167")
        assert claims_file(tmp_path).verdict.tolist() == ["holds", "fails", "inconclusive"]

    def test_every_failing_claim_is_named(self, tmp_path):
        run = Run("01_a", tmp_path, {})
        run.claim(FAILS, exactly("pages", "Every page is right.", 128, 0))
        with pytest.raises(ClaimsFailedError, match=r"claim flat: .*; cell 0, claim pages: "):
            run.finish()

    def test_a_run_that_is_not_strict_tells_the_failing_claim_and_goes_on(self, tmp_path):
        run = Run("01_a", tmp_path, {}, strict=False)
        run.claim(FAILS)
        assert run.finish().verdict.tolist() == ["fails"]
        assert claims_file(tmp_path).verdict.tolist() == ["fails"]

    def test_an_inconclusive_claim_breaks_nothing(self, tmp_path):
        run = Run("01_a", tmp_path, {}, strict=True)
        run.claim(UNSURE)
        assert len(run.finish()) == 1

    def test_a_notebook_without_claims_leaves_an_empty_ledger(self, tmp_path):
        assert len(Run("01_a", tmp_path, {}).finish()) == 0
        assert len(claims_file(tmp_path)) == 0

    def test_a_failed_claim_is_an_error_of_the_package_and_an_assertion(self):
        assert issubclass(ClaimsFailedError, HiCacheNixlError)
        assert issubclass(ClaimsFailedError, AssertionError)


@dataclass
class Shell:
    """What a kernel knows of its cells: the sources that ran, and the id that JupyterLab sends with each."""

    sources: list[str] = field(default_factory=lambda: [""])
    cell_id: str | None = None

    def execute(self, source: str, cell_id: str | None = None) -> None:
        self.sources.append(source)
        self.cell_id = cell_id

    @property
    def user_ns(self) -> dict[str, list[str]]:
        return {"In": self.sources}

    def get_parent(self) -> dict[str, dict[str, str]]:
        return {"metadata": {"cellId": self.cell_id} if self.cell_id else {}}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell()
    monkeypatch.setattr("hicache_nixl.lab.runs.run.get_ipython", lambda: shell)
    return shell


class TestIds:
    """An id exists once in a run."""

    def test_it_is_refused_a_second_time_in_one_cell(self, tmp_path, shell):
        run = Run("01_a", tmp_path, {})
        shell.execute("run.claim(HOLDS)", "a")
        run.claim(HOLDS)
        with pytest.raises(ValueError, match="'growth' exists already, stated by cell 1"):
            run.claim(HOLDS)
        with pytest.raises(ValueError, match="'cost' exists already, stated by cell 1"):
            run.claim(UNSURE, UNSURE)
        assert claims_file(tmp_path).id.tolist() == ["growth"]

    @pytest.mark.parametrize("ids", [("a", "b"), (None, None)], ids=["JupyterLab", "no cell ids"])
    def test_it_is_refused_in_another_cell(self, tmp_path, shell, ids):
        run = Run("01_a", tmp_path, {})
        shell.execute("run.claim(HOLDS)", ids[0])
        run.claim(HOLDS)
        shell.execute("run.claim(UNSURE, HOLDS)", ids[1])
        with pytest.raises(ValueError, match="'growth' exists already, stated by cell 1"):
            run.claim(UNSURE, HOLDS)
        assert claims_file(tmp_path).id.tolist() == ["growth"]

    def test_it_is_refused_in_another_notebook_of_the_run(self, tmp_path, shell):
        first = Run("01_a", tmp_path, {})
        shell.execute("run.claim(HOLDS)")
        first.claim(HOLDS)
        with pytest.raises(ValueError, match="'growth' exists already, stated by notebook 01_a, cell 1"):
            Run("02_b", tmp_path, {}).claim(HOLDS)

    @pytest.mark.parametrize(
        ("cell_id", "source"),
        [("a", "run.claim(FAILS)"), (None, "run.claim(HOLDS)")],
        ids=["edited, in JupyterLab", "no cell ids"],
    )
    def test_a_cell_that_runs_again_replaces_all_its_claims(self, tmp_path, shell, cell_id, source):
        run = Run("01_a", tmp_path, {})
        shell.execute("run.claim(HOLDS)", cell_id)
        run.claim(HOLDS)
        shell.execute("run.claim(UNSURE)", "b")
        run.claim(UNSURE)
        shell.execute(source, cell_id)
        run.claim(HOLDS if cell_id is None else FAILS)
        ledger = claims_file(tmp_path)
        assert ledger[["cell", "id"]].values.tolist() == [
            ["2", "cost"],
            ["3", "growth" if cell_id is None else "flat"],
        ]


class TestProvenance:
    def test_it_names_the_versions(self):
        versions = provenance()["versions"]
        assert versions["python"] == platform.python_version()
        for package in ("nixl", "torch", "numpy", "pandas", "matplotlib", "papermill", "hicache-nixl"):
            assert versions[package][0].isdigit()

    def test_it_names_kernel_cpu_memory_and_limits(self):
        known = provenance()
        assert known["kernel"] == os.uname().release
        assert known["cpu"]["cores"] == psutil.cpu_count()
        assert known["cpu"]["model"]
        assert known["memory_bytes"] == psutil.virtual_memory().total
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert known["nofile_limit"] == {"soft": soft, "hard": hard}

    def test_it_names_the_file_system_and_the_mount_options_of_the_storage_folder(self, tmp_path):
        answer = subprocess.run(
            ["findmnt", "--noheadings", "--raw", "--output", "FSTYPE,TARGET", "--target", str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        storage = provenance(tmp_path)["storage"]
        assert [storage["file_system"], storage["mounted_on"]] == answer.stdout.split()
        assert {"rw", "ro"} & set(storage["options"].split(","))

    def test_another_storage_folder_may_be_on_another_file_system(self):
        assert provenance("/proc/self")["storage"]["file_system"] == "proc"

    def test_it_names_the_commit(self):
        root = Path(lab.__file__).parents[2]
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        commit = provenance()["git_commit"]
        if head:
            assert commit.removesuffix("+changes") == head[:12]
        else:
            assert commit is None

    def test_a_run_notes_it_with_the_parameters_of_each_notebook(self, tmp_path):
        parameters = {"storage_dir": str(tmp_path), "page_bytes": 4096, "mla": False}
        Run("01_a", tmp_path / "run", parameters)
        Run("02_b", tmp_path / "run", {"calls": 20})
        known = json.loads((tmp_path / "run" / "provenance.json").read_text())
        assert set(provenance()) <= set(known)
        assert known["notebooks"]["01_a"]["parameters"] == parameters
        assert known["notebooks"]["02_b"]["parameters"] == {"calls": 20}
        assert known["notebooks"]["01_a"]["started"].endswith("+00:00")

    def test_it_is_shown_as_a_short_table(self, tmp_path):
        table = describe(Run("01_a", tmp_path, {"storage_dir": "/proc"})).set_index("what")
        assert table.value["kernel"] == os.uname().release
        assert table.value["storage folder on"].startswith("proc (")
        assert str(resource.getrlimit(resource.RLIMIT_NOFILE)[1]) in table.value["RLIMIT_NOFILE"]


class TestFolder:
    def test_nothing_but_whole_files_is_left(self, tmp_path):
        Run("01_a", tmp_path, {}).finish()
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
        assert left == {"tables", "figures", "figures/narrow", "claims.csv", "figures.csv", "provenance.json"}

    def test_without_a_name_it_is_the_interactive_one_of_the_project(self, monkeypatch, tmp_path):
        monkeypatch.setattr("hicache_nixl.lab.runs.run.runs_folder", lambda: tmp_path)
        assert Run("01_a", "", {}).folder == tmp_path / "interactive"


class TestNames:
    @pytest.mark.parametrize("name", lab.__all__)
    def test_every_name_that_the_lab_lists_is_there(self, name):
        assert getattr(lab, name) is not None

    def test_another_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match=r"attribute '?replays_of"):
            lab.replays_of  # noqa: B018
