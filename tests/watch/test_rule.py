"""The rule that calls a growth a leak: what it finds, what it leaves alone, and how honest its interval is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hicache_nixl.watch.floors import Floors
from hicache_nixl.watch.rule import IN_A_ROW, MIN_SAMPLES, Track, look
from hicache_nixl.watch.series import HELD, LOOK_BACK, Samples, Series

SEEDS = 200
FEWER = 60  # where each takes longer
FEWEST = 20  # where each looks at hundreds of samples
LARGEST_CALL = 256  # files that a call opens, at most


@dataclass(frozen=True)
class Judged:
    """What the rule said about a series: at the end, and at which sample it first found a leak."""

    track: Track
    first: int | None

    @property
    def settled(self) -> bool:
        """Whether a leak was found, or no growth was seen that may be one."""
        return self.track.found_at is not None or not self.track.unsettled


def judge(
    counts: Sequence[float] | np.ndarray,
    held: int = HELD,
    page_files: bool = False,
    until_found: bool = False,
) -> Judged:
    """Judge counts that were taken every second."""
    samples, track, first = Samples(held), Track(page_files), None
    for second, count in enumerate(counts):
        samples.add(second, [count])
        track.update(second, count, [view.column(0) for view in look(samples)])
        if first is None and track.found_at is not None:
            first = second
            if until_found:
                break
    return Judged(track, first)


def ever_found(many: np.ndarray) -> int:
    """Judge many series of counts, one in each row, and return in how many of them a leak was ever found."""
    samples, tracks, found = Samples(), {number: Track() for number in range(len(many))}, 0
    for second, counts in enumerate(many.T):
        samples.add(second, counts)
        views = look(samples)
        for number, track in list(tracks.items()):
            track.update(second, counts[number], [view.column(number) for view in views])
            if track.found_at is not None:
                found += 1
                del tracks[number]
    return found


def in_calls(seed: int, samples: int, idle: float = 0.0) -> np.ndarray:
    """Counts of a server that closes what a call opened: any number during a call, none between."""
    rng = np.random.default_rng(seed)
    busy = rng.integers(0, LARGEST_CALL + 1, samples)
    return np.where(rng.random(samples) < idle, 0, busy)


def changing_slowly(seed: int, samples: int) -> np.ndarray:
    """Counts around 100, each near the one before."""
    counts = [100.0]
    for push in np.random.default_rng(seed).normal(0, 20, samples):
        counts.append(100 + 0.8 * (counts[-1] - 100) + push)
    return np.round(counts)


def kept_for_minutes(seed: int, samples: int) -> np.ndarray:
    """Counts of a server that opens a file every 15 s on average, and closes each after 5 minutes on average."""
    rng, counts = np.random.default_rng(seed), [20]
    for _ in range(samples - 1):
        counts.append(counts[-1] - rng.binomial(counts[-1], 1 / 300) + rng.poisson(20 / 300))
    return np.array(counts)


def at_random(seed: int, samples: int, every: float, files: int = 256) -> np.ndarray:
    """Counts of a server that keeps what its calls open, which come at random times."""
    return files * np.random.default_rng(seed).poisson(1 / every, samples).cumsum()


def in_steps(seed: int, samples: int, steps: int) -> np.ndarray:
    """Counts that rise at so many random moments after the first sample."""
    at = np.random.default_rng(seed).choice(np.arange(1, samples), steps, replace=False)
    return 64 * (np.arange(samples)[:, None] >= at).sum(axis=1)


class TestCallsThatAreFewAndFarBetween:
    """Page files that are kept: found after three calls, and never judged to be no leak while they stay."""

    @pytest.mark.parametrize(
        ("every", "samples", "found"),
        [
            (2, 60, 1.0),
            (5, 60, 1.0),
            (10, 60, 0.9),
            (15, 60, 0.65),
            (20, 60, 0.5),
            (30, 60, 0.25),
            (2, 120, 1.0),
            (5, 120, 1.0),
            (10, 120, 1.0),
            (15, 120, 0.9),
            (20, 120, 0.85),
            (30, 120, 0.7),
        ],
    )
    def test_a_leak_is_found_or_the_question_left_open(self, every, samples, found):
        answers = [
            judge(at_random(seed, samples, every), page_files=True, until_found=True) for seed in range(FEWER)
        ]
        assert sum(one.first is not None for one in answers) >= found * FEWER
        denied = [one for one in answers if one.settled and one.first is None and one.track.steps.count]
        assert len(denied) <= 0.05 * FEWER

    @pytest.mark.parametrize("samples", [60, 120])
    @pytest.mark.parametrize("idle", [0.0, 0.5, 0.9])
    def test_files_that_are_closed_after_each_call_settle_as_no_leak(self, samples, idle):
        answers = [judge(in_calls(seed, samples, idle), page_files=True) for seed in range(FEWER)]
        assert [one for one in answers if one.first is not None or not one.settled] == []

    @pytest.mark.parametrize("samples", [60, 120])
    @pytest.mark.parametrize("steps", [1, 2])
    def test_one_step_or_two_are_never_a_leak(self, samples, steps):
        answers = [judge(in_steps(seed, samples, steps), page_files=True) for seed in range(FEWER)]
        assert [one for one in answers if one.first is not None] == []
        assert sum(not one.settled for one in answers) >= 0.85 * FEWER

    def test_three_steps_are_none_when_one_is_closed(self):
        counts = [0, 0, 0, 8, 8, 16, 16, 16, 24, 24, 24, 24, 24]
        judged = judge([*counts, 16, 8, 0, 0], page_files=True)
        assert judge(counts, page_files=True).track.found_at is not None
        assert (judged.track.found_at, judged.track.ended_at) == (None, 15)

    def test_a_leak_stays_found_at_the_limit_where_a_call_gives_back_what_it_opened(self):
        track, samples = Track(page_files=True), Samples()
        for second, count in enumerate([*(256 * (np.arange(100) // 20)), *[1100, 1024] * 30]):
            samples.add(second, [count])
            views = [view.column(0) for view in samples.views()]
            track.update(second, count, views, full=second >= 100)
        assert track.found_at is not None


class TestNoLeak:
    @pytest.mark.parametrize("idle", [0.0, 0.5, 0.9])
    def test_counts_that_go_up_and_down_with_the_calls_are_none(self, idle):
        assert ever_found(np.stack([in_calls(seed, 80, idle) for seed in range(SEEDS)])) <= SEEDS // 100

    def test_load_that_changes_slowly_within_its_range_is_seldom_taken_for_one(self):
        """Many calls last longer than the interval."""
        assert ever_found(np.stack([changing_slowly(seed, 80) for seed in range(SEEDS)])) <= SEEDS // 50

    @pytest.mark.parametrize("servers", [FEWEST, pytest.param(100, marks=pytest.mark.slow)])
    def test_files_that_are_kept_for_minutes_are_taken_for_one_at_most_one_time_in_eight(self, servers):
        """In 20 minutes, ever; each file is closed after 5 minutes on average, and about 20 are open."""
        assert ever_found(np.stack([kept_for_minutes(seed, 1200) for seed in range(servers)])) <= servers / 8

    @pytest.mark.parametrize(
        "counts",
        [
            [7] * 100,
            [0] * 50 + [64] * 50,
            [0] * 30 + [64] * 30 + [128] * 40,
            list(range(200, 100, -1)),
            [0, 256] * 50,
            [0, 64, 128, 192, 256] * 20,
        ],
        ids=["flat", "one step", "two steps", "falling", "every other", "sawtooth"],
    )
    def test_what_does_not_rise_all_the_time_is_none(self, counts):
        assert judge(counts).first is None

    def test_a_long_call_is_none_once_its_files_are_closed(self):
        judged = judge([0] * 20 + list(range(0, 400, 2)) + [0] * 5)
        assert judged.first is not None
        assert (judged.track.found_at, judged.track.ended_at) == (None, 222)

    def test_ten_samples_are_too_few_as_it_has_to_hold_three_times(self):
        assert judge(range(MIN_SAMPLES + IN_A_ROW - 2)).first is None
        assert judge(range(MIN_SAMPLES + IN_A_ROW - 1)).first == MIN_SAMPLES + IN_A_ROW - 2

    def test_there_is_no_growth_of_fewer_than_ten(self):
        assert judge(range(MIN_SAMPLES - 1)).track.now is None
        assert judge(range(MIN_SAMPLES)).track.now is not None
        assert Track().now is None


class TestLeak:
    @pytest.mark.parametrize("every", [1, 2, 3, 5, 7, 10])
    def test_bursts_that_stay_are_one_with_their_rate(self, every):
        judged = judge(256 * (np.arange(120) // every))
        assert judged.first is not None
        assert judged.first <= max(8 * every, 3 * MIN_SAMPLES)
        low, high = judged.track.found.low, judged.track.found.high
        assert low <= 256 * 60 / every + 1e-6
        assert high >= 256 * 60 / every - 1e-6
        assert judged.track.found.median == pytest.approx(256 * 60 / every, rel=0.1)

    @pytest.mark.parametrize("seed", range(5))
    def test_one_below_calls_that_go_up_and_down_is_found(self, seed):
        judged = judge(2 * np.arange(400) + in_calls(seed, 400, idle=0.5))
        assert judged.first is not None
        assert judged.track.found.low <= 120 <= judged.track.found.high

    @pytest.mark.parametrize("idle", [300, 1500])
    def test_one_that_begins_after_a_long_idle_time_is_found_as_soon(self, idle):
        judged = judge([0] * idle + list(range(0, 3200, 32)))
        assert idle < judged.first <= idle + 2 * LOOK_BACK
        assert judged.track.found.median == pytest.approx(32 * 60, rel=0.1)

    def test_one_too_slow_for_a_short_look_is_found_in_the_long_run(self):
        assert judge(np.arange(1200) // 80 * 2, held=60).first > 60


class TestGrowth:
    def test_a_straight_line_is_known_to_one_descriptor(self):
        found = judge(3 * np.arange(80)).track.now
        assert found.median == pytest.approx(180)
        assert (found.low, found.high) == pytest.approx((180 - 60 / 70, 180 + 60 / 70))

    def test_a_flat_line_has_none_and_excludes_more_than_a_few_descriptors_in_the_time_watched(self):
        found = judge([5] * 48).track.now
        assert (found.low, found.median) == (0, 0)
        assert found.high == pytest.approx(3.69 / (48 / 60), rel=0.01)

    @pytest.mark.parametrize("bursts", [0.2, 1.0])
    def test_its_interval_holds_the_rate_of_bursts_at_random_times(self, bursts):
        """The interval of Theil and Sen alone would hold it one time in three."""
        held = 0
        for seed in range(SEEDS):
            counts = 32.0 * np.random.default_rng(seed).poisson(bursts, 120).cumsum()
            found = Floors(Series(np.arange(120.0), counts)).growth()
            held += found.low <= 32 * 60 * bursts <= found.high
        assert held / SEEDS > 0.88

    def test_a_call_that_opens_many_does_not_move_it(self):
        counts = 2.0 * np.arange(200)
        counts[[50, 51, 120]] += 5000
        assert judge(counts).track.now.median == pytest.approx(120, rel=0.01)

    def test_the_interval_that_of_a_leak_holds_its_rate(self):
        """A call every 2 seconds at random, 256 files each; the narrowest of all looks would be too sure."""
        held = 0
        for seed in range(FEWEST):
            found = judge(at_random(seed, 300, 2), page_files=True).track.found
            held += found.low <= 256 * 30 <= found.high
        assert held >= 0.9 * FEWEST

    @pytest.mark.parametrize("every", [10, 20])
    def test_so_does_the_one_of_few_steps(self, every):
        tracks = [judge(at_random(seed, 60, every), page_files=True).track for seed in range(FEWER)]
        estimates = [track.found for track in tracks if track.found is not None]
        assert sum(found.low <= 256 * 60 / every <= found.high for found in estimates) >= 0.9 * len(estimates)


class TestMemory:
    def test_it_is_bounded_however_long_the_watch(self):
        samples = Samples(held=64)
        for second in range(10_000):
            samples.add(second, [second, 0])
        assert samples.count == 10_000
        assert all(len(view.seconds) <= 64 for view in samples.views())

    @given(st.lists(st.integers(0, 1000), min_size=1, max_size=300), st.sampled_from([4, 16]))
    def test_the_floor_of_what_is_merged_is_kept(self, counts, held):
        samples = Samples(held)
        for second, count in enumerate(counts):
            samples.add(second, [count])
        whole = samples.views()[0]
        per_row = 1 if len(whole.seconds) == 1 else int(whole.seconds[1] - whole.seconds[0])
        merged = counts[: per_row * len(whole.seconds)]
        assert len(counts) - len(merged) < max(per_row, 2)
        rows = np.array(merged).reshape(-1, per_row)
        assert whole.low[:, 0].tolist() == rows.min(axis=1).tolist()

    def test_the_latest_samples_are_kept_as_they_are(self):
        samples = Samples(held=16)
        for second in range(100):
            samples.add(second, [second])
        assert list(range(84, 100)) in [view.low[:, 0].tolist() for view in samples.views()]

    def test_merging_makes_no_growth_of_counts_that_go_up_and_down(self):
        """The lowest of many is lower than the lowest of a few: every row has to stand for as many."""
        found = judge(in_calls(2, 3000), held=40)
        assert found.first is None
        assert found.track.now.low <= 0 <= found.track.now.high
