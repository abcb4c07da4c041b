"""Two connectors timed against each other, in alternation."""

from __future__ import annotations

import resource
from pathlib import Path

import pandas as pd
import pytest

from hicache_nixl.config import QUEUES, ConfigError
from hicache_nixl.lab.process import Worker
from hicache_nixl.lab.throughput import Cell, compare, left_per_key, usable_queues

ARMS = ("leaky", "try_finally")
CELLS = [Cell(keys=2, page_bytes=4096), Cell(keys=3, page_bytes=4096, layout="layer_first")]
REPEATS = 2


@pytest.fixture(scope="module")
def storage_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def times(storage_dir: Path) -> pd.DataFrame:
    return compare(ARMS, CELLS, repeats=REPEATS, storage_dir=storage_dir)


class TestCompare:
    def test_a_row_per_cell_pair_arm_and_operation(self, times):
        assert len(times) == len(CELLS) * REPEATS * len(ARMS) * 2
        assert not times[["keys", "pair", "arm", "operation"]].duplicated().any()

    def test_the_arms_alternate(self, times):
        """A set and a get of A, then of B; in the next pair B goes first."""
        for _, cell in times.groupby("keys", sort=False):
            assert cell.arm.tolist() == [arm for arm in (*ARMS, *reversed(ARMS)) for _ in range(2)]
            assert cell.pair.tolist() == [0] * 4 + [1] * 4
            assert cell.operation.tolist() == ["set", "get"] * 4

    def test_the_columns_of_the_cell_are_in_every_row(self, times):
        for cell in CELLS:
            rows = times[times["keys"] == cell.keys]
            for name, value in cell.as_columns().items():
                assert rows[name].unique().tolist() == [value]

    def test_every_call_moved_all_its_bytes_in_some_time(self, times):
        assert (times.bytes == times["keys"] * times.page_bytes).all()
        assert (times.seconds > 0).all()

    def test_only_the_leaky_arm_keeps_descriptors(self, times):
        left = times.groupby(["keys", "arm"]).open_fds.agg(lambda counts: counts.max() - counts.min())
        assert left[2, "leaky"] == 2 * 2 * 3  # from after the first of four measured calls to the last
        assert left[3, "leaky"] == 1 * 3 * 3  # a contiguous copy is one file
        assert left[:, "try_finally"].tolist() == [0, 0]

    def test_nothing_is_left_in_the_storage_folder(self, times, storage_dir):
        assert list(storage_dir.iterdir()) == []


class TestRefused:
    def test_more_repeats_than_the_limit_has_room_for(self, monkeypatch):
        monkeypatch.setattr(Worker, "_start", lambda self: pytest.fail("a process was started"))
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        repeats = limit // 512
        kept = 2 * 2 * 128 * (repeats + 1)
        with pytest.raises(ConfigError) as caught:
            compare(ARMS, [Cell(keys=128)], repeats=repeats)
        for fact in (f"repeats={repeats}", "128 keys", f"keeps {kept} descriptors", f"limit is {limit}"):
            assert fact in str(caught.value)

    def test_an_unknown_queue(self, monkeypatch):
        monkeypatch.setattr(Worker, "_start", lambda self: pytest.fail("a process was started"))
        with pytest.raises(ConfigError, match="'uring' is unknown; it takes one of libaio"):
            compare(ARMS, [Cell(queue="uring")], repeats=2)


def test_usable_queues_says_of_each_whether_it_works_and_if_not_why(io_uring_fd):
    table = usable_queues()
    assert table.columns.tolist() == ["queue", "works", "reason"]
    assert table.queue.tolist() == list(QUEUES)
    assert table.works.tolist() == [True, io_uring_fd is not None, True]
    assert (table.works == (table.reason == "")).all()


def test_left_per_key_is_the_law_for_each_cell_and_arm():
    cell = {"keys": 4, "page_bytes": 4096, "queue": "libaio", "layout": "page_first", "mla": False}
    counts = {"leaky": [8, 16, 24], "try_finally": [6, 6, 6]}
    times = pd.DataFrame([{**cell, "arm": arm, "open_fds": fds} for arm in counts for fds in counts[arm]])
    table = left_per_key(times).set_index("arm")
    assert table.loc["leaky", ["predicted", "least", "most"]].tolist() == [2, 2.0, 2.0]
    assert table.loc["try_finally", ["least", "most"]].tolist() == [0.0, 0.0]
