"""The benchmark as the notebook runs it: few calls, and none of the rows beside the main table."""

from __future__ import annotations

import os

import pytest
from measured import bench_times

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.bench.plan import EVERY
from hicache_nixl.lab.bench.results import Results, ratios
from hicache_nixl.lab.experiments import throughput as module
from hicache_nixl.lab.experiments.throughput import ARMS, ShortPoint, speeds, throughput


@pytest.fixture
def _no_release(monkeypatch):
    monkeypatch.setattr(module, "ARMS", ("pooled", "scoped", "ceiling"))


@pytest.mark.usefixtures("_no_release")
def test_every_arm_sets_and_gets_pages_of_each_size_in_every_round(tmp_path):
    measured = throughput([4096, 16384], repeats=6, storage_dir=tmp_path)
    assert measured.left_out == []
    turns = measured.times[measured.times.operation.isin(["set", "get"])]
    counts = turns.groupby(["page_bytes", "arm", "operation"]).pair.nunique()
    assert (counts == 6).all()
    assert len(counts) == 2 * 3 * 2
    assert not measured.times.further.any()
    assert set(Results.of(measured).medians.arm) == {"pooled", "scoped", "ceiling"}
    assert os.listdir(tmp_path) == []


def test_a_size_that_would_fill_the_disk_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not enough disk"):
        throughput([1 << 40], storage_dir=tmp_path)


def test_a_turn_takes_no_arms_but_those_of_the_notebook():
    assert ShortPoint("libaio", False, 4096).arms(list(EVERY)) == list(ARMS)


def test_speeds_have_a_column_for_each_arm_that_pooled_is_compared_with():
    table = speeds(ratios(bench_times()))
    assert list(table) == [
        "operation",
        "page_bytes",
        "sglang==0.5.23",
        "sglang-file",
        "ceiling",
        "pooled-none",
    ]
    (row,) = table[(table.operation == "set") & (table.page_bytes == 65536)].itertuples(index=False)
    assert row[2:5] == ("10.0 [10.0, 10.0]", "8.00 [8.00, 8.00]", "0.500 [0.500, 0.500]")
