"""Claims and their verdicts, ratios and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hicache_nixl.lab.runs.claims import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    Claim,
    above,
    at_most,
    exactly,
    ledger,
    not_above,
)
from hicache_nixl.lab.statistics import Estimate, Ratio, paired_ratio, ratio_table, told_apart

SECONDS = st.floats(1e-4, 10)
PAIRS = st.lists(st.tuples(SECONDS, SECONDS), min_size=2, max_size=12)


def ratio(low: float, high: float) -> Ratio:
    return Ratio((low + high) / 2, low, high, 8)


class TestExactly:
    @pytest.mark.parametrize(("expected", "measured"), [(167, 167), ([1, 2], [1, 2]), (None, None)])
    def test_equal_holds(self, expected, measured):
        assert exactly("growth", "A sentence.", expected, measured).verdict == HOLDS

    @pytest.mark.parametrize(("expected", "measured"), [(167, 168), ([1, 2], [1]), (7, None), (0, -1)])
    def test_anything_else_fails_without_tolerance(self, expected, measured):
        assert exactly("growth", "A sentence.", expected, measured).verdict == FAILS

    def test_it_keeps_what_was_expected_and_measured_as_text(self):
        claim = exactly("growth", "Two per key.", 1351, 1350)
        assert claim == Claim("growth", "Two per key.", "1351", "1350", "fails")


class TestAtMost:
    @pytest.mark.parametrize(
        ("low", "high", "verdict"),
        [
            (0.9, 1.1, HOLDS),
            (0.9, 1.25, HOLDS),
            (1.25, 1.25, HOLDS),
            (1.0, 1.2501, INCONCLUSIVE),
            (1.25, 1.3, INCONCLUSIVE),
            (1.2501, 1.3, FAILS),
            (2.0, 3.0, FAILS),
        ],
    )
    def test_the_interval_decides(self, low, high, verdict):
        assert at_most("cost", "A sentence.", 1.25, ratio(low, high)).verdict == verdict

    def test_it_keeps_the_margin_and_the_interval_as_text(self):
        claim = at_most("cost", "Cheap.", 1.25, ratio(0.9, 1.1))
        assert (claim.expected, claim.measured) == ("at most 1.25", "1.00 [0.90, 1.10]")

    def test_an_estimate_in_its_own_unit_is_claimed_alike(self):
        claim = at_most("growth", "Flat.", 0.5, Estimate(0.4, -0.1, 0.52, 30))
        assert claim == Claim("growth", "Flat.", "at most 0.5", "0.4 [-0.1, 0.52]", INCONCLUSIVE)


class TestAbove:
    @pytest.mark.parametrize(
        ("low", "high", "verdict"),
        [
            (0.1, 0.3, HOLDS),
            (0.0, 0.3, INCONCLUSIVE),
            (-0.1, 0.3, INCONCLUSIVE),
            (-0.1, 0.0, FAILS),
            (-0.3, -0.1, FAILS),
            (0.0, 0.0, FAILS),
        ],
    )
    def test_the_interval_decides(self, low, high, verdict):
        estimate = Estimate((low + high) / 2, low, high, 30)
        assert above("grows", "A sentence.", 0, estimate).verdict == verdict

    def test_a_ratio_is_claimed_alike(self):
        assert above("slower", "Slower.", 1, ratio(1.1, 1.3)).verdict == HOLDS

    def test_it_keeps_the_margin_and_the_interval_as_text(self):
        claim = above("grows", "It grows.", 0.01, Estimate(2, 1.9, 2.25, 30))
        assert claim == Claim("grows", "It grows.", "above 0.01", "2 [1.9, 2.25]", HOLDS)

    @pytest.mark.parametrize(("low", "high"), [(1.3, 1.4), (1.0, 1.4), (1.0, 1.2), (1.25, 1.25)])
    def test_it_never_holds_together_with_at_most(self, low, high):
        verdicts = [claim("c", "A sentence.", 1.25, ratio(low, high)).verdict for claim in (above, at_most)]
        assert verdicts in ([HOLDS, FAILS], [FAILS, HOLDS], [INCONCLUSIVE, INCONCLUSIVE])


class TestLedger:
    def test_a_row_per_claim_in_order(self):
        table = ledger([exactly("b", "B.", 1, 1), exactly("a", "A.", 1, 2)])
        assert table.columns.tolist() == ["id", "sentence", "expected", "measured", "verdict"]
        assert table.id.tolist() == ["b", "a"]
        assert table.verdict.tolist() == ["holds", "fails"]

    def test_no_claims_are_an_empty_table_with_its_columns(self):
        assert ledger([]).columns.tolist() == ["id", "sentence", "expected", "measured", "verdict"]


class TestPairedRatio:
    def test_equal_ratios_have_no_spread(self):
        assert paired_ratio([3, 6, 9], [2, 4, 6]) == Ratio(1.5, 1.5, 1.5, 3)

    def test_it_is_the_median_of_the_ratios_and_not_the_ratio_of_the_medians(self):
        found = paired_ratio([1, 10, 100], [2, 10, 50])
        assert (found.median, found.pairs) == (1.0, 3)
        found = paired_ratio([4, 10, 9], [1, 10, 90])
        assert found.median == 1.0

    def test_the_interval_is_that_of_the_pairs(self):
        """Of 3 pairs a resample is of one pair alone in 1 of 27 cases, more than 2.5 % of them."""
        found = paired_ratio([1, 2, 8], [1, 1, 1])
        assert (found.median, found.low, found.high) == (2, 1, 8)

    def test_more_pairs_narrow_the_interval(self):
        noise = np.random.default_rng(7).lognormal(0, 0.2, 400)
        few, many = (paired_ratio(noise[:n], np.ones(n)) for n in (10, 400))
        assert many.high - many.low < few.high - few.low

    @given(PAIRS)
    def test_the_interval_holds_the_median(self, pairs):
        found = paired_ratio(*zip(*pairs, strict=True))
        assert found.low <= found.median <= found.high
        assert found.pairs == len(pairs)

    def test_the_same_seed_gives_the_same_interval(self):
        after, before = np.random.default_rng(1).lognormal(0, 0.3, (2, 9))
        assert paired_ratio(after, before, seed=5) == paired_ratio(after, before, seed=5)

    @pytest.mark.parametrize("count", [0, 1])
    def test_fewer_pairs_than_two_are_an_error(self, count):
        with pytest.raises(ValueError, match=f"{count} pairs; an interval takes two or more"):
            paired_ratio([1.0] * count, [1.0] * count)

    @pytest.mark.parametrize("others", [1, 2])
    def test_times_that_are_not_in_pairs_are_an_error(self, others):
        with pytest.raises(ValueError, match=f"3.*{others}"):
            paired_ratio([1.0, 2.0, 3.0], [1.0] * others)


@pytest.fixture
def times() -> pd.DataFrame:
    """Two cells, three pairs; the second arm takes twice as long in the first cell, as long in the second."""
    rows = [
        {"operation": operation, "pair": pair, "arm": arm, "seconds": base * factor, "bytes": 2**20}
        for operation, factors in (("set", (1, 2)), ("get", (1, 1)))
        for arm, factor in zip(("leaky", "try_finally"), factors, strict=True)
        for pair, base in enumerate((0.01, 0.02, 0.04))
    ]
    return pd.DataFrame(rows)


class TestRatioTable:
    def test_a_row_per_cell_with_the_ratio_of_its_pairs(self, times):
        table = ratio_table(times, ["operation"], "leaky", "try_finally").set_index("operation")
        assert table.index.tolist() == ["set", "get"]
        assert table.loc["set", ["time_ratio", "low", "high", "pairs"]].tolist() == [2, 2, 2, 3]
        assert table.loc["get", ["time_ratio", "low", "high"]].tolist() == [1, 1, 1]

    def test_the_medians_are_in_milliseconds_and_mib_per_second(self, times):
        row = ratio_table(times, ["operation"], "leaky", "try_finally").iloc[0]
        assert math.isclose(row.leaky_ms, 20)
        assert math.isclose(row.try_finally_ms, 40)
        assert math.isclose(row.leaky_MiB_s, 50)
        assert math.isclose(row.try_finally_MiB_s, 25)

    def test_pairs_are_joined_by_number_and_not_by_order(self, times):
        shuffled = times.sample(frac=1, random_state=3)
        table = ratio_table(shuffled, ["operation"], "leaky", "try_finally").set_index("operation")
        assert table.loc["set", ["time_ratio", "low", "high"]].tolist() == [2, 2, 2]

    def test_cells_of_two_columns_keep_both(self, times):
        cells = pd.concat([times.assign(keys=1), times.assign(keys=64)])
        table = ratio_table(cells, ["operation", "keys"], "leaky", "try_finally")
        assert table[["operation", "keys"]].values.tolist() == [
            ["set", 1],
            ["get", 1],
            ["set", 64],
            ["get", 64],
        ]


class TestToldApart:
    def ratios(self, *intervals: tuple[float, float]) -> pd.DataFrame:
        rows = [{"operation": "set", "low": low, "high": high} for low, high in intervals]
        return pd.DataFrame([*rows, {"operation": "get", "low": 5.0, "high": 6.0}])

    def test_it_counts_slower_faster_and_neither(self):
        ratios = self.ratios((1.1, 1.2), (0.8, 0.9), (0.9, 1.1), (1.2, 1.5))
        assert told_apart(ratios, "set", "queues") == (
            "set: slower after the fix for 2 of 4 queues, faster for 1, no difference told for 1"
        )

    def test_an_interval_that_touches_1_tells_nothing(self):
        assert told_apart(self.ratios((1.0, 1.2), (0.8, 1.0)), "set", "page sizes") == (
            "set: no difference between before and after can be told for any of 2 page sizes"
        )


class TestNotAbove:
    @pytest.mark.parametrize(
        ("low", "high", "verdict"),
        [(0.8, 0.9, "holds"), (0.9, 1.4, "holds"), (1.0, 1.4, "holds"), (1.01, 1.4, "fails")],
    )
    def test_it_fails_only_when_the_whole_interval_is_above(self, low, high, verdict):
        claim = not_above("same", "Not slower.", 1, Ratio((low + high) / 2, low, high, 8))
        assert (claim.verdict, claim.expected) == (verdict, "1 or less within its interval")
