"""Samples and what they say: the answer and the time left."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from hicache_nixl.lab.statistics import Estimate
from hicache_nixl.watch import wording
from hicache_nixl.watch.rule import NEEDED
from hicache_nixl.watch.sample import COUNTS, KINDS, NAMES, Sample
from hicache_nixl.watch.verdict import HORIZON, Watch
from hicache_nixl.watch.wording import rate

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def sample(second: float, storage: int | None = 0, limit: int | None = 1000, **kinds: int) -> Sample:
    counts = {**dict.fromkeys(KINDS, 0), "socket": 40, **kinds}
    return Sample(START + timedelta(seconds=second), float(second), storage, counts, limit)


def watched(samples: Iterable[Sample], horizon: float = HORIZON) -> Watch:
    watch = Watch(horizon)
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
    def test_with_a_storage_folder_the_storage_files_come_first(self):
        assert watched(LEAKING).judged == "storage_fds"
        assert watched(FLAT).judged == "storage_fds"
        assert watched(sample(second, None) for second in range(60)).judged == "regular"

    @pytest.mark.parametrize("kind", ["storage_fds", *KINDS])
    def test_every_kind_that_grows_is_a_leak_of_that_kind(self, kind):
        storage = [2 * second if kind == "storage_fds" else 5 for second in range(60)]
        kinds = {} if kind == "storage_fds" else {kind: 2}
        watch = watched(
            sample(second, storage[second], **{name: 40 + step * second for name, step in kinds.items()})
            for second in range(60)
        )
        assert (watch.state, watch.leaks) == ("leak", [kind])
        assert watch.answer().startswith(f"leak: {NAMES[kind]} grow by 120 per minute [119, 121], found")

    def test_several_kinds_that_grow_are_all_named_the_fastest_first(self):
        watch = watched(sample(second, 5, socket=second, pipe=2 * second) for second in range(60))
        assert watch.leaks == ["pipe", "socket"]
        expected = (
            "leak: pipes grow by 120 per minute [119, 121]; sockets grow by 60 per minute [59, 61], found"
        )
        assert watch.answer().startswith(expected)


class TestAnswer:
    def test_a_leak_has_its_rate_and_when_it_was_found(self):
        expected = "leak: storage files grow by 120 per minute [119, 121], found after 11 s"
        assert watched(LEAKING).answer() == expected

    def test_none_has_what_was_seen(self):
        expected = (
            "no leak seen in 59 s: storage files do not grow (now 64, highest 64), nor does any other kind"
        )
        assert watched(FLAT, horizon=0.01).answer() == expected
        assert watched(FLAT, horizon=0.01).state == "no leak"

    def test_a_folder_in_which_no_file_was_opened_is_no_all_clear(self):
        watch = watched((sample(second, 0) for second in range(60)), horizon=0.001)
        assert watch.state == "undecided"
        assert "no storage file was seen open, so nothing shows whether they leak" in watch.answer()
        watch.opened = True  # between two samples, or by another scheduler
        assert watch.state == "no leak"

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ([20], "storage files rose from 256 to 512 in 1 step and none was closed"),
            ([20, 45], "storage files rose from 256 to 768 in 2 steps and none was closed"),
        ],
    )
    def test_what_rose_and_was_not_closed_is_not_settled(self, steps, expected):
        counts = [256 + 256 * sum(at >= step for step in steps) for at in range(60)]
        watch = watched((sample(at, count) for at, count in enumerate(counts)), horizon=0.001)
        assert watch.answer() == f"undecided: {expected}; watch longer (about ten calls)"
        assert (watch.found, watch.settled) == (False, False)

    def test_a_third_step_is_a_leak_of_storage_files(self):
        watch = watched(sample(at, 256 * (at // 18)) for at in range(60))
        assert watch.answer() == "leak: storage files grow by 781 per minute [161, 2282], found after 56 s"
        assert watch.settled

    def test_three_steps_of_regular_files_are_none(self):
        """A server may open its logs and libraries one by one."""
        watch = watched(
            sample(at, None, regular=sum(at >= step for step in (5, 6, 9, 14))) for at in range(60)
        )
        assert not watch.found

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
        watch = watched(sample(second, min(20 * second, 960)) for second in range(300))
        assert watch.at_limit()
        assert watch.answer().startswith("leak: storage files grow by")
        assert watch.leak.low <= 1200 + 1e-6
        assert watch.leak.high >= 1200 - 1e-6

    def test_growth_that_is_above_zero_and_too_short_for_a_leak_is_no_all_clear(self):
        quiet = [sample(at, 5, 2_000_000) for at in range(400)]
        rising = (sample(400 + at, 5, 2_000_000, socket=40 + at) for at in range(40))
        watch, states = Watch(), set()
        for one in (*quiet, *rising):
            watch.add(one)
            grown = watch.growth("socket")
            if grown is not None and grown.low > 0:
                states.add(watch.state)
                assert watch.found or "sockets grow by" in watch.answer()
        assert states == {"undecided", "leak"}

    def test_a_process_that_opened_nothing_is_said_to_where_no_folder_was_named(self):
        assert "no file was seen to be opened or closed" in wording.idle(
            watched(sample(second, None, regular=3, socket=second % 2) for second in range(60))
        )
        still = watched(sample(second, None, regular=3) for second in range(60))
        assert (still.state, wording.idle(still)) == ("undecided", None)
        assert "nothing was seen to be opened or closed: was there traffic?" in still.answer()
        assert wording.idle(watched(sample(second, None, regular=second % 2) for second in range(60))) is None
        assert wording.idle(watched(FLAT)) is None


class TestPlateau:
    """A verdict ends with the growth."""

    @pytest.mark.parametrize("kind", ["storage_fds", "regular", "socket"])
    @pytest.mark.parametrize("seconds", [28, 200])
    def test_a_cache_of_200_files_is_a_leak_at_most_while_it_fills(self, kind, seconds):
        filling = [min(200, 200 * second // seconds) for second in range(3 * seconds)]
        samples = (
            sample(at, count, 20_000) if kind == "storage_fds" else sample(at, 5, 20_000, **{kind: count})
            for at, count in enumerate(filling)
        )
        watch, states = Watch(), []
        for one in samples:
            watch.add(one)
            states.append(watch.state)
        assert "leak" in states[:seconds]
        assert "leak" not in states[seconds + 15 :]
        assert set(states[seconds + 28 :]) == {"no leak"}
        assert watch.seconds_left() is None
        assert f"{NAMES[kind]} grew by" in wording.ended(watch)
        assert wording.ended(watch).endswith("and grow no longer (now 200, highest 200)")

    def test_what_was_closed_again_is_none(self):
        closed = (sample(second, 0) for second in range(60, 90))
        watch = watched([*LEAKING, *closed], horizon=0.01)
        assert watch.state == "no leak"
        assert "grow no longer (now 0, highest 118)" in wording.ended(watch)

    def test_a_step_long_ago_is_a_pool_that_was_opened(self):
        pool = [sample(at, 64 * (at >= 2), 20_000) for at in range(240)]
        assert watched(pool[:100]).state == "undecided"
        assert watched(pool).state == "no leak"

    def test_a_leak_that_goes_on_after_a_pause_is_found_again(self):
        counts = [*range(0, 120, 2), *[120] * 60, *range(120, 360, 2)]
        watch, states = Watch(), []
        for second, count in enumerate(counts):
            watch.add(sample(second, count, 20_000))
            states.append(watch.state)
        assert (states[50], states[115]) == ("leak", "no leak")
        assert states[-1] == "leak"
        assert wording.ended(watch) == ""


class TestTooEarly:
    """What matters is growth that reaches the limit within the horizon."""

    def test_the_growth_that_matters_is_what_is_free_within_the_horizon(self):
        watch = watched((sample(second, 0, limit=1480) for second in range(20)), horizon=2)
        assert watch.matters == pytest.approx(1440 / 120)

    def test_a_slow_leak_beside_calls_is_found_or_left_open_with_the_time_to_watch(self):
        """12 a minute, with calls that open and close up to 256 files."""
        answers = []
        for seed in range(10):
            rng = np.random.default_rng(seed)
            busy = rng.integers(0, 257, 60)
            leaked = rng.poisson(12 / 60, 60).cumsum()
            watch = watched(sample(at, int(busy[at] + leaked[at]), limit=16_000) for at in range(60))
            answers.append(watch.answer())
        assert [answer for answer in answers if answer.startswith("no leak")] == []
        pattern = r"undecided: too early to tell, watch about [\d.]+ (min|h) more; storage files may grow by up to \d+ "
        pattern += r"per minute, and 1\d per minute would reach the limit within 24 h"
        assert [one for one in answers if not re.fullmatch(pattern, one) and not one.startswith("leak")] == []

    @pytest.mark.parametrize("limit", [1024, 20_000, 65_535])
    def test_after_the_time_that_it_names_the_answer_is_there(self, limit):
        flat = [sample(second, 64 * (second % 2), limit) for second in range(20)]
        early = watched(flat, horizon=24 if limit > 1024 else 1)
        assert early.state == "undecided"
        still = early.seconds_to_decide(early.not_excluded())
        more = (sample(second, 64 * (second % 2), limit) for second in range(20, int(20 + 1.1 * still) + 8))
        assert watched([*flat, *more], horizon=early.horizon).state == "no leak"

    @pytest.mark.parametrize("stretch", [6, 8, 10, 14])
    @pytest.mark.parametrize(("files", "seconds"), [(20, 5), (48, 12)])
    def test_calls_without_a_pause_are_settled_sooner_the_fewer_files_they_open(
        self, files, seconds, stretch
    ):
        """Ten samples a second, many in a row during a call; 3300 per minute would matter."""
        watch, states = Watch(horizon=0.1), []
        for at in range(10 * seconds + 1):
            watch.add(sample(at / 10, files * (at // stretch % 2), limit=20_000))
            states.append(watch.state)
        assert set(states) == {"undecided", "no leak"}
        assert states[-1] == "no leak"

    def test_without_a_limit_nothing_that_does_not_grow_matters(self):
        assert watched(dataclasses.replace(one, limit=None) for one in FLAT).state == "no leak"


class TestTimeLeft:
    def test_it_is_what_is_free_at_the_growth_of_all_kinds_that_leak(self):
        watch = watched(sample(second, second, pipe=second) for second in range(60))
        left = watch.seconds_left()
        free = 1000 - (40 + 59 + 59)
        assert (left.low, left.median, left.high) == pytest.approx((free / 2,) * 3, rel=0.03)
        assert (
            wording.limit(watch)
            == "158 of 1000 descriptors open (soft RLIMIT_NOFILE); 7.0 min left [6.9 min, 7.2 min]"
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
        free = 5000 - watch.last.counts["open_fds"]
        assert watch.leaks == ["storage_fds"]
        assert watch.seconds_left().median == pytest.approx(free / 2)

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
