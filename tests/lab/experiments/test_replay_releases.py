"""Replays of released connectors, and of several setups in one worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
import pytest

from hicache_nixl.lab.experiments.replay import COLUMNS, replay, replay_each
from hicache_nixl.lab.worker.client import Worker
from hicache_nixl.lab.worker.schedule import Schedule
from hicache_nixl.lab.worker.setup import Setup

PAGE = 4096  # bytes


@pytest.fixture(scope="module")
def shared_worker() -> Iterator[Worker]:
    with Worker(Setup(page_bytes=PAGE, pages=8)) as worker:
        yield worker


class TestReleases:
    @pytest.fixture
    def setups(self, released: Callable[[str], str]) -> list[Setup]:
        names = map(released, ("sglang==0.5.11", "sglang==0.5.23", "sglang==0.5.12"))
        return [Setup(name, page_bytes=PAGE, pages=8) for name in names]

    def test_one_after_the_other_in_one_worker(self, shared_worker, setups):
        """Each is another module of the same name, and begins without what the one before it kept."""
        for setup, fds, registrations in zip(setups, (16, 0, 0), (32, 1, 32), strict=True):
            shared_worker.open(setup)
            assert [path for path in shared_worker.folder.rglob("*") if path.is_file()] == []
            row = shared_worker.call("set", 8)
            assert (row.pages_ok, row.storage_fds, row.registrations) == (8, fds, registrations)

    def test_opening_one_again_and_again_keeps_nothing_open(self, shared_worker, setups):
        counts = []
        for setup in (*setups, *setups, *setups):
            shared_worker.open(setup)
            shared_worker.call("set", 8)
            shared_worker.open(Setup(page_bytes=PAGE, pages=8))
            counts.append(shared_worker.call("exists", 1).open_fds)
        assert counts[3:] == [counts[-1]] * 6

    def test_a_replay_names_it_as_its_connector(self, released):
        table = replay(Schedule.steady(4, 2), released("sglang==0.5.12"), page_bytes=PAGE)
        assert table.storage_fds.tolist() == [0] * 4
        assert table.registrations.tolist() == [8, 16, 24, 32]
        assert table.pages_ok.tolist() == [2] * 4

    def test_a_page_too_small_for_o_direct_is_one_file_and_checked_all_the_same(self, released):
        """Its K and V of 2 KiB are copied together."""
        name = released("sglang==0.5.23")
        table = replay(Schedule.steady(2, 3), name, page_bytes=PAGE, direct=True)
        assert table.pages_ok.tolist() == [3, 3]

    @pytest.mark.usefixtures("needs_io_uring")
    def test_a_queue_in_the_flat_form_reaches_it(self, shared_worker, released):
        name = released("sglang==0.5.11")
        shared_worker.open(Setup(name, queue="io_uring", page_bytes=PAGE, pages=8))
        shared_worker.call("set", 8)
        assert "io_uring" in set(shared_worker.fds().kind)


@pytest.fixture(scope="module")
def tables() -> list[pd.DataFrame]:
    setups = [Setup(name, page_bytes=PAGE, pages=3) for name in ("leaky", "scoped", "leaky")]
    return replay_each(Schedule.steady(4, 3), setups)


class TestReplayEach:
    def test_a_table_per_setup_as_from_replay(self, tables):
        assert [table.columns.tolist() for table in tables] == [COLUMNS] * 3
        for table in tables:
            assert table.call.tolist() == [1, 2, 3, 4]
            assert table.operation.tolist() == ["set", "get"] * 2
            assert table.pages_ok.tolist() == [3] * 4

    def test_each_begins_at_zero(self, tables):
        leaky, scoped, again = tables
        assert leaky.storage_fds.tolist() == again.storage_fds.tolist() == [6, 12, 18, 24]
        assert leaky.registrations.tolist() == again.registrations.tolist() == [12, 24, 36, 48]
        assert scoped.storage_fds.tolist() == [0] * 4
        assert scoped.registrations.tolist() == [1] * 4
