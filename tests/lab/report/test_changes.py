"""What is worse in a second run: verdicts, counts and whole intervals; equal runs are never worse."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from test_report import LEAVES, make_run

from hicache_nixl.lab.report import compare_runs
from hicache_nixl.lab.report.changes import MARGIN, change_of_ratios
from hicache_nixl.lab.runs.folder import RunFolder
from hicache_nixl.lab.statistics import ratio_table

matplotlib.use("Agg")


def ratios(slower: float = 1.0, seed: int = 0, noise: float = 0.2) -> pd.DataFrame:
    """A table of ratios of two connectors, six pairs at each of twelve points."""
    drawn = np.random.default_rng(seed)
    rows = [
        {"operation": operation, "keys": keys, "pair": pair, "arm": arm, "bytes": 1}
        | {"seconds": factor * drawn.lognormal(0, noise)}
        for operation in ("set", "get")
        for keys in range(6)
        for pair in range(6)
        for arm, factor in (("old", 1), ("new", slower))
    ]
    return ratio_table(pd.DataFrame(rows), ["operation", "keys"], "old", "new")


@pytest.fixture
def two(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    a, b = (RunFolder(make_run(tmp_path / name)) for name in "ab")
    return a, b


def with_ratios(two: tuple[RunFolder, RunFolder], *tables: pd.DataFrame) -> tuple[Path, Path]:
    for files, table in zip(two, tables, strict=True):
        files.write_table(LEAVES, "ratios", table)
    return two[0].path, two[1].path


def rewrite(files: RunFolder, **columns: list[str]) -> None:
    files.write_claims(LEAVES, files.claims().assign(**columns))


class TestEqualRuns:
    def test_nothing_is_worse_in_a_run_of_the_same_values(self, two):
        result = compare_runs(two[0].path, two[1].path)
        assert (result.changes, result.verdict) == ([], "nothing is worse in b than in a")

    def test_noise_is_nothing_worse_and_nothing_better(self, two):
        for seed in range(0, 20, 2):
            tables = (ratios(seed=seed), ratios(seed=seed + 1))
            assert compare_runs(*with_ratios(two, *tables)).changes == []

    @pytest.mark.slow
    def test_noise_hardly_ever_reaches_the_margin(self):
        bounds = ["time_ratio", "low", "high"]
        found = [
            change_of_ratios(*(ratios(seed=seed + run)[bounds].to_numpy()[:6] for run in (0, 1)))
            for seed in range(0, 200, 2)
        ]
        assert sum(change.low > MARGIN or change.high < 1 / MARGIN for change in found) == 0

    def test_measured_times_that_differ_within_their_margin_are_no_change(self, two):
        for files, measured in zip(two, ("1.00 [0.90, 1.01]", "1.01 [0.95, 1.04]"), strict=True):
            rewrite(files, expected=["at most 1.05", "0"], measured=[measured, "0"])
        assert compare_runs(two[0].path, two[1].path).changes == []

    def test_a_slow_hour_is_not_worse(self, two):
        """Both connectors take three times as long: their ratio is the same."""
        slow = ratios(seed=1).assign(old_ms=3.0, new_ms=3.0)
        assert compare_runs(*with_ratios(two, ratios(), slow)).of("worse") == []


class TestWorse:
    def test_a_claim_that_held_and_fails(self, two):
        rewrite(two[1], measured=["3", "0"], verdict=["fails", "holds"])
        (change,) = compare_runs(two[0].path, two[1].path).of("worse")
        assert (change.what, change.first, change.second) == (
            "claim growth: Two & <b>more</b>.",
            "2 (holds)",
            "3 (fails)",
        )
        assert compare_runs(two[1].path, two[0].path).of("better")

    def test_a_count_that_failed_and_changed(self, two):
        for files, measured in zip(two, ("3", "4"), strict=True):
            rewrite(files, measured=[measured, "0"], verdict=["fails", "holds"])
        assert len(compare_runs(two[0].path, two[1].path).of("worse")) == 1

    def test_what_became_inconclusive_changed_and_is_not_worse(self, two):
        rewrite(two[1], verdict=["inconclusive", "holds"])
        assert [change.effect for change in compare_runs(two[0].path, two[1].path).changes] == ["changed"]

    def test_a_notebook_that_does_not_finish_any_more(self, two):
        two[1].stop(LEAVES, "it crashed")
        known = two[1].provenance()
        del known["notebooks"][LEAVES]["finished"]
        (two[1].path / "provenance.json").write_text(json.dumps(known))
        (change,) = compare_runs(two[0].path, two[1].path).of("worse")
        assert (change.what, change.second) == (f"notebook {LEAVES}", "unfinished")

    def test_a_ratio_whose_whole_interval_is_beyond_the_margin(self, two):
        result = compare_runs(*with_ratios(two, ratios(), ratios(2.0, seed=1)))
        worse = result.of("worse")
        assert [change.what.partition(":")[0] for change in worse] == [
            f"ratio of times in {LEAVES}_ratios ({operation})" for operation in ("set", "get")
        ]
        assert result.verdict == "2 things are worse in b than in a"
        assert len(compare_runs(two[1].path, two[0].path).of("better")) == 2


class TestPage:
    def test_settings_that_differ_come_first_then_claims_of_both_and_the_rest_is_folded(self, two):
        a, b = two
        extra = b.claims().assign(notebook="06_more", id=lambda table: "more_" + table.id)
        b.write_claims("06_more", extra)
        known = b.provenance()
        known["notebooks"][LEAVES]["parameters"]["queue"] = "io_uring"
        (b.path / "provenance.json").write_text(json.dumps(known))
        result = compare_runs(a.path, b.path)
        assert (result.shared, result.only) == (2, (0, 2))
        assert result.settings[["what", "a", "b"]].values.tolist() == [["05: queue", "libaio", "io_uring"]]
        page = BeautifulSoup(result.page.read_text(), "html.parser")
        heads = [heading["id"] for heading in page("h2")]
        assert heads == ["setting", "claims", "figures", "times", "tables", "only"]
        assert "None of the 2 claims that both runs have." in page.get_text()
        folded = page.select_one("#only ~ details")
        assert folded.summary.get_text() == "only in b: 2 claims, 0 tables"
        assert len(folded.select("table.ledger tbody tr")) == 2
        assert "not in this run" not in page.select_one("#claims").find_next("p").get_text()
