"""A lookup answers from memory, and yet never says that a page is there which any process has given up."""

from __future__ import annotations

import numpy as np
import pytest
from support import as_bytes, keys_of, make_pool, scramble

from hicache_nixl.lifetimes.pooled.row import ROW
from hicache_nixl.lifetimes.pooled.seen import MOST

PAGES = 8


@pytest.fixture
def pool():
    return make_pool(False, "page_first", PAGES)


@pytest.fixture
def store(make_store, pool):
    store = make_store("pooled", pool=pool, segment_mb=1, capacity_gb=2 / 1024, min_free_gb=0)
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    return store


@pytest.fixture
def looks(store, monkeypatch):
    """How often the index was asked."""
    index, asked = store.lifetime._store.index, []
    find = index.find
    monkeypatch.setattr(index, "find", lambda *args: (asked.append(args), find(*args))[1])
    return asked


def test_pages_that_were_stored_or_found_are_not_looked_up_again(store, make_store, pool, looks):
    assert store.batch_exists(keys_of(PAGES)) == PAGES
    assert looks == []
    other = make_store("pooled", pool=pool, segment_mb=1, capacity_gb=2 / 1024, min_free_gb=0)
    assert [other.batch_exists(keys_of(PAGES)) for _ in range(2)] == [PAGES, PAGES]
    assert other.lifetime._seen._known


def test_a_page_that_is_not_known_is_looked_up(store, looks):
    assert store.batch_exists([*keys_of(PAGES), "missing"]) == PAGES
    assert len(looks) == 1


def test_pages_that_another_connector_clears_are_gone(store, make_store, pool):
    assert store.batch_exists(keys_of(PAGES)) == PAGES
    make_store("pooled", pool=pool, segment_mb=1, capacity_gb=2 / 1024, min_free_gb=0).clear()
    assert store.batch_exists(keys_of(PAGES)) == 0


def test_pages_whose_segment_was_recycled_are_gone(store, make_store, pool):
    assert store.batch_exists(keys_of(PAGES)) == PAGES
    other = make_store("pooled", pool=pool, segment_mb=1, capacity_gb=2 / 1024, min_free_gb=0)
    store.lifetime._store.segments._leave(store.lifetime._store.segments._writers[0], is_open=False)
    for batch in range(3 * (1 << 20) // (PAGES * pool.page_bytes)):
        keys = [f"other{batch}_{page}" for page in range(PAGES)]
        assert all(other.batch_set_v1(keys, pool.page_indices(0, PAGES)))
    assert store.batch_exists(keys_of(PAGES)) == 0


def test_a_damaged_page_is_gone(store, pool, folder):
    assert store.batch_exists(keys_of(PAGES)) == PAGES
    (segment,) = folder.glob("pooled/segment-*")
    content = bytearray(segment.read_bytes())
    content[0] ^= 1
    segment.write_bytes(content)
    assert store.batch_get_v1(keys_of(1), pool.page_indices(0, 1)) == [False]
    assert store.batch_exists(keys_of(1)) == 0


def rows_of(store, pages):
    """Return rows of a segment that is there."""
    rows = np.zeros(pages, ROW)
    segment = int(store.lifetime._store.state.generations.argmax())
    rows["segment"], rows["generation"] = segment, store.lifetime._store.state.generations[segment]
    rows["offset"] = np.arange(pages)
    return rows


def test_what_was_removed_while_it_was_stored_is_not_remembered(store):
    seen, state = store.lifetime._seen, store.lifetime._store.state
    version = seen.version()
    state["removals"] += 1  # of another process, between the index and this
    seen.note(version, 1, 2, ["key"], rows_of(store, 1))
    assert seen.find(seen.version(), 1, 2, ["key"]) is None


def test_what_is_remembered_is_bounded(store):
    seen, rows = store.lifetime._seen, rows_of(store, MOST // 2)
    for batch in range(4):
        keys = [f"{batch}_{number}" for number in range(MOST // 2)]
        seen.note(seen.version(), 1, 2, keys, rows)
        assert (seen.find(seen.version(), 1, 2, keys) == rows).all()
    assert len(seen._known[1, 2]._keys) == MOST


def test_pages_are_found_in_any_order_and_with_others_between(store):
    seen, rows = store.lifetime._seen, rows_of(store, 6)
    seen.note(seen.version(), 1, 2, ["a", "b", "c"], rows[:3])
    seen.note(seen.version(), 1, 2, ["d", "e", "f"], rows[3:])
    for keys, expected in [("bcde", [1, 2, 3, 4]), ("cba", [2, 1, 0]), ("fa", [5, 0]), ("aa", [0, 0])]:
        assert seen.find(seen.version(), 1, 2, list(keys))["offset"].tolist() == expected
    assert seen.find(seen.version(), 1, 2, ["a", "x"]) is None
    assert seen.find(seen.version(), 1, 3, ["a"]) is None, "of another size"
    assert seen.find(seen.version(), 2, 2, ["a"]) is None, "of another space"


def test_a_set_with_a_key_twice_is_not_remembered(store, pool):
    scramble(pool)
    last = as_bytes(pool.get_data_page(pool.page_size)).clone()
    assert store.batch_set_v1(["x", "x"], pool.page_indices(0, 2)) == [True, True]
    scramble(pool)
    assert store.batch_get_v1(["x"], pool.page_indices(0, 1)) == [True]
    assert as_bytes(pool.get_data_page(0)).equal(last)


def test_other_bytes_of_a_page_by_another_connector_are_loaded(store, make_store, pool):
    scramble(pool)
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert store.batch_exists(keys_of(PAGES)) == PAGES
    other_pool = make_pool(False, "page_first", PAGES)
    scramble(other_pool)
    other = make_store("pooled", pool=other_pool, segment_mb=1, capacity_gb=2 / 1024, min_free_gb=0)
    assert all(other.batch_set_v1(keys_of(PAGES), other_pool.page_indices(0, PAGES)))
    assert all(store.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert (as_bytes(pool.kv_buffer) == as_bytes(other_pool.kv_buffer)).all()


def test_with_the_index_lost_nothing_is_remembered(store, folder):
    (index,) = folder.glob("pooled/index.*")
    index.unlink()
    assert store.batch_exists(keys_of(PAGES)) == 0
