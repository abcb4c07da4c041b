"""Samples and what they say: the answer and the time left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from hicache_nixl.lab.statistics import Estimate
from hicache_nixl.watch import wording
from hicache_nixl.watch.rule import NEEDED
from hicache_nixl.watch.sample import COUNTS, KINDS, NAMES, Sample
from hicache_nixl.watch.verdict import Watch
from hicache_nixl.watch.wording import rate

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def sample(second: float, storage: int | None = 0, limit: int | None = 1000, **kinds: int) -> Sample:
    counts = {**dict.fromkeys(KINDS, 0), "socket": 40, **kinds}
    return Sample(START + timedelta(seconds=second), float(second), storage, counts, limit)


def watched(samples: Iterable[Sample]) -> Watch:
    watch = Watch()
    for one in samples:
        watch.add(one)
    return watch


LEAKING = [sample(second, 2 * second) for second in range(60)]
FLAT = [sample(second, 64 * (second % 2)) for second in range(60)]


class TestSample:
    def test_all_descriptors_are_the_storage_files_and_every_other_kind(self):
        assert sample(0, 10, regular=3, pipe=2).counts["open_fds"] == 55
        assert sample(0, None, regular=3).counts["open_fds"] == 43

    def test_every_count_has_a_name(self):
        assert tuple(NAMES) == COUNTS


class TestJudged:
    def test_with_a_storage_folder_it_is_the_storage_files(self):
        assert watched(LEAKING).judged == "storage_fds"
        assert watched(LEAKING).found
        others_grow = watched(sample(second, 5, regular=second) for second in range(60))
        assert not others_grow.found

    def test_without_one_it_is_the_regular_files(self):
        watch = watched(sample(second, None, regular=second) for second in range(60))
        assert watch.judged == "regular"
        assert watch.found

    def test_other_kinds_that_grow_are_named_and_do_not_decide(self):
        watch = watched(sample(second, 5, socket=second, pipe=2 * second) for second in range(60))
        assert not watch.found
        assert (
            wording.other_kinds(watch)
            == "sockets by 60 per minute [60, 60]; pipes by 120 per minute [120, 120]"
        )
        assert wording.other_kinds(watched(LEAKING)) == ""


class TestAnswer:
    def test_a_leak_has_its_rate_and_when_it_was_found(self):
        expected = "leak: storage files grow by 120 per minute [120, 120], found after 11 s"
        assert watched(LEAKING).answer() == expected

    def test_none_has_what_was_seen(self):
        expected = "no leak seen in 59 s: storage files do not grow (now 64, highest 64)"
        assert watched(FLAT).answer() == expected
        assert watched(FLAT).settled

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ([20], "storage files rose from 256 to 512 in 1 step and none was closed"),
            ([20, 45], "storage files rose from 256 to 768 in 2 steps and none was closed"),
        ],
    )
    def test_what_rose_and_was_not_closed_is_not_settled(self, steps, expected):
        watch = watched(sample(at, 256 + 256 * sum(at >= step for step in steps)) for at in range(60))
        assert watch.answer() == f"undecided: {expected}; watch longer (about ten calls)"
        assert (watch.found, watch.settled) == (False, False)

    def test_a_third_step_is_a_leak_of_storage_files(self):
        watch = watched(sample(at, 256 * (at // 18)) for at in range(60))
        assert watch.answer() == "leak: storage files grow by 781 per minute [161, 2,282], found after 56 s"
        assert watch.settled

    def test_three_steps_of_regular_files_are_none(self):
        """A server may open its logs and libraries one by one."""
        watch = watched(
            sample(at, None, regular=sum(at >= step for step in (5, 6, 9, 14))) for at in range(60)
        )
        assert not watch.found

    def test_a_step_long_ago_is_a_pool_that_was_opened(self):
        expected = "storage files rose from 0 to 64 in 1 step until 9 s, and not since"
        assert not watched(sample(at, 64 * (at >= 9)) for at in range(99)).settled
        watch = watched(sample(at, 64 * (at >= 9)) for at in range(100))
        assert watch.answer() == f"no leak seen in 99 s: {expected}"
        assert watch.settled

    def test_a_floor_that_rises_twice_below_the_calls_is_not_settled(self):
        watch = watched(sample(at, 100 * (at // 40) + at % 3) for at in range(120))
        expected = "the lowest count of storage files rose from 0 to 200"
        assert watch.answer() == f"undecided: {expected}; watch longer (about ten calls)"

    @pytest.mark.parametrize("count", [0, 1, NEEDED - 1])
    def test_too_few_samples_are_not_judged(self, count):
        expected = "1 sample" if count == 1 else f"{count} samples"
        assert watched(LEAKING[:count]).answer() == f"undecided: {expected} of the {NEEDED} that are needed"
        assert not watched(LEAKING[:count]).settled

    def test_at_the_limit_nothing_is_claimed(self):
        watch = watched(sample(second, 950, limit=1000) for second in range(60))
        assert watch.answer().startswith(
            "undecided: the process is at its limit, where growth cannot be seen"
        )
        assert not watch.settled

    def test_a_leak_that_was_found_on_the_way_to_the_limit_stays_found(self):
        watch = watched(sample(second, min(20 * second, 960)) for second in range(90))
        assert watch.at_limit()
        assert watch.answer().startswith("leak: storage files grow by")
        assert watch.leak.low <= 1200 <= watch.leak.high
        assert watch.leak.median == pytest.approx(1200, rel=0.05)

    def test_what_was_closed_again_is_said_to_be(self):
        watch = watched([*LEAKING, *(sample(second, 0) for second in range(60, 70))])
        assert watch.answer() == "no leak seen in 69 s: storage files grew, and were closed again after 60 s"


class TestTimeLeft:
    def test_it_is_what_is_free_at_the_growth_of_all_kinds_that_leak(self):
        watch = watched(sample(second, second, pipe=second) for second in range(60))
        left = watch.seconds_left()
        free = 1000 - (40 + 59 + 59)
        assert (left.low, left.median, left.high) == pytest.approx((free / 2,) * 3)
        assert (
            wording.limit(watch)
            == "158 of 1000 descriptors open (soft RLIMIT_NOFILE); 7.0 min left [7.0 min, 7.0 min]"
        )

    def test_its_interval_is_that_of_the_growth_turned_round(self):
        watch = watched(sample(second, 32 * (second // 7)) for second in range(70))
        grown, left = watch.leak, watch.seconds_left()
        free = 60 * (1000 - watch.last.counts["open_fds"])
        assert (left.low, left.high) == (free / grown.high, free / grown.low)
        assert left.low < left.median < left.high

    def test_a_clear_leak_has_one_among_sockets_that_come_and_go(self):
        sockets = np.random.default_rng(1).integers(0, 400, 60)
        watch = watched(sample(at, 2 * at, limit=5000, socket=int(count)) for at, count in enumerate(sockets))
        assert watch.growth("open_fds").low <= 0
        free = 5000 - watch.last.counts["open_fds"]
        assert watch.seconds_left().median == pytest.approx(free / 2)

    def test_after_the_traffic_it_is_the_time_at_the_earlier_rate(self):
        watch = watched([*LEAKING, *(sample(at, 118) for at in range(60, 90))])
        expected = "158 of 1000 descriptors open (soft RLIMIT_NOFILE); no longer growing; at the earlier rate 7.0 min left [7.0 min, 7.0 min]"
        assert watch.found
        assert wording.limit(watch) == expected

    def test_there_is_none_without_growth(self):
        assert watched(FLAT).seconds_left() is None
        assert wording.limit(watched(FLAT)) == "104 of 1000 descriptors open (soft RLIMIT_NOFILE)"

    def test_there_is_none_without_a_limit(self):
        watch = watched(dataclasses.replace(one, limit=None) for one in LEAKING)
        assert (watch.seconds_left(), wording.limit(watch), watch.at_limit()) == (None, "no limit", False)

    def test_at_the_limit_it_is_said(self):
        watch = watched(sample(second, min(20 * second, 960)) for second in range(90))
        assert wording.limit(watch).endswith(": at the limit, where nothing more can be opened")

    def test_a_limit_that_is_raised_meanwhile_counts(self):
        watch = watched([*LEAKING[:-1], dataclasses.replace(LEAKING[-1], limit=5000)])
        assert "of 5000" in wording.limit(watch)


class TestTable:
    def test_it_has_a_row_per_kind_that_was_there_all_of_them_last(self):
        table = watched(LEAKING).table()
        assert table.descriptors.tolist() == ["storage files", "sockets", "all descriptors"]
        assert table.now.tolist() == [118, 40, 158]
        assert table.per_minute.tolist() == pytest.approx([120, 0, 120])
        assert table.grows.tolist() == [True, False, True]

    def test_what_is_judged_has_a_row_even_when_there_is_none(self):
        assert watched([sample(0, 0)]).table().descriptors.tolist()[0] == "storage files"

    def test_growth_is_missing_before_there_are_enough_samples(self):
        assert watched(LEAKING[:9]).table().per_minute.isna().all()


def test_rates_are_written_in_whole_descriptors_or_two_digits():
    assert rate(Estimate(0.034, -1.26, 12.6, 5)) == "0.034 per minute [-1.3, 13]"
