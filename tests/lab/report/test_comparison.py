"""Two runs side by side: what changed, how times compare, tables and figures of both in one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from test_report import LEAVES, make_run, text_of

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.report import build, compare_runs
from hicache_nixl.lab.report.joining import claims_side_by_side, tables_side_by_side, time_ratios
from hicache_nixl.lab.report.overlays import overlay
from hicache_nixl.lab.report.pages import data_uri

matplotlib.use("Agg")

COLUMNS = ["notebook", "cell", "id", "sentence", "expected", "measured", "verdict"]


def ledger(expected: str = "2", measured: str = "2", verdict: str = "holds") -> pd.DataFrame:
    return pd.DataFrame([["01_x", "4", "flat", "It is flat.", expected, measured, verdict]], columns=COLUMNS)


def times(scale: float = 1.0, *, queue: str = "libaio", seed: int = 0) -> pd.DataFrame:
    """Times of sets and gets of two arms, ten pairs."""
    noise = np.random.default_rng(seed)
    return pd.DataFrame(
        [
            {"queue": queue, "keys": 16, "pair": pair, "arm": arm, "operation": operation}
            | {"seconds": scale * 1e-3 * noise.lognormal(0, 0.1), "bytes": 4096}
            for pair in range(10)
            for arm in ("leaky", "scoped")
            for operation in ("set", "get")
        ]
    )


class TestClaims:
    @pytest.mark.parametrize(
        ("a", "b", "change"),
        [
            (ledger(), ledger(), ""),
            (ledger(), ledger(measured="3", verdict="fails"), "holds -> fails"),
            (ledger(measured="3", verdict="fails"), ledger(), "fails -> holds"),
            (
                ledger(measured="3", verdict="fails"),
                ledger(measured="4", verdict="fails"),
                "fails with another value",
            ),
            (ledger(), ledger(expected="3", measured="3"), "expected value changed"),
            (ledger("at most 1.2", "1.0 [0.9, 1.1]"), ledger("at most 1.3", "1.1 [1.0, 1.2]"), ""),
            (
                ledger("at most 1.2", "1.0 [0.9, 1.1]"),
                ledger("at most 1.2", "1.1 [0.9, 1.4]", "inconclusive"),
                "holds -> inconclusive",
            ),
            (ledger(), ledger()[:0], "only in the first"),
            (ledger()[:0], ledger(), "only in the second"),
        ],
    )
    def test_a_change_is_one_of_verdict_or_expectation_not_of_a_noisy_number(self, a, b, change):
        both = claims_side_by_side(a, b)
        assert both.change.tolist() == [change]
        assert both.sentence.tolist() == ["It is flat."]

    def test_claims_of_one_id_in_two_notebooks_are_two(self):
        a = pd.concat([ledger(), ledger().assign(notebook="02_y")])
        assert len(claims_side_by_side(a, a)) == 2


class TestTables:
    def test_rows_meet_by_what_tells_them_apart_and_equal_columns_are_named(self):
        a = pd.DataFrame({"call": [1, 2], "open_fds": [2, 4], "seconds": [0.1, 0.2]})
        joined, same = tables_side_by_side(a, a[::-1].assign(seconds=0.3))
        assert same == ["open_fds"]
        assert joined.to_dict("list") == {"call": [1, 2], "seconds a": [0.1, 0.2], "seconds b": [0.3, 0.3]}

    def test_a_row_that_one_run_lacks_is_kept_and_its_columns_are_not_the_same(self):
        a = pd.DataFrame({"call": [1, 2], "open_fds": [2, 4]})
        joined, same = tables_side_by_side(a, a[:1])
        assert same == []
        assert joined["open_fds b"].isna().tolist() == [False, True]

    def test_what_both_lack_is_the_same(self):
        a = pd.DataFrame({"connector": ["x"], "after 1": [np.nan]})
        assert tables_side_by_side(a, a)[1] == ["after 1"]

    @pytest.mark.parametrize(
        "table", [pd.DataFrame({"fd": [3], "flags": ["O_RDWR"]}), pd.DataFrame({"call": [1, 1], "x": [1, 2]})]
    )
    def test_rows_that_nothing_tells_apart_are_not_joined(self, table):
        assert tables_side_by_side(table, table) is None


class TestTimes:
    def test_a_run_that_takes_twice_as_long_has_a_ratio_of_two_with_its_interval(self):
        ratios = time_ratios(times(), times(2.0, seed=1))
        assert ratios[["arm", "operation"]].values.tolist() == [
            ["leaky", "set"],
            ["leaky", "get"],
            ["scoped", "set"],
            ["scoped", "get"],
        ]
        assert ((ratios.low < 2) & (ratios.high > 2) & (ratios.low > 1.5)).all()

    def test_two_runs_of_one_speed_differ_at_few_points(self):
        apart = [
            (ratios.low > 1).sum() + (ratios.high < 1).sum()
            for seed in range(0, 20, 2)
            for ratios in [time_ratios(times(seed=seed), times(seed=seed + 1))]
        ]
        assert sum(apart) <= 8  # of 40, at 95 % and with intervals that are narrow for ten values

    def test_what_the_runs_differ_in_tells_no_points_apart(self):
        """Two runs on two queues share their points."""
        assert len(time_ratios(times(), times(queue="io_uring"))) == 4

    def test_points_that_only_one_run_has_are_left_out(self):
        more = pd.concat([times(), times().assign(keys=128)])
        assert len(time_ratios(more, pd.concat([times(), times().assign(keys=64)]))) == 4

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            (times().drop(columns="pair"), times()),
            (times()[:0], times()),
            (times()[times().pair == 0], times()),
            (pd.DataFrame({"pair": [0, 1], "seconds": [1.0, 1.0]}),) * 2,
        ],
        ids=["no pairs", "no rows", "one pair", "nothing but pairs"],
    )
    def test_without_times_of_both_there_is_none(self, a, b):
        assert time_ratios(a, b) is None


class TestOverlay:
    RATIOS = pd.DataFrame({"operation": ["set", "get"], "time_ratio": [1.0, 2.0], "low": [0.9, 1.9]}).assign(
        high=[1.1, 2.1]
    )

    @pytest.mark.parametrize(
        ("a", "b", "title"),
        [
            (RATIOS, RATIOS, "The intervals of the two runs overlap at all 2 points"),
            (
                RATIOS,
                RATIOS.assign(time_ratio=3.0, low=2.9, high=3.1),
                "The intervals of the two runs do not overlap at 2 of 2 points",
            ),
            (
                times(),
                times(3.0),
                "b was slower than a at 4 of 4 points (margin 1.05), and faster at 0",
            ),
            (
                times(),
                times(0.3),
                "b was slower than a at 0 of 4 points (margin 1.05), and faster at 4",
            ),
            (
                pd.DataFrame({"call": [1, 2], "open_fds": [2, 4]}),
                pd.DataFrame({"call": [1, 2], "open_fds": [2, 2]}),
                "open fds: different in 1 of 2 rows that both runs have",
            ),
            (
                pd.DataFrame({"step": ["open", "post"], "kind": ["error", "error"], "most_fds": [4, 4]}),
                pd.DataFrame({"step": ["open", "post"], "kind": ["error", "error"], "most_fds": [4, 0]}),
                "most fds: different at 1 of 2 points",
            ),
        ],
    )
    def test_its_title_states_the_answer(self, a, b, title):
        drawn = overlay(a, b, "", ("a", "b"))
        assert drawn.title == title
        assert drawn.alt

    def test_the_column_that_a_figure_is_named_after_is_drawn(self):
        table = pd.DataFrame({"call": [1, 2], "open_fds": [2, 4], "registrations": [4, 8]})
        assert overlay(table, table, "registrations", ("a", "b")).title.startswith("registrations: the same")

    @pytest.mark.parametrize(
        "columns",
        [
            {"time_ratio": [1.0], "low": [0.9], "high": [1.1]},
            {"pair": [0], "seconds": [1.0]},
            {"call": [1, 1], "open_fds": [2, 2]},
        ],
        ids=["ratios", "times", "counts"],
    )
    def test_rows_that_nothing_tells_apart_have_none(self, columns):
        rows = len(next(iter(columns.values())))
        tables = [pd.DataFrame({"queue": [queue] * rows, **columns}) for queue in ("libaio", "io_uring")]
        assert overlay(*tables, "", ("a", "b")) is None

    def test_columns_that_fit_no_figure_have_none(self):
        table = pd.DataFrame({"connector": ["a"], "reason": ["b"]})
        assert overlay(table, table, "", ("a", "b")) is None


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    a, b = make_run(tmp_path / "ssd"), make_run(tmp_path / "nvme", measured=3)
    times().to_csv(a / "tables" / f"{LEAVES}_steady.csv", index=False)
    times(2.0, seed=1).to_csv(b / "tables" / f"{LEAVES}_steady.csv", index=False)
    build(a)
    build(b)
    return a, b


class TestPage:
    def test_it_lies_beside_the_second_run_and_not_beside_a_reference(self, two, tmp_path):
        reference = Path(shutil.copytree(two[0], tmp_path / "docs" / "reference"))
        assert compare_runs(reference, two[1]).page == tmp_path / "reference-vs-nvme" / "index.html"
        assert list(reference.parent.iterdir()) == [reference]

    def test_it_has_what_it_joined_in_its_folder(self, two):
        page = compare_runs(*two).page
        files = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*") if path.is_file()}
        assert {"claims.csv", f"tables/{LEAVES}_growth.csv", f"tables/{LEAVES}_steady_times.csv"} <= files
        assert {f"figures/{LEAVES}_growth_growth.png", f"figures/{LEAVES}_steady_times.png"} <= files

    def test_every_figure_has_a_narrow_one_for_phones(self, two):
        """Overlays, times, and a figure that is only shown side by side, of which each run has its own."""
        for run in two:
            (run / "tables" / f"{LEAVES}_growth.csv").write_text("connector,reason\na,b\n")
        page = compare_runs(*two).page
        pictures = BeautifulSoup(page.read_text(), "html.parser")("img")
        assert len(pictures) == 3
        narrow = [two[0], two[1], page.parent]
        files = [next((folder / "figures" / "narrow").glob("*.png")) for folder in narrow]
        assert [one.parent.source["srcset"] for one in pictures] == [data_uri(file) for file in files]

    def test_a_figure_of_a_run_without_a_narrow_one_is_shown_as_it_is(self, two):
        for run in two:
            (run / "tables" / f"{LEAVES}_growth.csv").write_text("connector,reason\na,b\n")
            shutil.rmtree(run / "figures" / "narrow")
        pictures = BeautifulSoup(compare_runs(*two).page.read_text(), "html.parser")("img")
        assert [one.parent.name for one in pictures] == ["figure", "figure", "picture"]

    def test_it_names_both_verdicts_what_changed_and_how_times_compare(self, two):
        text = text_of(compare_runs(*two).page)
        assert "ssd: 2 of 2 claims hold" in text
        assert "nvme: 1 of 2 claims hold, 1 fail" in text
        assert re.search(r"growth holds -> fails 2 ✓ holds , cell 0 3 ✗ fails , cell 0", text)
        assert "nvme was slower than ssd at 4 of 4 points" in text

    def test_its_links_lead_to_cells_of_both_runs(self, two):
        page = compare_runs(*two).page
        links = set(re.findall(r'href="([^"#]+)[#"]', page.read_text())) - {"data:,"}
        assert f"../ssd/html/{LEAVES}.html" in links
        assert [link for link in links if not (page.parent / link).exists()] == []

    def test_elsewhere_its_links_lead_there_too(self, two, tmp_path):
        page = compare_runs(*two, tmp_path / "deep" / "er").page
        links = set(re.findall(r'href="([^"#]+)[#"]', page.read_text())) - {"data:,"}
        assert [link for link in links if not (page.parent / link).exists()] == []

    def test_runs_that_share_nothing_have_a_page_that_says_so(self, tmp_path):
        a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", notebook="01_reproduce_the_leak")
        text = text_of(compare_runs(a, b).page)
        for what in ("No table of times", "No figure is in both", "No table is in both", "only in the first"):
            assert what in text

    def test_a_comparison_is_replaced_without_what_an_earlier_one_left(self, two):
        page = compare_runs(*two).page
        before = page.read_text()
        (page.parent / "tables" / "stale.csv").touch()
        assert compare_runs(*two).page.read_text() == before
        assert not (page.parent / "tables" / "stale.csv").exists()

    def test_what_cannot_be_joined_and_what_only_one_run_has_is_named(self, two):
        pd.DataFrame({"fd": [3]}).to_csv(two[0] / "tables" / f"{LEAVES}_files.csv", index=False)
        pd.DataFrame({"fd": [4]}).to_csv(two[1] / "tables" / f"{LEAVES}_files.csv", index=False)
        pd.DataFrame({"call": [1]}).to_csv(two[1] / "tables" / f"{LEAVES}_more.csv", index=False)
        text = text_of(compare_runs(*two).page)
        assert f"Not joined, because no columns identify their rows: {LEAVES}_files." in text
        assert f"Only in nvme: {LEAVES}_more." in text

    def test_runs_of_one_name_are_told_apart_by_their_folders(self, tmp_path):
        (tmp_path / "old").mkdir()
        (tmp_path / "new").mkdir()
        a, b = make_run(tmp_path / "old" / "base"), make_run(tmp_path / "new" / "base")
        text = text_of(compare_runs(a, b, tmp_path / "both").page)
        assert "old/base: 2 of 2 claims hold" in text
        assert "new/base: 2 of 2 claims hold" in text

    @pytest.mark.parametrize("name", ["a#1", "50%?x", 'b <b>&"q'])
    def test_a_run_of_any_name_is_linked_to_and_its_name_is_text(self, tmp_path, name):
        a, b = make_run(tmp_path / name), make_run(tmp_path / "other")
        build(a)
        build(b)
        page = compare_runs(a, b).page
        links = set(re.findall(r'href="([^"#]+)[#"]', page.read_text())) - {"data:,"}
        assert len(links) > 4
        assert [link for link in links if not (page.parent / unquote(link)).exists()] == []
        assert "<b>" not in page.read_text()

    def test_a_run_that_is_not_finished_is_not_shown_as_one_that_holds(self, two):
        known = json.loads((two[0] / "provenance.json").read_text())
        (two[0] / "provenance.json").write_text(json.dumps({**known, "planned": [LEAVES, "05_more"]}))
        assert '<p class="verdict inconclusive">ssd: ' in compare_runs(*two).page.read_text()


class TestBadInput:
    def test_a_run_and_itself(self, two):
        with pytest.raises(ConfigError, match="are the same run"):
            compare_runs(two[0], two[0].parent / "nvme" / ".." / "ssd")

    def test_no_run(self, two, tmp_path):
        with pytest.raises(ConfigError, match="expected the folder of a run"):
            compare_runs(two[0], tmp_path / "missing")
        assert not (tmp_path / "ssd-vs-missing").exists()

    def test_a_run_in_the_place_of_the_comparison_is_not_written_into(self, two):
        before = (two[1] / "index.html").read_text()
        with pytest.raises(ConfigError, match="files that are not a comparison; give a new or empty folder"):
            compare_runs(*two, two[1])
        assert (two[1] / "index.html").read_text() == before

    def test_a_file_in_the_place_of_the_comparison(self, two, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"--out .*file could not be created"):
            compare_runs(*two, tmp_path / "file")

    def test_a_folder_with_files_of_others_is_not_written_into(self, two, tmp_path):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "index.html").write_text("mine")
        with pytest.raises(ConfigError, match="give a new or empty folder"):
            compare_runs(*two, tmp_path / "site")
        assert (tmp_path / "site" / "index.html").read_text() == "mine"

    def test_a_table_that_is_none(self, two):
        (two[1] / "tables" / f"{LEAVES}_growth.csv").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match=r"_growth\.csv cannot be read"):
            compare_runs(*two)

    def test_a_run_that_is_gone_meanwhile(self, two):
        shutil.rmtree(two[1])
        with pytest.raises(ConfigError, match="expected the folder of a run"):
            compare_runs(*two)
