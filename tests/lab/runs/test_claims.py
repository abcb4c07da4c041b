"""Claims and their verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from hicache_nixl.lab.runs.claims import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    NO_SLOWER,
    Claim,
    above,
    at_most,
    exactly,
    ledger,
    no_slower,
)
from hicache_nixl.lab.statistics import Estimate


def ratio(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 8)


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

    def test_a_unit_follows_both_numbers(self):
        claim = exactly("growth", "Two per key.", 1351, 1350, "fds")
        assert (claim.expected, claim.measured) == ("1351 fds", "1350 fds")

    @pytest.mark.parametrize("measured", [0.37, [2.0, 2.5], np.float64(1e-3), float("nan"), (1, [0.5])])
    def test_a_measurement_is_refused(self, measured):
        with pytest.raises(
            ValueError, match=r"claim 'wait': .* is not a count; .* at_most, above or no_slower"
        ):
            exactly("wait", "A sentence.", 0, measured)

    def test_a_whole_number_may_be_a_float(self):
        assert exactly("law", "Two per key.", [2.0], [np.float64(2)]).verdict == HOLDS


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
        claim = at_most("growth", "Flat.", 20, Estimate(12, 10, 14, 30), "us")
        assert (claim.expected, claim.measured) == ("at most 20 us", "12.0 [10.0, 14.0] us")


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
        assert (claim.verdict, claim.expected, NO_SLOWER) == (verdict, "at most 1.05", 1.05)


@pytest.mark.parametrize("claim", [at_most, above, lambda *args: no_slower(args[0], args[1], args[3])])
@pytest.mark.parametrize("measured", [1.0, 3, np.float64(0.5), None])
def test_a_measurement_without_an_interval_is_refused(claim, measured):
    with pytest.raises(TypeError, match=r"claim 'cost': .* has no interval; expected an Estimate"):
        claim("cost", "A sentence.", 1.25, measured)


class TestLedger:
    def test_a_row_per_claim_in_order(self):
        table = ledger([exactly("b", "B.", 1, 1), exactly("a", "A.", 1, 2)])
        assert table.columns.tolist() == ["id", "sentence", "expected", "measured", "verdict"]
        assert table.id.tolist() == ["b", "a"]
        assert table.verdict.tolist() == ["holds", "fails"]

    def test_no_claims_are_an_empty_table_with_its_columns(self):
        assert ledger([]).columns.tolist() == ["id", "sentence", "expected", "measured", "verdict"]
