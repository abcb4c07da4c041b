"""Pages in segments: servers that share a bucket, requests, capacity, damage and clocks."""

from __future__ import annotations

import time

import pytest
import torch
from object_pieces import ObjectRecords, _names
from pooled_store import note_names
from support import OBJECTS, as_bytes, keys_of, make_pool, object_store, scramble, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import StoreError
from hicache_nixl.lifetimes.pooled_objects import catalogue, gathered, segment
from hicache_nixl.transport import lane
from hicache_nixl.transport.bucket import Bucket
from hicache_nixl.transport.objects import ObjectRequests

PAGES = 24


@pytest.fixture
def two(open_store):
    """Two servers of one rank."""
    return open_store("pooled"), open_store("pooled")


@pytest.fixture
def moved(monkeypatch):
    """Note every request of NIXL: its direction and bytes."""
    run, requests = ObjectRequests.run, []

    def noted(self, direction, lane, parts):
        requests.extend((direction, part.size) for part in parts)
        return run(self, direction, lane, parts)

    monkeypatch.setattr(ObjectRequests, "run", noted)
    return requests


def segments() -> list[str]:
    return _names(object_store().client(), segment.FOLDER)


def stored(store, pool, keys) -> bool:
    return all(store.batch_set_v1(keys, pool.page_indices(0, len(keys))))


def test_what_one_server_stores_the_other_finds_at_its_next_call(two, pool):
    writer, reader = two
    for turn in range(3):
        keys = keys_of(PAGES, f"turn{turn}-")
        assert reader.batch_exists(keys) == 0
        assert stored(writer, pool, keys)
        before = pool.kv_buffer.clone()
        assert reader.batch_exists(keys) == PAGES
        scramble(pool)
        assert all(reader.batch_get_v1(keys, pool.page_indices(0, PAGES)))
        n = PAGES * pool.page_size
        assert torch.equal(as_bytes(pool.kv_buffer)[:, :n], as_bytes(before)[:, :n])


def test_a_batch_is_one_request_to_store_and_one_to_load(two, pool, moved):
    writer, reader = two
    assert stored(writer, pool, keys_of(PAGES))
    assert [direction for direction, _ in moved] == ["WRITE"]
    assert all(reader.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert [direction for direction, _ in moved[1:]] == ["READ", "READ"], "the index, once, and all pages"
    assert all(reader.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert len(moved) == 4, "the index is known by now"
    assert writer.batch_exists(keys_of(PAGES)) == reader.batch_exists(keys_of(PAGES)) == PAGES
    assert len(moved) == 4, "a lookup of known pages needs no request"


def test_some_pages_of_a_segment_are_read_without_the_others(two, pool, moved):
    writer, reader = two
    keys = keys_of(PAGES)
    assert stored(writer, pool, keys)
    wanted = [keys[page] for page in (3, 4, 5, 9)]
    assert reader.batch_exists(wanted) == 4
    del moved[:]
    assert all(reader.batch_get_v1(wanted, pool.page_indices(0, 4)))
    page = 2 * 3072
    assert moved == [("READ", 3 * page), ("READ", page)]


def test_the_bytes_that_were_stored_last_count(two, pool):
    writer, reader = two
    keys = keys_of(3)
    assert stored(writer, pool, keys)
    assert reader.batch_exists(keys) == 3
    scramble(pool)
    latest = as_bytes(pool.kv_buffer).clone()
    assert stored(reader, pool, keys)
    late = HiCacheNixl(storage_config("pooled" + OBJECTS))
    late.register_mem_pool_host(pool)
    with late:
        scramble(pool)
        assert all(late.batch_get_v1(keys, pool.page_indices(0, 3)))
    assert torch.equal(as_bytes(pool.kv_buffer)[:, : 3 * pool.page_size], latest[:, : 3 * pool.page_size])


def test_large_pages_have_a_segment_each(open_store, moved):
    store, pool = open_store("pooled", extra={"segment_mb": 1}), make_pool(False, "page_first", 4)
    large = torch.zeros(3, 2 << 20, dtype=torch.uint8).random_()
    assert store.batch_set(keys_of(3), list(large))
    assert len(segments()) == 3
    found = list(torch.zeros_like(large))
    assert all(torch.equal(*pair) for pair in zip(store.batch_get(keys_of(3), found), large, strict=True))
    assert pool.size


def test_capacity_removes_the_oldest_segments(open_store, pool):
    page = 2 * 3072
    capacity = 5 * PAGES * page / 2**30
    store = open_store("pooled", extra={"capacity_gb": capacity})
    for turn in range(12):
        assert stored(store, pool, keys_of(PAGES, f"turn{turn}-"))
        bytes_stored = sum(segment.Name.read(0, path).size for path in segments())
        assert bytes_stored <= capacity * 2**30 * 1.01
    assert store.batch_exists(keys_of(PAGES, "turn11-")) == PAGES
    assert store.batch_exists(keys_of(PAGES, "turn0-")) == 0


def test_a_segment_that_another_server_removed_is_forgotten_when_it_is_missed(two, pool, log, monkeypatch):
    writer, reader = two
    keys = keys_of(PAGES)
    assert stored(writer, pool, keys)
    assert reader.batch_exists(keys) == PAGES
    writer.clear()
    assert segments() == []
    assert reader.batch_get_v1(keys, pool.page_indices(0, PAGES)) == [False] * PAGES
    assert "not stored, or not with this size" in log.line()
    assert reader.batch_exists(keys) == 0
    assert stored(writer, pool, keys)
    assert reader.batch_exists(keys) == PAGES
    writer.clear()
    monkeypatch.setattr(catalogue, "FRESH", 0)
    assert reader.batch_exists(keys) == 0, "a lookup asks again after some seconds"


def test_a_page_with_other_bytes_is_refused_and_the_others_are_loaded(two, pool, log, monkeypatch):
    note_names(monkeypatch)
    writer, reader = two
    keys = keys_of(3)
    assert stored(writer, pool, keys)
    ObjectRecords.flip(ObjectRecords(None), "page1_org-model_0_1_v")
    assert reader.batch_get_v1(keys, pool.page_indices(0, 3)) == [True, False, True]
    assert "other bytes than were stored" in log.line()
    assert reader.batch_exists(keys) == 1
    assert stored(reader, pool, keys)
    assert reader.batch_exists(keys) == 3


def test_without_verify_nothing_is_compared(open_store, pool, monkeypatch):
    note_names(monkeypatch)
    store = open_store("pooled", extra={"verify": "none"})
    assert stored(store, pool, keys_of(3))
    ObjectRecords(None).flip("page1_org-model_0_1_v")
    assert all(store.batch_get_v1(keys_of(3), pool.page_indices(0, 3)))


@pytest.mark.parametrize("content", [b"", b"short", bytes(10_000)], ids=["empty", "short", "zeros"])
def test_an_object_that_is_no_segment_is_passed_over(two, pool, content):
    writer, reader = two
    assert stored(writer, pool, keys_of(2))
    (path,) = segments()
    space = int(path.split("/")[1], 16)
    client = object_store().client()
    client.put(segment.Name.new(space, 7, 6144).path, content)
    client.put(segment.folder_of(space) + "readme", b"hello")
    assert reader.batch_exists(keys_of(2)) == 2
    assert reader.batch_exists(["other"]) == 0
    assert all(reader.batch_get_v1(keys_of(2), pool.page_indices(0, 2)))


@pytest.mark.parametrize("ahead", [-9, -1, 0, 1, 9, 3600])
def test_clocks_of_servers_may_differ_by_some_seconds(two, pool, monkeypatch, ahead):
    """What a clock far behind stored is found by a look back, now and then; see the next test."""
    writer, reader = two
    assert stored(reader, pool, keys_of(2, "own"))
    assert reader.batch_exists(keys_of(2, "own")) == 2
    now = time.time_ns()
    monkeypatch.setattr(segment.time, "time_ns", lambda: now + ahead * 10**9)
    assert stored(writer, pool, keys_of(2, "other"))
    assert reader.batch_exists(keys_of(2, "other")) == 2


def test_a_clock_that_is_an_hour_ahead_hides_nothing_of_others(two, pool, monkeypatch):
    writer, reader = two
    now = time.time_ns()
    with monkeypatch.context() as patched:
        patched.setattr(segment.time, "time_ns", lambda: now + 3600 * 10**9)
        assert stored(writer, pool, keys_of(2, "ahead"))
    assert reader.batch_exists(keys_of(2, "ahead")) == 2
    assert stored(writer, pool, keys_of(2, "other"))
    assert reader.batch_exists(keys_of(2, "other")) == 2


@pytest.mark.parametrize("behind", [600, 7200])
def test_what_a_clock_far_behind_stored_is_found_when_all_segments_are_listed(two, pool, monkeypatch, behind):
    writer, reader = two
    assert stored(reader, pool, keys_of(2, "own"))
    for _ in range(2):
        assert reader.batch_exists(keys_of(2, "missing")) == 0
    now = time.time_ns()
    with monkeypatch.context() as patched:
        patched.setattr(segment.time, "time_ns", lambda: now - behind * 10**9)
        assert stored(writer, pool, keys_of(2, "other"))
    assert reader.batch_exists(keys_of(2, "other")) == 0
    monkeypatch.setattr(catalogue, "ALL_AFTER", 0)
    assert reader.batch_exists(keys_of(2, "other")) == 2


def test_segments_that_others_removed_are_forgotten_when_all_are_listed(two, pool, monkeypatch):
    writer, reader = two
    assert stored(writer, pool, keys_of(2))
    assert reader.batch_exists(keys_of(2)) == 2
    (known,) = reader.lifetime._catalogues.values()
    assert known.stored > 0
    writer.clear()
    monkeypatch.setattr(catalogue, "ALL_AFTER", 0)
    assert reader.batch_exists(keys_of(1, "other")) == 0
    assert known.stored == 0


@pytest.mark.parametrize("failure", ["not read", "no answer"])
def test_an_index_that_could_not_be_read_is_read_later(two, pool, monkeypatch, log, failure):
    writer, reader = two
    monkeypatch.setattr(catalogue, "UNREAD", 0)
    now = time.time_ns()
    with monkeypatch.context() as patched:
        patched.setattr(segment.time, "time_ns", lambda: now - 86400 * 10**9)
        assert stored(writer, pool, keys_of(2, "old"))
    assert stored(writer, pool, keys_of(2, "new"))

    def read(self, objects):
        if failure == "no answer":
            raise StoreError("away")
        return [StoreError("the object store lists objects that NIXL cannot load")] * len(objects)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectRequests, "read", read)
        assert reader.batch_exists(keys_of(2, "old")) == 0
    assert ("away" if failure == "no answer" else "cannot load") in log.line()
    assert reader.batch_exists(keys_of(2, "old")) == 2
    assert reader.batch_exists(keys_of(2, "new")) == 2


def test_a_set_whose_pages_are_stored_is_true_when_old_segments_cannot_be_removed(
    open_store, pool, monkeypatch, caplog
):
    def refused(self, names):
        raise StoreError("the object store refused: AccessDenied")

    store = open_store("pooled", extra={"capacity_gb": 2 * PAGES * 6144 / 2**30})
    monkeypatch.setattr(Bucket, "remove", refused)
    for turn in range(4):
        assert stored(store, pool, keys_of(PAGES, f"turn{turn}-"))
    assert "capacity_gb are not removed: the object store refused" in caplog.text


@pytest.mark.parametrize("operation", ["set", "get"])
def test_pages_that_were_moved_before_the_store_went_away_are_moved(open_store, monkeypatch, operation):
    store, large = open_store("pooled", extra={"segment_mb": 1}), torch.zeros(6, 1 << 20, dtype=torch.uint8)
    pool = make_pool(False, "page_first", PAGES)
    if operation == "get":
        assert store.batch_set(keys_of(6), list(large))
    monkeypatch.setattr(lane.windows, "__defaults__", (2 << 20,))
    lend, lent = ObjectRequests.lane, []

    def lane_of(self, size):
        lent.append(size)
        if len(lent) > 2:
            raise StoreError("away")
        return lend(self, size)

    monkeypatch.setattr(ObjectRequests, "lane", lane_of)
    names, buffers = store.names.of_values(keys_of(6)), list(large)
    moved = (store.lifetime.store if operation == "set" else store.lifetime.load)(names, buffers)
    good = [outcome.moved for outcome in moved]
    assert 0 < sum(good) < 6
    assert good == sorted(good, reverse=True)
    assert pool.size


def test_an_object_with_an_absurd_name_is_passed_over(two, pool):
    writer, reader = two
    assert stored(writer, pool, keys_of(2))
    path, client = segments()[0], object_store().client()
    client.put(path[:-6].rpartition("-")[0].rpartition("-")[0] + "-ffffffff-8", b"x")
    assert reader.batch_exists(keys_of(2)) == 2


@pytest.fixture
def many(open_store, pool, monkeypatch):
    """A bucket with more segments than are read one by one twice, and what opens one more server."""
    monkeypatch.setattr(gathered, "MANY", 8)
    monkeypatch.setattr(catalogue, "MANY", 8)
    writer = open_store("pooled")
    for number in range(12):
        assert stored(writer, pool, keys_of(2, f"call{number}-"))

    def finds_all():
        reader = open_store("pooled")
        return all(reader.batch_exists(keys_of(2, f"call{number}-")) == 2 for number in range(12))

    return finds_all


def gathered_names() -> list[str]:
    return _names(object_store().client(), f"{segment.FOLDER}-gathered")


def reads(moved) -> int:
    count = sum(direction == "READ" for direction, _ in moved)
    del moved[:]
    return count


def test_only_the_first_new_server_reads_many_indexes_one_by_one(many, moved):
    del moved[:]
    assert many()
    assert reads(moved) == 12
    assert len(gathered_names()) == 1
    assert many()
    assert reads(moved) == 1
    assert len(gathered_names()) == 1


@pytest.mark.parametrize("content", [b"", b"x", bytes(1000)], ids=["empty", "short", "zeros"])
def test_gathered_indexes_that_are_damaged_are_read_one_by_one(many, moved, content):
    assert many()
    (name,) = gathered_names()
    object_store().client().put(name, content)
    del moved[:]
    assert many()
    assert reads(moved) >= 12


def test_gathered_indexes_of_segments_that_are_gone_are_removed(many, open_store, pool):
    assert many()
    before = gathered_names()
    assert before
    object_store().client().delete(segments())
    writer = open_store("pooled")
    for number in range(12):
        assert stored(writer, pool, keys_of(2, f"call{number}-"))
    assert many()
    assert set(gathered_names()).isdisjoint(before)


def test_indexes_of_others_stay_gathered_when_new_segments_come(many, open_store, pool, moved):
    assert many()
    before = gathered_names()
    writer = open_store("pooled")
    for number in range(9):
        assert stored(writer, pool, keys_of(2, f"more{number}-"))
    assert many()
    assert set(before) <= set(gathered_names())
    del moved[:]
    assert many()
    assert reads(moved) <= 3


def test_clear_removes_gathered_indexes(many, open_store):
    assert many()
    open_store("pooled").clear()
    assert gathered_names() == segments() == []
