"""Slopes of noisy series and differences of pairs, with their intervals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hicache_nixl.lab.runs.claims import Claim, no_slower
from hicache_nixl.lab.statistics import (
    CONFIDENCE,
    FEWEST,
    PAIRS,
    Estimate,
    against_reference,
    median_of,
    paired_ratio,
    pooled_ratio,
    ratio_table,
    slope,
    slope_table,
    unpaired_ratio,
)
from hicache_nixl.resources import resource

CALLS = 40
SECONDS = st.floats(1e-4, 10)
PAIRED_SECONDS = st.lists(st.tuples(SECONDS, SECONDS), min_size=6, max_size=12)


def series(seed: int, per_call: float = 3.0, noise: float = 5.0, calls: int = CALLS) -> pd.DataFrame:
    """Return a replay whose ``seconds`` grow by ``per_call``, with noise."""
    call = np.arange(1, calls + 1)
    seconds = 100 + per_call * call + np.random.default_rng(seed).normal(0, noise, calls)
    return pd.DataFrame({"call": call, "seconds": seconds})


NOISE = {
    "log-normal": lambda generator, shape: generator.lognormal(0, 0.2, shape),
    "skewed": lambda generator, shape: generator.lognormal(0, 1.5, shape) - 1,  # median 0
    "heavy tails": lambda generator, shape: generator.standard_cauchy(shape),
    "outliers": lambda generator, shape: (
        generator.normal(0, 1, shape) * 50.0 ** generator.binomial(1, 0.1, shape)
    ),
}
MEDIANS = {"log-normal": 1.0, "skewed": 0.0, "heavy tails": 0.0, "outliers": 0.0}
REPETITIONS = 2000
ERROR = 4 * math.sqrt(0.95 * 0.05 / REPETITIONS)  # of a simulated probability


@pytest.mark.parametrize("noise", NOISE)
class TestCoverage:
    @pytest.mark.parametrize("count", [6, 8, 12, 15, 17, 20])
    def test_the_interval_of_a_median_covers_what_it_says(self, noise, count):
        samples = NOISE[noise](np.random.default_rng(count), (REPETITIONS, count))
        found = [median_of(sample) for sample in samples]
        covered = np.mean([one.low <= MEDIANS[noise] <= one.high for one in found])
        assert covered >= CONFIDENCE - ERROR
        assert covered <= (1 - 2**-7) + ERROR  # 8 values cover 99.2 %, which is the most of all counts

    @pytest.mark.parametrize("counts", [(6, 6), (6, 12), (15, 15), (17, 6)], ids=str)
    def test_the_interval_of_a_ratio_of_two_samples_does_too(self, noise, counts):
        generator = np.random.default_rng(sum(counts))
        first, second = (np.exp(np.clip(NOISE[noise](generator, (300, n)), -300, 300)) for n in counts)
        found = [unpaired_ratio(1.3 * one, other) for one, other in zip(first, second, strict=True)]
        covered = np.mean([one.low <= 1.3 * (1 + 1e-9) and one.high >= 1.3 * (1 - 1e-9) for one in found])
        assert covered >= CONFIDENCE - math.sqrt(7) * ERROR

    @pytest.mark.parametrize("count", [6, 10, 20])
    def test_the_interval_of_a_slope_does_too_where_the_noise_is_independent(self, noise, count):
        samples = NOISE[noise](np.random.default_rng(count), (200, count))
        calls = np.arange(count)
        tables = [pd.DataFrame({"call": calls, "seconds": 3 * calls + sample}) for sample in samples]
        covered = np.mean([one.low <= 3 <= one.high for one in (slope(table, "seconds") for table in tables)])
        assert covered >= CONFIDENCE - math.sqrt(10) * ERROR


class TestSlope:
    @given(st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(6, 30))
    def test_a_straight_line_has_its_slope_and_an_interval_of_one_point(self, per_call, first, calls):
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

    @pytest.mark.parametrize("calls", [0, 1, 5])
    def test_too_few_calls_are_an_error(self, calls):
        with pytest.raises(ValueError, match=f"^{calls} values; an interval needs 6 or more$"):
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


class TestPairedRatio:
    def test_equal_ratios_have_an_interval_of_one_point(self):
        assert paired_ratio([3, 6, 9, 3, 6, 9], [2, 4, 6, 2, 4, 6]) == Estimate(1.5, 1.5, 1.5, 6)

    def test_it_is_the_median_of_the_ratios_and_not_the_ratio_of_the_medians(self):
        found = paired_ratio([4, 10, 9, 40, 100, 90, 10], [1, 10, 90, 10, 100, 900, 10])
        assert (found.median, found.count) == (1.0, 7)

    def test_the_interval_consists_of_two_of_the_ratios(self):
        found = paired_ratio([1, 2, 8, 3, 5, 13], np.ones(6))
        assert (found.median, found.low, found.high) == (4, 1, 13)
        found = paired_ratio([1, 2, 8, 3, 5, 13, 14, 15, 16], np.ones(9))
        assert (found.median, found.low, found.high) == (8, 2, 15)

    def test_more_pairs_narrow_the_interval(self):
        noise = np.random.default_rng(7).lognormal(0, 0.2, 400)
        few, many = (paired_ratio(noise[:n], np.ones(n)) for n in (10, 400))
        assert many.high - many.low < few.high - few.low

    @given(PAIRED_SECONDS)
    def test_the_interval_contains_the_median(self, pairs):
        found = paired_ratio(*zip(*pairs, strict=True))
        assert found.low <= found.median <= found.high
        assert found.count == len(pairs)


@pytest.fixture
def times() -> pd.DataFrame:
    """Two points, six pairs; the second arm takes twice as long at the first point, as long at the second."""
    rows = [
        {"operation": operation, "pair": pair, "arm": arm, "seconds": base * factor, "bytes": 2**20}
        for operation, factors in (("set", (1, 2)), ("get", (1, 1)))
        for arm, factor in zip(("leaky", "try_finally"), factors, strict=True)
        for pair, base in enumerate((0.01, 0.02, 0.04, 0.01, 0.02, 0.04))
    ]
    return pd.DataFrame(rows)


class TestRatioTable:
    def test_a_row_per_point_with_the_ratio_of_its_pairs(self, times):
        table = ratio_table(times, ["operation"], "leaky", "try_finally").set_index("operation")
        assert table.index.tolist() == ["set", "get"]
        assert table.loc["set", ["time_ratio", "low", "high", "pairs"]].tolist() == [2, 2, 2, 6]
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

    def test_points_of_two_columns_keep_both(self, times):
        points = pd.concat([times.assign(keys=1), times.assign(keys=64)])
        table = ratio_table(points, ["operation", "keys"], "leaky", "try_finally")
        assert table[["operation", "keys"]].values.tolist() == [
            ["set", 1],
            ["get", 1],
            ["set", 64],
            ["get", 64],
        ]


class TestPooledRatio:
    def test_every_point_has_the_same_weight_in_every_pair(self, times):
        points = pd.concat([times.assign(keys=1), times.assign(keys=64)])
        sets, gets = (points[points.operation == operation] for operation in ("set", "get"))
        assert pooled_ratio(sets, ["keys"], "leaky", "try_finally").median == pytest.approx(2)
        both = pooled_ratio(points, ["operation", "keys"], "leaky", "try_finally")
        assert both.median == pytest.approx(math.sqrt(2))
        assert both.count == len(gets.pair.unique())

    def test_noise_averages_out_over_the_points(self):
        generator = np.random.default_rng(2)
        index = pd.MultiIndex.from_product([range(12), range(8), ("a", "b")], names=["keys", "pair", "arm"])
        noisy = pd.DataFrame({"seconds": generator.lognormal(0, 0.2, len(index))}, index=index).reset_index()
        one = paired_ratio(*(noisy[(noisy["keys"] == 0) & (noisy.arm == arm)].seconds for arm in "ab"))
        all_of_them = pooled_ratio(noisy, ["keys"], "a", "b")
        assert all_of_them.high - all_of_them.low < (one.high - one.low) / 2


class TestPower:
    """How often a true slowdown fails a claim, with noise of that standard deviation in the log of a ratio."""

    def share(self, slowdown: float, noise: float, pairs: int, verdict: str) -> float:
        ratios = slowdown * np.random.default_rng(pairs).lognormal(0, noise, (1000, pairs))
        claims = [no_slower("same", "No slower.", median_of(ratio)) for ratio in ratios]
        return np.mean([claim.verdict == verdict for claim in claims])

    def test_the_full_profile_detects_a_slowdown_of_1_3_four_times_in_five(self):
        assert self.share(1.3, 0.2, PAIRS, "fails") >= 0.8

    def test_the_quick_profile_detects_one_of_1_5_four_times_in_five(self):
        assert self.share(1.5, 0.2, FEWEST, "fails") >= 0.8 - 0.05

    @pytest.mark.parametrize("pairs", [FEWEST, PAIRS])
    def test_noise_alone_rarely_fails_a_claim(self, pairs):
        assert self.share(1.0, 0.2, pairs, "fails") < 0.02

    @pytest.mark.parametrize(
        ("slowdown", "noise", "detected"), [(1.2, 0.1, 0.98), (1.2, 0.2, 0.57), (1.3, 0.2, 0.92)]
    )
    def test_the_table_of_the_docstring(self, slowdown, noise, detected):
        assert self.share(slowdown, noise, 17, "fails") == pytest.approx(detected, abs=0.05)

    def test_the_full_profile_measures_that_many_pairs(self):
        profile = yaml.safe_load(resource("notebooks/parameters/full.yaml").read_text())
        repeats = {name: given["repeats"] for name, given in profile.items() if "repeats" in (given or {})}
        timed = {name: count for name, count in repeats.items() if name[:2] not in ("01", "02")}
        assert timed
        assert set(timed.values()) == {PAIRS}


POINTS = pd.MultiIndex.from_product(
    [("set", "get"), ("libaio", "io_uring"), (4096, 65536, 524288)],
    names=["operation", "queue", "page_bytes"],
)


def a_run(seed: int, slower: float = 1.0, uneven: float = 0.0, noise: float = 0.2) -> pd.DataFrame:
    """Return the ``ratio_table`` of a run in which ``scoped`` became slower, on a machine that differs unevenly."""
    generator = np.random.default_rng(seed)
    usual = np.random.default_rng(0).uniform(0.5, 1.1, len(POINTS))
    machine = 2 * generator.lognormal(0, uneven, len(POINTS))
    rows = []
    for point, ratio, factor in zip(POINTS, usual, machine, strict=True):
        for pair in range(PAIRS):
            load = factor * generator.lognormal(0, 0.3)
            for arm, seconds in (("0.5.23", 1.0), ("scoped", ratio * slower * generator.lognormal(0, noise))):
                about = dict(zip(POINTS.names, point, strict=True))
                rows.append({**about, "pair": pair, "arm": arm, "seconds": load * seconds, "bytes": 1})
    return ratio_table(pd.DataFrame(rows), POINTS.names, "0.5.23", "scoped")


class TestAgainstReference:
    REFERENCE = a_run(100)

    def claimed(self, run: pd.DataFrame) -> Claim:
        found = against_reference(run, self.REFERENCE, "0.5.23", "scoped")
        return no_slower("past", "scoped is no slower, relative to 0.5.23, than in the reference run.", found)

    def test_scoped_made_slower_by_30_percent_fails(self):
        verdicts = [self.claimed(a_run(seed, slower=1.3)).verdict for seed in range(5)]
        assert verdicts.count("fails") >= 4

    def test_an_unchanged_one_does_not_fail(self):
        verdicts = [self.claimed(a_run(seed)).verdict for seed in range(5)]
        assert "fails" not in verdicts

    def test_a_machine_that_differs_unevenly_is_inconclusive(self):
        verdicts = [self.claimed(a_run(seed, slower=1.3, uneven=1.5)).verdict for seed in range(5)]
        assert set(verdicts) == {"inconclusive"}

    def test_only_points_of_both_runs_count(self):
        sets = a_run(1).query("operation == 'set'")
        assert against_reference(sets, self.REFERENCE, "0.5.23", "scoped").count == len(POINTS) // 2
        assert against_reference(sets[:5], self.REFERENCE, "0.5.23", "scoped") is None
        assert against_reference(sets.assign(page_bytes=1), self.REFERENCE, "0.5.23", "scoped") is None
        assert against_reference(sets, pd.DataFrame(), "0.5.23", "scoped") is None


class TestEstimate:
    @pytest.mark.parametrize(
        ("estimate", "text"),
        [
            ((1.02, 0.95, 1.1), "1.02 [0.95, 1.10]"),
            ((9.5, 0.954, 11.04), "9.5 [1.0, 11.0]"),
            ((0.4, -0.1, 0.52), "0.400 [-0.100, 0.520]"),
            ((1234.5, -3, 2e6), "1234 [-3, 2000000]"),
            ((1.23e-4, 1e-4, 2e-4), "0.000123 [0.000100, 0.000200]"),
            ((0, 0, 0), "0 [0, 0]"),
        ],
    )
    def test_it_is_written_with_three_significant_digits_of_the_largest(self, estimate, text):
        assert str(Estimate(*estimate, 8)) == text


class TestPairs:
    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_fewer_than_six_are_an_error(self, count):
        with pytest.raises(ValueError, match=f"^{count} values; an interval needs 6 or more$"):
            paired_ratio([1.0] * count, [1.0] * count)

    def test_times_that_are_not_in_pairs_are_an_error(self):
        with pytest.raises(ValueError, match=r"^3 and 2 values are not in pairs$"):
            paired_ratio([1.0, 2.0, 3.0], [1.0, 2.0])
