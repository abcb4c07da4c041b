"""What a figure says follows from what was measured: a mutated table changes the words."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from measured import (
    BENCHMARK,
    BENCHMARK_TIMES,
    BOTH,
    CREATED,
    FACTS,
    FAULTS,
    INTO_LIMIT,
    LAW,
    LIMIT,
    PAIR,
    PR,
    PR_FLAT,
    RECORDED,
    SLOWER,
    timed,
)

from hicache_nixl.lab import figures
from hicache_nixl.lab.figures.words import gets_against, speed
from hicache_nixl.lab.runs.claims import no_slower
from hicache_nixl.lab.statistics import Estimate, pooled_ratio, pooled_table, ratio_table, slope

matplotlib.use("Agg")

pytestmark = pytest.mark.usefixtures("closed_figures")


def words(drawn: figures.Drawn) -> str:
    """All that a reader of a figure reads, and its alt text."""
    return "\n".join([*(text.get_text() for text in drawn.figure.findobj(Text)), drawn.alt])


def more(table: pd.DataFrame, calls: slice, by: int) -> pd.DataFrame:
    """A replay in which some calls left more descriptors, and the later ones kept them."""
    added = pd.Series(0, table.index)
    added.iloc[calls] = by
    return table.assign(
        open_fds=table.open_fds + added.cumsum(), storage_fds=table.storage_fds + added.cumsum()
    )


class TestGrowth:
    def test_every_recorded_point_is_met(self):
        assert (
            figures.growth(PR, RECORDED).title == "The replay matches 3 of the 3 counts that the PR recorded."
        )

    def test_a_descriptor_too_many_misses_the_points_after_it(self):
        drawn = figures.growth(more(PR, slice(12, 13), 1), RECORDED)
        assert drawn.title == "The replay matches 2 of the 3 counts that the PR recorded."
        assert "rises from 135 to 4168" in drawn.alt

    def test_the_baseline_is_said_to_be_inferred_from_the_log(self):
        told = "135 are open before the first call,\nan inference from the PR's log: 167 - 2 x 16"
        drawn = (
            figures.growth(PR, RECORDED),
            figures.hero(INTO_LIMIT, PR_FLAT, RECORDED, LIMIT),
            figures.two_counts(BOTH, "open_fds", "open descriptors"),
        )
        for one in drawn:
            assert told in words(one)
            assert told.replace("\n", " ") in one.alt

    def test_another_baseline_is_no_inference_and_moves_the_rings(self):
        table = PR.assign(open_fds=PR.open_fds + 5)
        drawn = figures.growth(table, RECORDED)
        assert "140 are open before the first call." in drawn.alt
        assert "inference" not in words(drawn)
        assert "PR: 167 +5" in words(drawn)
        assert "3 of the 3" in drawn.title


class TestLaw:
    def test_both_rates_are_labelled_with_their_kinds_of_pages(self):
        told = words(figures.law(LAW))
        assert "+2 per key:\nmulti-head, page_first" in told
        assert "+1 per key:\nMLA, page_first\nMLA, layer_first" in told
        assert "leaves 1 or 2 descriptors per key" in told

    def test_a_rate_is_that_of_the_calls_and_not_the_one_expected(self):
        told = words(figures.law(LAW.assign(left=3 * LAW["keys"])))
        assert "+3 per key:" in told
        assert "leaves 3 descriptors per key" in told
        assert "+2" not in told

    def test_a_kind_with_several_rates_says_so(self):
        told = words(figures.law(LAW.assign(left=LAW.left + (LAW["keys"] == 1))))
        assert "multi-head, page_first: 2 or 3" in told


class TestEnd:
    def test_it_counts_the_pages_after_the_failure(self):
        assert (
            "fails with EMFILE; from then on 0 of 768 pages are correct"
            in figures.end(INTO_LIMIT, LIMIT).title
        )

    def test_pages_that_are_correct_all_the_same_are_counted(self):
        table = INTO_LIMIT.assign(pages_ok=INTO_LIMIT["keys"])
        assert "from then on 768 of 768 pages are correct" in figures.end(table, LIMIT).title

    def test_without_a_failure_there_is_none_in_the_title(self):
        assert figures.end(PR, LIMIT).title == "No call of 21 fails with EMFILE."


class TestHero:
    def test_the_fix_that_keeps_nothing(self):
        drawn = figures.hero(INTO_LIMIT, PR_FLAT, RECORDED, LIMIT)
        assert (
            drawn.title
            == "Before the fix, call 22 of 27 fails with EMFILE; after it, the count stays at 135."
        )
        assert "+2 descriptors per key" in words(drawn)
        assert "3 of the 3 counts" in drawn.alt

    def test_a_fix_that_leaks_one_descriptor_per_call_does_not_stay(self):
        drawn = figures.hero(INTO_LIMIT, more(PR_FLAT, slice(None), 1), RECORDED, LIMIT)
        assert "after it, the count rises from 135 to 156" in drawn.title
        assert "stays" not in words(drawn)

    def test_a_leak_of_one_per_key_is_labelled_as_such(self):
        half = PR.assign(open_fds=135 + PR.storage_fds // 2, storage_fds=PR.storage_fds // 2)
        told = words(figures.hero(half, PR_FLAT, RECORDED, LIMIT))
        assert "+1 descriptors per key" in told
        assert "+2" not in told
        assert "0 of the 3 counts" in told


class TestTwoCounts:
    def test_flat_and_rising(self):
        drawn = figures.two_counts(BOTH, "open_fds", "open descriptors")
        told = (
            "The count of open descriptors stays at 135 after the fix; before it, it rises from 135 to 4167."
        )
        assert drawn.title == told

    def test_a_fix_that_leaks_rises(self):
        leaking = {**BOTH, "try_finally": more(PR_FLAT, slice(None), 1)}
        assert "rises from 135 to 156 after the fix" in figures.two_counts(leaking, "open_fds", "x").title

    def test_registrations_of_the_fix_are_those_that_it_keeps(self):
        same = figures.two_counts(BOTH, "registrations", "live registrations").title
        assert same == "The count of live registrations rises from 0 to 8064, before and after the fix."
        kept = {**BOTH, "try_finally": PR_FLAT.assign(registrations=PR.registrations // 2)}
        drawn = figures.two_counts(kept, "registrations", "live registrations")
        assert f"rises from 0 to {PR.registrations.iloc[-1] // 2} after the fix" in drawn.title


class TestWhatStays:
    def test_faults_are_counted(self):
        fixed = FAULTS.assign(left_files_open=[1, 0], most_fds=[3, 0])
        drawn = figures.faults({"leaky": FAULTS, "try_finally": fixed})
        told = "Descriptors stay open after 2 of 10 faults with leaky, 1 of 10 faults with try_finally."
        assert drawn.title == told
        assert "leaky: post (interrupt); try_finally: open (error)" in drawn.alt

    @pytest.mark.parametrize("kept", [64, 128])
    def test_registrations_per_call_are_those_of_the_table(self, kept):
        calls = np.arange(1, 61)
        table = pd.DataFrame(
            {
                "call": calls,
                "operation": np.where(calls % 2, "set", "get"),
                "seconds": 1e-3,
                "rss_bytes": 2**28,
            }
            | {"registrations": kept * calls}
        )
        drawn = figures.second_leak({"try_finally": table, "scoped": table.assign(registrations=1)})
        assert (
            drawn.title
            == f"A call leaves {kept} registrations with try_finally, 0 registrations with scoped."
        )
        assert f"rises from {kept} to {kept * 60}; scoped stays at 1" in drawn.alt

    def test_times_are_compared_at_first_and_at_the_end(self):
        calls = np.arange(1, 101)
        table = pd.DataFrame(
            {
                "call": calls,
                "operation": np.where(calls % 2, "set", "get"),
                "rss_bytes": 2**28,
                "registrations": 0,
            }
            | {"seconds": 1e-3}
        )
        slow = table.assign(seconds=np.where(calls > 50, 3e-3, 1e-3))
        drawn = figures.second_leak({"try_finally": slow, "scoped": table})
        alt, panel = drawn.alt, drawn.figure.axes[1]
        assert panel.get_title(loc="left") == "get: ms longer than with scoped"
        gets = slow[slow.operation == "get"]
        growth = slope(gets.assign(us=(gets.seconds - 1e-3) * 1e6), "us")
        assert [text.get_text() for text in panel.texts] == [f"line: try_finally,\n{growth} µs per call"]
        first = "takes 1.00 [1.00, 1.00] times as long as with scoped in the first quarter of the calls"
        told = f"A get with try_finally {first}, and 3.00 [3.00, 3.00] times in the last quarter."
        assert told in alt
        assert gets_against({"try_finally": slow, "scoped": table}, "try_finally", "scoped") == told

    def test_connectors_that_leave_the_same_are_named_together(self):
        tables = dict.fromkeys(
            ("try_finally", "sglang==0.5.12"), SLOWER.assign(registrations=range(len(SLOWER)))
        )
        tables["scoped"] = SLOWER.assign(registrations=1)
        told = (
            "A call leaves 1 registrations with try_finally and SGLang 0.5.12, 0 registrations with scoped."
        )
        assert figures.second_leak(tables).title == told

    def test_a_short_run_says_nothing_about_times(self):
        alt = figures.second_leak({"try_finally": SLOWER, "scoped": SLOWER}).alt
        assert "times as long" not in alt
        assert gets_against({"try_finally": SLOWER, "scoped": SLOWER}, "try_finally", "scoped") == ""

    def test_behaviours_names_those_without_a_fault(self):
        told = "both leaves nothing behind and keeps the good pages beside a bad one."
        assert figures.behaviours(FACTS).title == f"Of 3 connectors, only scoped {told}"
        spoilt = FACTS.assign(half_written_seen=True)
        assert figures.behaviours(spoilt).title == f"Of 3 connectors, none {told}"
        good = FACTS[FACTS.connector == "scoped"]
        two = pd.concat([good, good.assign(connector="sglang==0.5.12")])
        told = "leave nothing behind and also keep the good pages beside a bad one."
        assert figures.behaviours(two).title == f"Of 2 connectors, only scoped and SGLang 0.5.12 {told}"
        assert "pages found of 8 stored 16" in figures.behaviours(FACTS).alt

    def test_creation_says_how_much_longer_a_file_takes(self):
        drawn = figures.creation(CREATED, "ext4")
        assert (
            drawn.title == "On ext4, a new file takes 5.00 [5.00, 5.00] times as long after 800 were deleted."
        )
        assert "40 µs per file in a new folder, 200 µs after 800 were deleted" in drawn.alt
        same = figures.creation(CREATED.assign(seconds=1e-3), "tmpfs").title
        assert same.startswith("On tmpfs, a new file takes 1.00 [1.00, 1.00] times as long")


class TestTimes:
    @pytest.mark.parametrize(("slower", "told"), [(0.5, "faster"), (1.0, "inconclusive"), (2.0, "slower")])
    def test_a_title_and_a_claim_have_one_rule(self, slower, told):
        times = timed(repeats=12, slower=slower)
        ratios = ratio_table(times, ["operation", "page_bytes"], *PAIR)
        drawn = figures.pairs_and_ratios(times, ratios, "page_bytes", "set")
        ratio = pooled_ratio(times[times.operation == "set"], ["page_bytes"], *PAIR)
        assert f"a set takes {ratio} times as long after the fix ({told}; margin 1.05)" in drawn.title
        verdict = {"faster": "holds", "slower": "fails"}.get(told, "inconclusive")
        assert no_slower("cost", "...", ratio).verdict == verdict

    @pytest.mark.parametrize(("slower", "told"), [(0.5, "faster"), (1.0, "inconclusive"), (2.0, "slower")])
    def test_the_title_of_the_cost_is_the_verdict_of_its_claims(self, slower, told):
        cost = pooled_table(timed(repeats=12, slower=slower), ["page_bytes"], *PAIR)
        released = cost.assign(before="sglang==0.5.11", after="sglang==0.5.12", time_ratio=9.0, high=9.0)
        title = figures.cost(pd.concat([cost, released])).title
        first, second = (Estimate(row.time_ratio, row.low, row.high, 12) for row in cost.itertuples())
        end = "times as long after the fix"
        said = [f"{ratio} {end} ({speed(ratio)}; margin 1.05)" for ratio in (first, second)]
        assert title == f"A set takes {said[0]}; a get takes {said[1]}."
        assert speed(first) == told

    def test_a_steady_load_says_both_operations(self):
        title = figures.over_calls(timed(repeats=12, slower=2)).title
        assert title.count("(slower; margin 1.05)") == 2

    def test_latency_gives_medians_with_intervals(self):
        times = timed().assign(seconds=lambda table: np.where(table.arm == "leaky", 2e-3, 3e-3))
        told = "takes 2.00 [2.00, 2.00] ms before the fix and 3.00 [3.00, 3.00] ms after it"
        assert figures.latency(times).title == f"In the median, a set {told}; a get {told}."

    def test_latency_gives_the_medians_of_releases_in_the_alt_text(self):
        times = timed().assign(seconds=2e-3)
        released = times[times.arm == "leaky"].assign(arm="sglang==0.5.11", seconds=4e-3)
        alt = figures.latency(pd.concat([times, released])).alt
        assert "SGLang 0.5.11: set 4.00 [4.00, 4.00] ms, get 4.00 [4.00, 4.00] ms." in alt

    def test_benchmarks_pool_all_points_of_an_operation_and_a_cache(self):
        title = figures.benchmarks(BENCHMARK_TIMES.assign(seconds=1e-3), BENCHMARK, PAIR).title
        equal = "(time ratio 1.00 [1.00, 1.00])"
        cached, direct = f"through the page cache {equal}", f"with O_DIRECT {equal}"
        told = f"sets {cached}, gets {cached}, sets {direct} and gets {direct}"
        assert title == f"Compared with leaky, try_finally is no slower at {told}."

    def test_benchmarks_say_equal_verdicts_together(self):
        """Gets are faster, sets slower through the page cache and undecided with O_DIRECT."""
        even = BENCHMARK_TIMES.pair % 2 == 0
        factor = np.select(
            [BENCHMARK_TIMES.operation == "get", ~BENCHMARK_TIMES.direct, even], [0.5, 2.0, 0.8], 1.25
        )
        seconds = 1e-3 * np.where(BENCHMARK_TIMES.arm == "try_finally", factor, 1)
        drawn = figures.benchmarks(BENCHMARK_TIMES.assign(seconds=seconds), BENCHMARK, PAIR)
        assert drawn.title == (
            "Compared with leaky, try_finally is "
            "faster at gets through the page cache (time ratio 0.500 [0.500, 0.500]) "
            "and gets with O_DIRECT (time ratio 0.500 [0.500, 0.500]) "
            "and slower at sets through the page cache (time ratio 2.00 [2.00, 2.00]); "
            "inconclusive: sets with O_DIRECT (time ratio 1.02 [0.80, 1.25])."
        )
        assert "A time ratio is the time with try_finally / the time with leaky" in drawn.alt

    def test_benchmarks_that_decide_nothing_say_so(self):
        seconds = 1e-3 * np.where(
            BENCHMARK_TIMES.arm == "leaky", 1, np.where(BENCHMARK_TIMES.pair % 2, 0.8, 1.25)
        )
        title = figures.benchmarks(BENCHMARK_TIMES.assign(seconds=seconds), BENCHMARK, PAIR).title
        assert title.startswith(
            "The comparison of try_finally with leaky is inconclusive at sets through the page cache ("
        )
        assert " and gets with O_DIRECT (time ratio " in title

    @pytest.mark.parametrize(
        ("low", "high", "told"),
        [
            (0.90, 0.999, "faster"),
            (0.90, 1.0, "no slower"),
            (0.99, 1.05, "no slower"),
            (0.99, 1.06, "inconclusive"),
            (1.05, 1.20, "inconclusive"),
            (1.06, 1.20, "slower"),
        ],
    )
    def test_the_whole_interval_decides(self, low, high, told):
        assert speed(Estimate((low + high) / 2, low, high, 12)) == told
