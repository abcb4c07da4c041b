"""Slopes of noisy series and differences of pairs, with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hicache_nixl.lab.statistics import (
    CONFIDENCE,
    Estimate,
    paired_difference,
    paired_ratio,
    slope,
    slope_table,
)

CALLS = 40


def series(seed: int, per_call: float = 3.0, noise: float = 5.0, calls: int = CALLS) -> pd.DataFrame:
    """Return a replay whose ``seconds`` grow by ``per_call``, with noise."""
    call = np.arange(1, calls + 1)
    seconds = 100 + per_call * call + np.random.default_rng(seed).normal(0, noise, calls)
    return pd.DataFrame({"call": call, "seconds": seconds})


class TestSlope:
    @given(st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(5, 30))
    def test_a_straight_line_is_its_own_slope_without_spread(self, per_call, first, calls):
        call = np.arange(1, calls + 1)
        found = slope(pd.DataFrame({"call": call, "fds": first + per_call * call}), "fds")
        assert found == Estimate(per_call, per_call, per_call, calls)

    @pytest.mark.parametrize("seed", range(5))
    def test_calls_that_took_far_too_long_do_not_move_it(self, seed):
        table = series(seed)
        slow = np.random.default_rng(seed).choice(CALLS, 5, replace=False)
        table.loc[slow, "seconds"] += 10_000
        least_squares = np.polyfit(table.call, table.seconds, 1)[0]
        found = slope(table, "seconds")
        assert abs(found.median - 3) < 0.3
        assert abs(found.median - 3) < abs(least_squares - 3) / 10
        assert found.low < 3 < found.high

    def test_the_interval_holds_the_true_slope_about_as_often_as_it_says(self):
        held = sum(
            found.low <= 3 <= found.high for found in (slope(series(s), "seconds") for s in range(200))
        )
        assert abs(held / 200 - CONFIDENCE) < 0.05

    def test_growth_that_is_lost_in_the_noise_is_not_told_from_none(self):
        found = slope(series(1, per_call=0.01), "seconds")
        assert found.low < 0 < found.high

    def test_more_calls_narrow_the_interval(self):
        few, many = (slope(series(3, calls=calls), "seconds") for calls in (10, 100))
        assert many.high - many.low < few.high - few.low
        assert (few.count, many.count) == (10, 100)

    def test_the_numbers_of_the_calls_count_and_not_their_order(self):
        table = series(4)
        assert slope(table.sample(frac=1, random_state=1), "seconds") == slope(table, "seconds")
        gaps = table.assign(call=table.call * 2)
        assert slope(gaps, "seconds").median == pytest.approx(slope(table, "seconds").median / 2)

    def test_another_column_stands_for_the_calls(self):
        table = series(4).rename(columns={"call": "minute"})
        assert slope(table, "seconds", over="minute") == slope(series(4), "seconds")

    @pytest.mark.parametrize("calls", [0, 1, 4])
    def test_too_few_calls_are_an_error(self, calls):
        with pytest.raises(
            ValueError, match=f"^{calls} values; a slope with an interval takes five or more$"
        ):
            slope(series(0, calls=calls), "seconds")


class TestSlopeTable:
    def test_a_row_per_connector_and_column_in_the_unit_asked_for(self):
        flat = series(0).assign(seconds=7.0, rss_bytes=1.0)
        grows = flat.assign(seconds=flat.call * 2e-6, rss_bytes=flat.call * 2048)
        table = slope_table({"flat": flat, "grows": grows}, {"seconds": 1e6, "rss_bytes": 1 / 1024})
        assert table.columns.tolist() == ["connector", "column", "per_call", "low", "high", "calls"]
        assert list(zip(table.connector, table.column, strict=True)) == [
            (connector, column) for connector in ("flat", "grows") for column in ("seconds", "rss_bytes")
        ]
        assert table.per_call.tolist() == pytest.approx([0, 0, 2, 2])
        assert table.calls.unique().tolist() == [CALLS]

    def test_the_interval_is_in_that_unit_too(self):
        (row,) = slope_table({"any": series(5)}, {"seconds": 1000}).itertuples()
        found = slope(series(5), "seconds")
        assert (row.low, row.per_call, row.high) == pytest.approx(
            (found.low * 1000, found.median * 1000, found.high * 1000)
        )


class TestPairedDifference:
    def test_it_is_the_median_of_the_differences_and_not_the_difference_of_the_medians(self):
        found = paired_difference([1, 10, 100], [0, 20, 50])
        assert (found.median, found.count) == (1, 3)

    def test_what_both_of_a_pair_have_in_common_is_no_spread(self):
        drift = np.linspace(0, 1000, 20)
        assert paired_difference(drift + 3, drift) == Estimate(3, 3, 3, 20)

    @pytest.mark.parametrize("seed", range(3))
    def test_the_interval_holds_a_known_difference(self, seed):
        generator = np.random.default_rng(seed)
        before = generator.lognormal(0, 1, 60)
        found = paired_difference(before + generator.normal(0.5, 0.2, 60), before)
        assert found.low < 0.5 < found.high
        assert found.low > 0.3

    def test_it_changes_its_sign_with_the_order(self):
        one, other = np.random.default_rng(6).lognormal(0, 1, (2, 15))
        assert paired_difference(one, other).median == -paired_difference(other, one).median

    def test_the_same_seed_gives_the_same_interval(self):
        one, other = np.random.default_rng(7).lognormal(0, 1, (2, 15))
        assert paired_difference(one, other, seed=3) == paired_difference(one, other, seed=3)

    def test_it_is_written_in_three_digits(self):
        assert str(Estimate(1234.5, 0.00012345, 2e6, 8)) == "1.23e+03 [0.000123, 2e+06]"


@pytest.mark.parametrize("statistic", [paired_ratio, paired_difference])
class TestPairs:
    @pytest.mark.parametrize("count", [0, 1])
    def test_fewer_than_two_are_an_error(self, statistic, count):
        with pytest.raises(ValueError, match=f"^{count} pairs; an interval takes two or more$"):
            statistic([1.0] * count, [1.0] * count)

    def test_times_that_are_not_in_pairs_are_an_error(self, statistic):
        with pytest.raises(ValueError, match=r"^3 and 2 times are not in pairs$"):
            statistic([1.0, 2.0, 3.0], [1.0, 2.0])
