"""Claims and their verdicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hicache_nixl.lab.runs.claims import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    NO_SLOWER,
    NOT_APPLICABLE,
    Claim,
    above,
    at_most,
    every,
    exactly,
    longer,
    never,
    no_slower,
    tally,
)
from hicache_nixl.lab.statistics import Estimate


def ratio(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 8)


class TestExactly:
    @pytest.mark.parametrize(("expected", "measured"), [(167, 167), (2.0, np.int64(2)), ("with", "with")])
    def test_equal_holds(self, expected, measured):
        assert exactly("growth", "A sentence.", expected, measured).verdict == HOLDS

    @pytest.mark.parametrize(("expected", "measured"), [(167, 168), (None, 7), (7, None), (0, -1)])
    def test_anything_else_fails_without_tolerance(self, expected, measured):
        assert exactly("growth", "A sentence.", expected, measured).verdict == FAILS

    def test_it_keeps_what_was_expected_and_measured_as_text(self):
        claim = exactly("growth", "Two per key.", 1351, 1350)
        assert claim == Claim("growth", "Two per key.", "1351", "1350", "fails")

    def test_a_unit_follows_both_numbers(self):
        claim = exactly("growth", "Two per key.", 1351, 1350, "fds")
        assert (claim.expected, claim.measured) == ("1351 fds", "1350 fds")

    @pytest.mark.parametrize("measured", [0.37, np.float64(1e-3), float("nan")])
    def test_a_measurement_is_refused(self, measured):
        with pytest.raises(
            ValueError, match=r"claim 'wait': .* is not a count; .* at_most, above or no_slower"
        ):
            exactly("wait", "A sentence.", 0, measured)

    @pytest.mark.parametrize("value", [[], [16.0, 32.0, 8, 0, True], (1, 2), {"a": 1}, True, np.bool_(False)])
    def test_more_than_one_measured_thing_is_refused(self, value):
        with pytest.raises(TypeError, match=r"claim 'facts': .* is not one count"):
            exactly("facts", "A sentence.", value, value)

    def test_with_nothing_to_measure_it_is_not_applicable(self):
        claim = exactly("emfile", "It fails at the predicted call.", None, None, "call {}")
        assert (claim.verdict, claim.expected, claim.measured) == (NOT_APPLICABLE, "", "nothing to measure")

    def test_where_one_of_both_is_missing_it_says_none(self):
        claim = exactly("emfile", "It fails at the predicted call.", 28, None, "call {}")
        assert (claim.verdict, claim.expected, claim.measured) == (FAILS, "call 28", "none")

    def test_one_is_singular(self):
        claim = exactly("left", "One per call.", 1, 0, "descriptors per call")
        assert (claim.expected, claim.measured) == ("1 descriptor per call", "0 descriptors per call")


class TestShares:
    @pytest.mark.parametrize(
        ("claim", "count", "expected", "verdict"),
        [
            (every, 21, "21 of 21 calls", HOLDS),
            (every, 20, "21 of 21 calls", FAILS),
            (never, 0, "0 of 21 calls", HOLDS),
            (never, 1, "0 of 21 calls", FAILS),
        ],
    )
    def test_it_says_of_how_many(self, claim, count, expected, verdict):
        stated = claim("flat", "A sentence.", 21, np.int64(count), "calls")
        assert stated == Claim("flat", "A sentence.", expected, f"{count} of 21 calls", verdict)

    @pytest.mark.parametrize("claim", [every, never])
    def test_of_none_it_is_not_applicable(self, claim):
        assert claim("dead", "A sentence.", 0, 0, "pages").verdict == NOT_APPLICABLE


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
        assert claim == Claim("growth", "Flat.", "at most 0.5", "0.400 [-0.100, 0.520]", INCONCLUSIVE)

    def test_a_unit_follows_the_margin_and_the_interval(self):
        claim = at_most("growth", "Flat.", 20, Estimate(12, 10, 14, 30), "KiB")
        assert (claim.expected, claim.measured) == ("at most 20 KiB", "12.0 [10.0, 14.0] KiB")


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
        assert claim == Claim("grows", "It grows.", "above 0.01", "2.00 [1.90, 2.25]", HOLDS)

    @pytest.mark.parametrize(("low", "high"), [(1.3, 1.4), (1.0, 1.4), (1.0, 1.2), (1.25, 1.25)])
    def test_it_never_holds_together_with_at_most(self, low, high):
        verdicts = [claim("c", "A sentence.", 1.25, ratio(low, high)).verdict for claim in (above, at_most)]
        assert verdicts in ([HOLDS, FAILS], [FAILS, HOLDS], [INCONCLUSIVE, INCONCLUSIVE])


class TestNoSlower:
    @pytest.mark.parametrize(
        ("low", "high", "verdict"),
        [
            (0.8, 1.05, HOLDS),
            (0.8, 1.06, INCONCLUSIVE),
            (1.01, 1.4, INCONCLUSIVE),
            (1.06, 1.4, FAILS),
        ],
    )
    def test_the_margin_is_fixed_and_noise_does_not_make_it_hold(self, low, high, verdict):
        claim = no_slower("same", "Not slower.", ratio(low, high))
        assert (claim.verdict, claim.expected, NO_SLOWER) == (verdict, "at most 1.05 (time ratio)", 1.05)


class TestAbsoluteTimes:
    @pytest.mark.parametrize("claim", [at_most, above])
    @pytest.mark.parametrize("unit", ["us", "µs", "ms per call", "seconds", "cores"])
    def test_they_cannot_be_claimed(self, claim, unit):
        """A busy machine would fail the run."""
        with pytest.raises(ValueError, match="depends on the machine; claim a ratio within the run"):
            claim("wait", "The wait is short.", 20, ratio(12, 14), unit)

    def test_whether_a_time_grows_can_be_claimed(self):
        assert above("get", "It grows.", 0, ratio(1, 2), "µs per call").verdict == HOLDS

    def test_longer_is_a_ratio_above_one(self):
        assert longer("rename", "It takes longer.", ratio(1.1, 1.2)).expected == "above 1 (time ratio)"


@pytest.mark.parametrize("claim", [at_most, above, lambda *args: no_slower(args[0], args[1], args[3])])
@pytest.mark.parametrize("measured", [1.0, 3, np.float64(0.5)])
def test_a_measurement_without_an_interval_is_refused(claim, measured):
    with pytest.raises(TypeError, match=r"claim 'cost': .* has no interval; expected an Estimate"):
        claim("cost", "A sentence.", 1.25, measured)


@pytest.mark.parametrize("claim", [at_most, above])
def test_without_a_measurement_it_is_not_applicable(claim):
    assert claim("past", "A sentence.", 1.25, None).verdict == NOT_APPLICABLE


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        ([HOLDS, HOLDS], "2 of 2 claims hold"),
        ([HOLDS, FAILS, INCONCLUSIVE], "1 of 3 claims hold, 1 fail, 1 inconclusive"),
        ([HOLDS, NOT_APPLICABLE, NOT_APPLICABLE], "1 of 1 claims hold; 2 not applicable"),
        ([], "0 of 0 claims hold"),
    ],
)
def test_what_is_not_applicable_is_counted_apart(verdicts, told):
    assert tally(pd.DataFrame({"verdict": pd.Series(verdicts, dtype=str)})) == told
