"""What the benchmark works out of its times: medians, ratios, targets."""

from __future__ import annotations

import pandas as pd
import pytest
from measured import bench_times

from hicache_nixl.lab import figures
from hicache_nixl.lab.bench.measure import Measured
from hicache_nixl.lab.bench.plan import PEER, make_plan
from hicache_nixl.lab.bench.results import Results, claims, medians, openings, ratios

OPENING = pd.DataFrame({"pages": [1000] * 6, "pair": range(6), "seconds": [0.008] * 6})


def row(table: pd.DataFrame, **values: object) -> pd.Series:
    """Return the row of a table that has these values."""
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def results_of(times: pd.DataFrame) -> Results:
    return Results.of(Measured(make_plan(quick=True), times, OPENING, []))


def test_a_turn_counts_with_the_mean_of_its_calls():
    """A call in which a segment is made is not lost, as it would be in a median."""
    times = bench_times()
    slow = pd.concat([times, times.assign(seconds=times.seconds * 3)])
    found = row(medians(slow), arm="pooled", operation="set", page_bytes=4096)
    assert found.ms == pytest.approx(2)
    assert found.MiB_s == pytest.approx(0.5 / 2e-3)


def test_a_lookup_has_no_throughput():
    found = medians(bench_times())
    assert found[found.operation == "exists"].MiB_s.isna().all()
    assert found[found.operation != "exists"].MiB_s.notna().all()


def test_a_ratio_says_how_many_times_as_fast_pooled_is():
    found = row(ratios(bench_times()), against=PEER, operation="set", page_bytes=4096)
    assert (found.speed_ratio, found.pairs) == (pytest.approx(10), 6)


@pytest.mark.parametrize(
    ("operation", "size", "milliseconds", "verdict"),
    [
        ("set", 4096, 8.1, "holds"),
        ("set", 4096, 7.9, "fails"),
        ("set", 65536, 5.1, "holds"),
        ("set", 65536, 4.9, "fails"),
        ("get", 65536, 2.1, "holds"),
        ("get", 65536, 1.9, "fails"),
        ("exists", 2**20, 20.5, "holds"),
        ("exists", 4096, 19.5, "fails"),
        ("set", 2**20, 0.1, ""),
    ],
)
def test_the_targets_against_sglang(operation, size, milliseconds, verdict):
    found = ratios(bench_times(**{PEER: milliseconds}))
    assert row(found, against=PEER, operation=operation, page_bytes=size).verdict == verdict


@pytest.mark.parametrize(("milliseconds", "verdict"), [(0.82, "holds"), (0.80, "fails")])
def test_the_target_against_plain_writes_is_for_large_pages(milliseconds, verdict):
    found = ratios(bench_times(ceiling=milliseconds))
    of_ceiling = found[
        (found.against == "ceiling") & (found.operation == "set") & (found.arm == "pooled-none")
    ]
    assert of_ceiling.verdict.tolist() == ["", verdict, verdict]


def test_a_full_store_is_compared_with_an_empty_one_beside_the_main_table():
    times = bench_times().assign(
        further=True, arm=lambda table: table.arm.replace({"pooled": "full", PEER: "empty"})
    )
    found = row(ratios(times), arm="full", page_bytes=4096)
    assert (found.operation, found.target, found.verdict) == ("set", 0.9, "holds")


def test_with_o_direct_sglang_is_compared_without_a_target():
    found = ratios(bench_times().assign(direct=True))
    assert set(found[found.against == PEER].verdict) == {""}


def test_an_interval_that_contains_the_target_is_undecided():
    times = bench_times()
    noisy = (times.arm == PEER) & (times.pair % 2 == 0)
    times.loc[noisy, "seconds"] /= 2
    assert row(ratios(times), against=PEER, operation="set", page_bytes=4096).verdict == "inconclusive"


def test_without_peers_the_rest_is_compared():
    times = bench_times()
    found = ratios(times[~times.arm.str.startswith("sglang")])
    assert set(found.against) == {"ceiling", "pooled-none"}


def test_every_target_is_one_claim_with_an_id_of_its_own():
    found = ratios(bench_times())
    stated = claims(found)
    assert len({claim.id for claim in stated}) == len(stated) == (found.verdict != "").sum()
    assert stated[0].measured == "10.0 [10.0, 10.0] times as fast"


def test_what_is_missed_is_named_with_its_target():
    results = results_of(bench_times(**{PEER: 7.0}))
    assert results.missed[0] == (
        "set, 4 KiB, page cache, libaio: pooled / sglang==0.5.23 7.00 [7.00, 7.00], target 8"
    )
    assert results.tally() == "5 met, 9 missed, 0 undecided"


def test_opening_is_in_milliseconds():
    assert row(openings(OPENING), pages=1000).ms == pytest.approx(8)
    assert openings(OPENING[:0]).empty


class TestFigure:
    def test_the_title_is_about_pages_of_64_kib(self, closed_figures):
        times = bench_times()
        drawn = figures.throughputs(medians(times), ratios(times))
        assert drawn.title.startswith(
            "With pages of 64 KiB, pooled does a set 10.0 [10.0, 10.0] times and a get"
        )

    def test_the_ceiling_is_a_grey_line_and_lookups_are_not_drawn(self, closed_figures):
        times = bench_times()
        drawn = figures.throughputs(medians(times), ratios(times))
        lines = {line.get_label(): line for line in drawn.figure.axes[0].lines}
        assert lines["plain pwrite, preadv"].get_color() == "0.6"
        assert lines["pooled"].get_ydata().tolist() == pytest.approx([500, 8000, 128000])
        assert len(drawn.figure.axes) == 2
