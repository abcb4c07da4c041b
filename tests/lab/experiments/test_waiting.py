"""Waiting for a transfer in one way and another, measured in pairs."""

from __future__ import annotations

import pandas as pd
import pytest

from hicache_nixl.lab.experiments import waiting
from hicache_nixl.lab.experiments.waiting import PAUSES, large_transfer, small_transfer, waits
from hicache_nixl.lab.worker.client import RefusedError, WorkerError
from hicache_nixl.lab.worker.setup import Setup

REPEATS = 3


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return waits(small_transfer(), 1, repeats=REPEATS)


class TestWaits:
    def test_a_row_per_pair_and_pause_and_the_first_pair_is_not_counted(self, table):
        assert table.columns.tolist() == ["pair", "pause", "seconds", "core_seconds"]
        assert table.pair.tolist() == [pair for pair in range(REPEATS) for _ in PAUSES]
        assert all(set(pauses) == set(PAUSES) for _, pauses in table.groupby("pair").pause)

    def test_the_order_turns_round_from_pair_to_pair(self, table):
        first, second, third = (group.pause.tolist() for _, group in table.groupby("pair"))
        assert first == third == second[::-1]

    def test_both_times_are_measured(self, table):
        assert (table.seconds > 0).all()
        assert (table.core_seconds > 0).all()

    def test_the_storage_folder_is_left_empty(self, tmp_path):
        waits(Setup("scoped", page_bytes=4096, pages=2), 2, repeats=1, storage_dir=tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestRefused:
    def test_an_unknown_pause_names_the_known_ones(self):
        with pytest.raises(
            RefusedError, match="pause 'nap' is unknown; expected one of none, growing, steady"
        ):
            waits(small_transfer(), 1, repeats=1, pauses=("none", "nap"))

    def test_a_connector_that_waits_in_a_way_of_its_own(self):
        """Its rows would be three names for one way of waiting."""
        with pytest.raises(RefusedError, match="try_finally has no such option; expected scoped"):
            waits(Setup("try_finally", page_bytes=4096, pages=1), 1, repeats=1)

    def test_pages_that_do_not_come_back(self, monkeypatch):
        class LosesPages(waiting.Worker):
            def call(self, operation, keys, **more):
                row = super().call(operation, keys, **more)
                for path in self.folder.iterdir():
                    path.unlink()
                return row

        monkeypatch.setattr(waiting, "Worker", LosesPages)
        with pytest.raises(WorkerError, match=r"get of 1 keys: 0 are right; log: .*No such file"):
            waits(Setup("scoped", page_bytes=4096, pages=1), 1, repeats=1)


@pytest.mark.parametrize("queue", ["libaio", "posix_aio"])
def test_both_transfers_go_past_the_page_cache_and_differ_in_bytes(queue):
    small, large = small_transfer(queue), large_transfer(queue)
    assert small.direct
    assert large.direct
    assert small.params == large.params
    assert (small.pages * small.page_bytes, large.pages * large.page_bytes) == (4096, 64 * 2**20)
