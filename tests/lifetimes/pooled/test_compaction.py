"""Freeing segments that are mostly dead: which, what is moved, and what a server beside it sees."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from small_store import MIB, PAGE, SmallStore, damage, keys_of

from hicache_nixl.lifetimes.pooled.compaction import Compacted, Compaction, compact
from hicache_nixl.lifetimes.pooled.facts import Facts
from hicache_nixl.lifetimes.pooled.inspection import Inspection


def facts_of(folder: Path) -> Facts:
    with Inspection(folder) as inspection:
        return inspection.facts()


def compacted(folder: Path) -> Compacted:
    with Inspection(folder) as inspection:
        return compact(inspection)


@pytest.fixture(params=["page_first", "layer_first"])
def store(request, folder):
    """A running connector: of 680 pages in four segments, all but each tenth are stored again."""
    with SmallStore(folder, layout=request.param, capacity_gb=10 / 1024) as store:
        for first in range(0, 680, 85):
            store.set(range(first, first + 85))
        again = [number for number in range(510) if number % 10]
        for first in range(0, len(again), 51):
            store.set(again[first : first + 51])
        yield store


def test_mostly_dead_segments_are_freed_and_no_page_is_lost(store, folder):
    before = facts_of(folder)
    done = compacted(folder)
    assert (done.freed, done.moved, done.damaged, done.kept) == (3, 51, 0, "")
    assert done.moved_bytes == 51 * PAGE
    after = facts_of(folder)
    assert (after.pages, after.stored) == (before.pages, before.stored)
    assert after.dead < before.dead - 2 * MIB
    with Inspection(folder) as inspection:
        assert inspection.verify(inspection.rows())[0] == []
    for first in range(0, 680, 85):
        assert all(store.get(range(first, first + 85)))


def test_what_was_freed_is_given_back_to_the_file_system_and_used_again(store, folder):
    compacted(folder)
    empty = [path.name for path in (folder / "pooled").glob("segment-*") if not path.stat().st_size]
    assert len(empty) == 3
    for first in range(1000, 1400, 100):
        assert all(store.set(range(first, first + 100)))
        assert all(store.get(range(first, first + 100)))
    assert facts_of(folder).counters["segments_recycled"] == 0


def test_a_second_time_there_is_nothing_to_do(store, folder):
    compacted(folder)
    assert compacted(folder) == Compacted()


def test_damaged_pages_are_not_moved(store, folder):
    keys = damage(folder, 2)
    assert compacted(folder).damaged == 2
    numbers = [number for number, key in enumerate(keys_of(range(680))) if key in keys]
    assert store.get(numbers) == [False, False]
    assert facts_of(folder).pages == 678


def test_a_page_that_a_server_stores_meanwhile_is_not_replaced_by_an_older_one(store, folder, monkeypatch):
    listed = Compaction._store_again

    def stored_first(self, rows, pages):
        store.pool.kv_buffer.view(dtype=store.pool.dtype).neg_()
        assert all(store.set(range(0, 510, 10)))
        listed(self, rows, pages)

    monkeypatch.setattr(Compaction, "_store_again", stored_first)
    done = compacted(folder)
    assert (done.freed, done.moved, done.kept) == (3, 0, "")
    assert facts_of(folder).pages == 680


def test_a_segment_that_is_read_is_kept(store, folder, monkeypatch):
    monkeypatch.setattr("hicache_nixl.lifetimes.pooled.compaction.PATIENCE", 0.05)
    with store.connector.lifetime._store.locks.reading([0]):
        done = compacted(folder)
    assert (done.freed, done.kept) == (2, "a server reads from it")
    assert compacted(folder).freed == 1


def test_a_segment_that_a_server_writes_is_kept(folder):
    with SmallStore(folder) as store:
        for _ in range(3):
            store.set(range(50))
        done = compacted(folder)
        assert (done.freed, done.kept) == (0, "a server writes to it")
    assert facts_of(folder).pages == 50


def test_a_full_store_keeps_its_pages(folder):
    with SmallStore(folder) as store:
        for first in range(0, 1700, 85):
            store.set(range(first, first + 85))
        store.connector.clear()
        for segment in range(8):  # 20 pages of each remain
            store.set(range(segment * 1000, segment * 1000 + 20))
            store.set(range(10_000, 10_100))
            store.set(range(10_000, 10_050))
        before = facts_of(folder)
        assert len(before.segments) == 8
        compacted(folder)
        assert facts_of(folder).pages == before.pages
        assert facts_of(folder).counters["segments_recycled"] == before.counters["segments_recycled"]


def test_a_server_finds_every_page_at_every_moment(folder):
    with SmallStore(folder) as store, SmallStore(folder) as other:
        for first in range(0, 680, 85):
            store.set(range(first, first + 85))
        lost: list[int] = []
        end = threading.Event()

        def read() -> None:
            while not end.is_set():
                lost.extend(number for number, found in enumerate(other.get(range(128))) if not found)

        reader = threading.Thread(target=read)
        reader.start()
        freed = 0
        try:
            for _ in range(5):
                store.set([number for number in range(128) if number % 10])
                store.set(range(300, 400))
                freed += compacted(folder).freed
        finally:
            end.set()
            reader.join()
    assert lost == []
    assert freed > 0
