"""The index of ``pooled`` beside LMDB and SQLite: what is timed does the same in all three."""

from __future__ import annotations

import os
from contextlib import closing

import numpy as np
import pytest

from hicache_nixl.lab.experiments import indexes
from hicache_nixl.lab.experiments.indexes import INDEXES, KEYS, SEGMENT_ROWS, index_summary, index_times
from hicache_nixl.lifetimes.pooled.row import NAME_WORDS, ROW, words_of

STORED = indexes._rows(SEGMENT_ROWS + KEYS, 0)
FIRST, SECOND = STORED[:SEGMENT_ROWS], STORED[SEGMENT_ROWS:]


@pytest.fixture(params=INDEXES)
def index(request, tmp_path):
    with closing(INDEXES[request.param](str(tmp_path), len(STORED))) as opened:
        opened.put(STORED)
        yield opened


def places(rows):
    return words_of(rows)[:, NAME_WORDS:]


def test_a_row_has_96_bytes_of_which_40_are_its_name():
    ((name, rest),) = indexes._items(STORED[:1])
    assert name + rest == STORED[:1].tobytes()
    assert (len(name), len(name + rest)) == (40, ROW.itemsize) == (40, 96)


def test_rows_are_found_in_the_order_that_is_asked_for(index):
    wanted = STORED[np.random.default_rng(5).permutation(len(STORED))[:KEYS]]
    assert np.array_equal(index.find(wanted["key"]), places(wanted))


def test_a_row_that_was_not_put_is_not_found(index):
    other = indexes._rows(KEYS // 2, 0, seed=9)
    keys = np.concatenate([other["key"], SECOND["key"][: KEYS // 2]])
    assert np.array_equal(index.find(keys), places(SECOND[: KEYS // 2]))


def test_a_dropped_segment_is_gone_and_the_others_stay(index):
    index.drop(FIRST)
    assert len(index.find(FIRST["key"][-KEYS:])) == 0
    assert np.array_equal(index.find(SECOND["key"]), places(SECOND))


def test_rows_are_found_again_when_they_are_put_again(index):
    index.drop(FIRST)
    index.put(FIRST)
    assert len(index.find(FIRST["key"][:KEYS])) == KEYS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("indexes")


@pytest.fixture(scope="module")
def times(folder):
    with pytest.MonkeyPatch.context() as few:
        few.setattr(indexes, "CALLS", 6)
        few.setattr(indexes, "DROPS", 6)
        return index_times(SEGMENT_ROWS, storage_dir=folder)


class TestTimes:
    def test_every_call_is_a_row_and_right(self, times):
        assert (times.groupby(["arm", "operation"]).size() == 6).all()
        assert set(times.arm) == set(INDEXES)
        assert times.good.all()

    def test_nothing_is_left_in_the_folder(self, times, folder):
        assert os.listdir(folder) == []

    def test_the_space_is_at_least_that_of_the_rows(self, times):
        assert (times.disk_bytes >= SEGMENT_ROWS * ROW.itemsize).all()

    def test_the_summary_has_a_row_for_each_index(self, times):
        table = index_summary(times, SEGMENT_ROWS)
        assert table["index"].tolist() == list(INDEXES)
        assert {"find 128 rows, ms", "put 128 rows, ms", "drop 16384 rows, ms"} <= set(table)
        assert (table["MiB per million rows"] >= 96e6 / 2**20).all()
