"""The figure of the benchmark over an object store: its title has numbers, and its axes can be read."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from hicache_nixl.lab.bench.object_plan import SEAWEEDFS
from hicache_nixl.lab.bench.object_results import headline
from hicache_nixl.lab.figures.bench_objects import object_rates

SIZES = (4096, 65536, 2**20)


def table_of(sizes: tuple[int, ...], **pages: float) -> pd.DataFrame:
    """Pages per second of each arm, half as many for a get, and ratios to SGLang's backend as ``summary`` has them."""
    rows = []
    for size in sizes:
        for arm, number in pages.items():
            for operation, part in (("set", 1), ("exists", 1), ("get", 2)):
                known = SEAWEEDFS in pages and arm != SEAWEEDFS and (arm, operation) != ("pooled", "exists")
                ratio = number / pages[SEAWEEDFS] * part if known else math.nan
                row = {"page_bytes": size, "operation": operation, "arm": arm, "pages_s": number / part}
                rows.append({**row, "ratio": ratio, "low": ratio * 0.9, "high": ratio * 1.1})
    return pd.DataFrame(rows)


BESIDE = {"pooled": 8800.0, "scoped": 900.0, SEAWEEDFS: 4000.0}


@pytest.fixture
def drawn():
    yield lambda table: object_rates(table, "here", headline(table))
    plt.close("all")


@pytest.mark.parametrize("sizes", [SIZES, SIZES[1:2]], ids=["three-sizes", "one-size"])
def test_the_title_says_how_many_times_as_fast(drawn, sizes):
    told = "pooled is 2.2 and 4.4 times as fast as sglang-seaweedfs for set and get of 64 KiB."
    found = drawn(table_of(sizes, **BESIDE))
    assert found.title == told
    assert found.alt.startswith(told)


def test_the_title_has_pages_per_second_without_a_ratio(drawn):
    table = table_of(SIZES[:1], scoped=900.0)
    assert drawn(table).title == "scoped: 900 and 450 pages per second for set and get of 4 KiB."


def test_the_title_says_what_is_undecided():
    assert headline(table_of(SIZES, pooled=4040.0, **{SEAWEEDFS: 4000.0})) == (
        "pooled is 1 (undecided) and 2 times as fast as sglang-seaweedfs for set and get of 64 KiB"
    )


@pytest.mark.parametrize(
    "pages",
    [BESIDE, {"pooled": 6400.0, "scoped": 6000.0}, {"pooled": 5.0}, {"pooled": 9e5, "scoped": 2e3}],
    ids=["a-decade", "near", "alone", "far"],
)
@pytest.mark.parametrize(
    ("sizes", "along"), [(SIZES, "y"), (SIZES[1:2], "x")], ids=["three-sizes", "one-size"]
)
def test_every_axis_has_tick_labels_enough(drawn, sizes, along, pages):
    figure = drawn(table_of(sizes, **pages)).figure
    figure.canvas.draw()
    for axes in figure.axes:
        axis = axes.xaxis if along == "x" else axes.yaxis
        low, high = axis.get_view_interval()
        shown = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
        assert 2 <= len(shown) <= 10


def test_a_single_size_is_drawn_as_dots_with_their_numbers(drawn):
    first, second, _ = drawn(table_of(SIZES[:1], **BESIDE)).figure.axes
    assert [text.get_text() for text in first.texts] == ["4,000", "900", "8,800"]
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "SGLang 0.5.23, seaweedfs",
        "scoped",
        "pooled",
    ]
    assert second.get_title(loc="left") == "exists (pooled: in memory)"
