"""Whether the interval of a growth holds the true one 95 times in 100."""

from __future__ import annotations

import pandas as pd
import pytest
from scipy.stats import binom

from hicache_nixl.watch.simulation import LEAKS, NOISE, coverage


def too_few(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose intervals hold the rate more seldom than chance explains, if 95 in 100 do."""
    return table[binom.cdf(table.held, table.watches, 0.95) < 0.05 / len(table)]


def test_intervals_hold_the_rate_for_every_noise():
    table = coverage(minutes=(1,), watches=20)
    assert set(table.noise) == set(NOISE)
    assert table.held.sum() >= 0.95 * table.watches.sum()
    assert too_few(table).empty


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("noise", NOISE)
def test_intervals_hold_the_rate_over_rates_leaks_and_durations(noise):
    table = coverage((0, 2, 12, 60, 600), (noise,), tuple(LEAKS), (1, 5, 20), watches=100)
    assert table.held.sum() >= 0.95 * table.watches.sum()
    assert too_few(table).empty, too_few(table).to_string()


def test_a_leak_of_which_nothing_came_does_not_count():
    """A call every 53 minutes."""
    table = coverage(rates=(0.6,), noises=("none",), leaks=("calls",), minutes=(1,), watches=20)
    assert table.watches.tolist() == [0]
    assert table.share.isna().all()


def test_no_leak_is_seldom_taken_for_one_and_a_slow_one_is_found_with_time():
    table = coverage(rates=(0, 12), noises=("none", "calls"), minutes=(1, 5), watches=20).set_index(
        ["noise", "rate", "minutes"]
    )
    assert table.above_0.xs(0, level="rate").sum() == 0
    assert (table.above_0.xs((12, 5), level=("rate", "minutes")) >= 18).all()


def test_the_same_watches_are_simulated_each_time():
    once, again = (coverage((12,), ("calls",), minutes=(1,), watches=5) for _ in range(2))
    pd.testing.assert_frame_equal(once, again)
