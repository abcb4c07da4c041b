"""The report of a run: built from the folder alone, complete, and never without an alt text."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup, Tag
from tiny_notebooks import ALT, write_notebook

from hicache_nixl.errors import ConfigError, FileError
from hicache_nixl.lab.report import AltTextError, build, read_record
from hicache_nixl.lab.runs.claims import exactly
from hicache_nixl.lab.runs.run import Run

matplotlib.use("Agg")

LEAVES = "05_the_review_answered"


def make_run(
    folder: Path,
    notebook: str = LEAVES,
    *,
    measured: int = 2,
    alt: str = ALT,
    stories: dict[str, str] | None = None,
) -> Path:
    """Write what a notebook leaves: a table, figures, claims, and the notebook as executed.

    ``stories`` are more figures, with the sentence of each; the claim ``growth`` names the figure of the same name.
    """
    run = Run(notebook, folder, {"queue": "libaio", "repeats": 2}, strict=False)
    run.table("growth", pd.DataFrame({"call": [1, 2], "open_fds": [2, 4]}))
    run.table("remark_1", pd.DataFrame({"connector": ["scoped"], "traceback imported": ["nowhere"]}))
    run.table("released", pd.DataFrame({"connector": ["sglang==0.5.11"], "why": ["no package registry"]}))
    for name, story in {"growth": "", **(stories or {})}.items():
        figure, axes = plt.subplots(figsize=(3, 2))
        axes.set_title("Two per <key>", loc="left")
        axes.text(0, 0, name)
        run.figure(name, figure, alt if name == "growth" else f"Alt of {name}", story=story)
    run.claim(exactly("growth", "Two & <b>more</b>.", 2, measured), figure="growth")
    run.claim(exactly("remark_1", "No import inside.", 0, 0))
    run.finish()
    (folder / "notebooks").mkdir(exist_ok=True)
    path = write_notebook(folder / "notebooks" / f"{notebook}.ipynb", "1 + 1")
    node = nbformat.read(path, as_version=4)
    node.cells.insert(0, nbformat.v4.new_markdown_cell("# What <i>leaks</i>\n\nProse."))
    node.cells[-1].update(
        execution_count=2, outputs=[nbformat.v4.new_output("execute_result", {"text/plain": "2"})]
    )
    nbformat.write(node, path)
    return folder


def raise_in(folder: Path, ename: str, evalue: str) -> None:
    """Let the last cell of the notebook end with an error."""
    path = folder / "notebooks" / f"{LEAVES}.ipynb"
    node = nbformat.read(path, as_version=4)
    node.cells[-1].outputs = [nbformat.v4.new_output("error", ename=ename, evalue=evalue)]
    nbformat.write(node, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "mine")


def parsed(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(), "html.parser")


def said(element: Tag) -> str:
    """Return the text of an element as a reader sees it."""
    return " ".join(element.get_text(" ").split())


def text_of(page: Path) -> str:
    """Return what a reader reads on a page."""
    bare = re.sub(r"<(style|svg).*?</\1>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", bare)).split())


class TestIndex:
    def test_it_says_what_was_run_on_what_and_how_it_went(self, folder):
        text = text_of(build(folder))
        known = json.loads((folder / "provenance.json").read_text())
        assert "2 of 2 claims hold" in text
        told = (
            known["cpu"]["model"],
            known["kernel"],
            known["versions"]["nixl"],
            known["storage"]["file_system"],
        )
        assert [word for word in told if word not in text] == []

    def test_every_claim_is_once_in_the_ledger_with_its_values_and_a_link_to_its_cell(self, folder):
        page = parsed(build(folder))
        rows = page.select("#ledger ~ details.ledgers tr[id]")
        assert [row["id"] for row in rows] == [f"claim-{LEAVES}-growth", f"claim-{LEAVES}-remark_1"]
        cells = rows[0].find_all("td")
        assert [said(cell) for cell in cells] == [
            "Two & <b>more</b>. growth",
            "2",
            "2",
            "✓ holds",
            f"{LEAVES[:2]}, cell 0",
        ]
        assert cells[-1].a["href"] == f"html/{LEAVES}.html#cell-0"

    @pytest.mark.parametrize(
        "stories", [{}, {"hero": "Hero.", "limit": "Limit."}], ids=["no story", "a story"]
    )
    def test_each_figure_is_there_once_and_has_its_own_alt_text_and_table(self, tmp_path, stories):
        folder = make_run(tmp_path / "mine", stories=stories)
        page = parsed(build(folder))
        pictures = {image["alt"]: base64.b64decode(image["src"].partition(",")[2]) for image in page("img")}
        expected = {ALT: "growth"} | {f"Alt of {name}": name for name in stories}
        assert len(page("img")) == len(expected)
        assert pictures == {
            alt: (folder / "figures" / f"{LEAVES}_{name}.png").read_bytes() for alt, name in expected.items()
        }
        assert said(page.find(id=f"figure-{LEAVES}-growth")).count("table growth: 2 rows") == 1

    def test_the_hero_comes_first_then_the_story_in_order_each_with_its_sentence_and_claims(self, tmp_path):
        folder = make_run(
            tmp_path / "mine", stories={"limit": "Call 27 & on.", "hero": "Flat.", "cost": "1.02."}
        )
        page = parsed(build(folder))
        findings = page.select("section.finding")
        assert [said(finding.h3) for finding in findings] == [
            "Flat.",
            "Call 27 & on.",
            "1.02.",
            "Two per <key>",
        ]
        folded = [finding.find_parent("details") is not None for finding in findings]
        assert folded == [False, False, False, True]
        assert [said(row.td) for row in findings[-1].select("table.claims tbody tr")] == [
            "Two & <b>more</b>."
        ]
        assert "1 claim holds" in said(findings[-1])
        assert page.find(string="other figures") is not None

    def test_without_a_story_every_figure_is_shown_with_its_title(self, folder):
        shutil.copy(folder / "figures" / f"{LEAVES}_growth.png", folder / "figures" / f"{LEAVES}_again.png")
        table = pd.read_csv(folder / "figures.csv", dtype=str, keep_default_na=False)
        pd.concat([table, table.assign(figure="again")]).to_csv(folder / "figures.csv", index=False)
        findings = parsed(build(folder)).select("section.finding")
        assert [said(finding.h3) for finding in findings] == ["Two per <key>"] * 2
        assert [finding.find_parent("details") for finding in findings] == [None, None]

    def test_a_run_of_an_earlier_version_has_a_report(self, folder):
        """Without figures of claims, stories, and marks of the notebooks that finished."""
        for name, added in (("claims", ["figure"]), ("figures", ["story"])):
            path = folder / f"{name}.csv"
            pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=added).to_csv(path, index=False)
        known = json.loads((folder / "provenance.json").read_text())
        del known["format"], known["notebooks"][LEAVES]["finished"]
        (folder / "provenance.json").write_text(json.dumps(known))
        page = parsed(build(folder))
        assert said(page.select_one("p.verdict.holds")) == "2 of 2 claims hold"
        assert len(page.select("section.finding")) == 1

    def test_claims_that_failed_stand_directly_under_the_verdict(self, tmp_path):
        page = parsed(build(make_run(tmp_path / "bad", measured=3)))
        assert said(page.select_one("p.verdict.fails")) == "1 of 2 claims hold, 1 fail"
        (row,) = page.select("#verdict table.claims tbody tr")
        assert [said(cell) for cell in row("td")][:4] == ["Two & <b>more</b>.", "2", "3", "✗ fails"]

    @pytest.mark.parametrize("other", ["fails", "holds"])
    def test_inconclusive_claims_are_folded_under_the_failed_ones(self, tmp_path, other):
        folder = make_run(tmp_path / "bad")
        table = pd.read_csv(folder / "claims.csv", dtype=str, keep_default_na=False)
        table.assign(verdict=["inconclusive", other]).to_csv(folder / "claims.csv", index=False)
        verdict = parsed(build(folder)).select_one("#verdict")
        folded = verdict.details.extract()
        told = "1 inconclusive: measurements whose interval reaches to both sides of the margin"
        assert (said(folded.summary), folded.has_attr("open"), folded["class"]) == (told, False, ["kept"])
        assert [said(row("td")[3]) for row in folded.select("tbody tr")] == ["? inconclusive"]
        assert [said(row("td")[3]) for row in verdict.select("tbody tr")] == ["✗ fails"] * (other == "fails")

    def test_an_interrupt_is_told_once_with_its_place_and_what_it_kept_from_running(self, folder):
        raise_in(folder, "KeyboardInterrupt", "")
        known = json.loads((folder / "provenance.json").read_text())
        del known["notebooks"][LEAVES]["finished"]
        (folder / "provenance.json").write_text(json.dumps({**known, "planned": [LEAVES, "06_never"]}))
        verdict = parsed(build(folder)).select_one("#verdict")
        told = "2 of 2 claims hold; interrupted in notebook 05, cell 2; not run: 06"
        assert said(verdict.select_one("p.verdict.inconclusive")) == told
        assert not re.search("KeyboardInterrupt|06_never", said(verdict))

    def test_a_notebook_that_raised_is_named_with_its_error(self, folder):
        raise_in(folder, "OSError", "disk <full>")
        page = build(folder)
        assert f"{LEAVES}, cell 2: OSError: disk <full>" in text_of(page)
        assert '<p class="verdict fails">' in page.read_text()

    def test_what_was_not_run_is_said_with_the_reason(self, folder):
        assert "Not run: sglang==0.5.11. no package registry" in text_of(build(folder))

    def test_a_table_of_several_figures_is_shown_once_with_the_first(self, tmp_path):
        folder = make_run(tmp_path / "mine", stories={"a": "A.", "b": "B.", "c": "C."})
        table = pd.read_csv(folder / "figures.csv", dtype=str)
        table.assign(tables=["", "", "growth", "growth"]).to_csv(folder / "figures.csv", index=False)
        page = parsed(build(folder))
        assert ["table growth" in said(page.find(id=f"figure-{LEAVES}-{name}")) for name in "abc"] == [
            False,
            True,
            False,
        ]

    def test_a_long_table_is_cut_and_says_so(self, folder):
        rows = pd.DataFrame({"call": range(1, 101), "open_fds": 2})
        rows.to_csv(folder / "tables" / f"{LEAVES}_growth.csv", index=False)
        page = build(folder).read_text()
        assert "table growth: the first 40 of 100 rows" in page
        assert f'href="tables/{LEAVES}_growth.csv"' in page

    def test_a_run_that_ended_before_its_first_claim_has_a_report_and_does_not_hold(self, folder):
        Run(LEAVES, folder, {})
        page = build(folder)
        assert (
            f'<p class="verdict inconclusive">no claim was checked; unfinished: {LEAVES}</p>'
            in page.read_text()
        )

    def test_notebooks_that_were_planned_and_did_not_end_are_named(self, folder):
        known = json.loads((folder / "provenance.json").read_text())
        (folder / "provenance.json").write_text(json.dumps({**known, "planned": ["03_never", LEAVES]}))
        page = build(folder)
        assert (
            '<p class="verdict inconclusive">2 of 2 claims hold; unfinished: 03_never</p>' in page.read_text()
        )
        assert text_of(page).count("03_never") == 2, "in the title and the verdict"

    def test_it_can_be_made_again(self, folder):
        assert build(folder).read_text() == build(folder).read_text()


class TestAgenda:
    def test_the_three_remarks_have_what_was_asked_decided_and_is_open(self, folder):
        page = build(folder).read_text()
        agenda = page[page.index('id="agenda"') :]
        assert len(re.findall(r'<section class="remark">', agenda)) == 3
        for word in ("Asked:", "Decided:", "Evidence:", "Open:"):
            assert agenda.count(f"<strong>{word}</strong>") == 3

    def test_the_evidence_is_the_claims_and_the_table_of_this_run(self, folder):
        remark = parsed(build(folder)).select("section.remark")[0]
        assert [said(row.td) for row in remark.select("table.claims tbody tr")] == ["No import inside."]
        assert "table remark_1: 1 row" in said(remark)

    def test_the_evidence_may_be_in_any_notebook(self, tmp_path):
        remark = parsed(build(make_run(tmp_path / "other", notebook="02_the_fix"))).select("section.remark")[
            0
        ]
        assert "table remark_1: 1 row" in said(remark)

    def test_without_claims_it_says_so(self, folder):
        Run(LEAVES, folder, {})
        assert text_of(build(folder)).count("none in this run") == 3


class TestAltTexts:
    def test_a_figure_without_one_is_refused_when_it_is_drawn(self, tmp_path):
        figure, _ = plt.subplots()
        with pytest.raises(ValueError, match="'growth' has no alt text"):
            Run("01", tmp_path, {}).figure("growth", figure, " ")

    def test_a_figure_that_lost_it_fails_the_build_and_nothing_is_written(self, folder):
        table = pd.read_csv(folder / "figures.csv", dtype=str).assign(alt="")
        table.to_csv(folder / "figures.csv", index=False)
        with pytest.raises(AltTextError, match=r"index\.html: no alt text for the picture"):
            build(folder)
        assert not (folder / "index.html").exists()

    @pytest.mark.parametrize("source", ["![](x.png)", '<img src="x.png">', '<img src="x.png" alt=" ">'])
    def test_a_picture_in_prose_without_one_fails_the_build_and_is_named(self, folder, source):
        path = folder / "notebooks" / f"{LEAVES}.ipynb"
        node = nbformat.read(path, as_version=4)
        node.cells.append(nbformat.v4.new_markdown_cell(source))
        nbformat.write(node, path)
        with pytest.raises(AltTextError, match=rf"{LEAVES}\.html: no alt text .* #cell-id="):
            build(folder)


class TestNotebookPage:
    def test_output_comes_first_and_code_is_folded(self, folder):
        build(folder)
        page = (folder / "html" / f"{LEAVES}.html").read_text()
        cell = page[page.index('id="cell-2"') :]
        assert cell.index("<pre>2</pre>") < cell.index("<details") < cell.index("code of cell 2")
        assert re.search(r'<details class="code">\s*<summary>', cell)

    def test_what_needs_a_script_is_left_out(self, folder):
        path = folder / "notebooks" / f"{LEAVES}.ipynb"
        node = nbformat.read(path, as_version=4)
        widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}
        node.cells[-1].outputs += [
            nbformat.v4.new_output("display_data", widget),
            nbformat.v4.new_output("display_data", {"application/javascript": "alert(1)"}),
        ]
        node.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {"a": {}}}}
        nbformat.write(node, path)
        build(folder)
        assert "<script" not in (folder / "html" / f"{LEAVES}.html").read_text()

    def test_its_title_is_that_of_the_notebook(self, folder):
        build(folder)
        page = (folder / "html" / f"{LEAVES}.html").read_text()
        assert "<title>What &lt;i&gt;leaks&lt;/i&gt;</title>" in page


class TestRecord:
    def test_a_name_stands_for_a_run_below_runs(self, tmp_path, monkeypatch):
        make_run(tmp_path / "mine")
        monkeypatch.setattr("hicache_nixl.lab.runs.record.runs_folder", lambda: tmp_path)
        assert read_record("mine").folder == tmp_path / "mine"

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda folder: shutil.rmtree(folder), "expected the folder of a run, such as runs/NAME"),
            (lambda folder: (folder / "provenance.json").unlink(), "provenance.json does not exist"),
            (lambda folder: (folder / "provenance.json").write_text("{"), "provenance.json cannot be read"),
            (lambda folder: (folder / "provenance.json").write_text("{}"), "provenance.json has no versions"),
            (lambda folder: (folder / "provenance.json").write_text("[]"), "provenance.json has no versions"),
            (lambda folder: (folder / "claims.csv").write_text("a,b\n1,2\n"), "has no column notebook"),
            (lambda folder: (folder / "claims.csv").write_text(""), "claims.csv cannot be read"),
            (
                lambda folder: (folder / "notebooks" / f"{LEAVES}.ipynb").write_text("{}"),
                f"{LEAVES}.ipynb is not a notebook",
            ),
        ],
        ids=[
            "no folder",
            "no provenance",
            "half a provenance",
            "an empty provenance",
            "a list",
            "other columns",
            "empty list",
            "no notebook",
        ],
    )
    def test_what_is_no_run_is_one_clear_error(self, folder, spoil, told):
        spoil(folder)
        with pytest.raises(ConfigError, match=told):
            read_record(folder)

    def test_a_file_in_the_place_of_a_run_is_one_clear_error(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="expected the folder of a run"):
            read_record(tmp_path / "file")

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda folder: shutil.rmtree(folder / "figures"), r"figure .*_growth\.png cannot be read"),
            (
                lambda folder: (folder / "figures" / f"{LEAVES}_growth.png").write_bytes(b""),
                r"figure .*_growth\.png cannot be read",
            ),
            (
                lambda folder: (folder / "tables" / f"{LEAVES}_growth.csv").write_bytes(b"\xff\xfe\x00"),
                r"_growth\.csv cannot be read",
            ),
            (
                lambda folder: (folder / "tables" / f"{LEAVES}_released.csv").write_text('a,"b\n'),
                r"_released\.csv cannot be read",
            ),
        ],
        ids=["no figures", "an empty picture", "no text", "half a table"],
    )
    def test_a_part_that_is_broken_is_one_clear_error(self, folder, spoil, told):
        spoil(folder)
        with pytest.raises(ConfigError, match=told):
            build(folder)

    def test_a_page_that_cannot_be_written_is_one_clear_error(self, folder):
        (folder / "html").touch()
        with pytest.raises(FileError, match="html"):
            build(folder)
