"""A lookup answers from memory, and yet never says that a page is there which any process has given up."""

from __future__ import annotations

import pytest
from support import keys_of, make_pool

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
    assert other.lifetime._seen._pages


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
    store.lifetime._store.segments._leave(is_open=False)
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


def test_what_was_removed_while_it_was_stored_is_not_remembered(store):
    seen, state = store.lifetime._seen, store.lifetime._store.state
    version = seen.version()
    state["removals"] += 1  # of another process, between the index and this
    seen.note(version, 1, 2, ["key"], [int(state.generations.max())])
    assert not seen.has_all(seen.version(), 1, 2, ["key"])


def test_what_is_remembered_is_bounded(store):
    seen, generation = store.lifetime._seen, int(store.lifetime._store.state.generations.max())
    for batch in range(4):
        keys = [f"{batch}_{number}" for number in range(MOST // 2)]
        seen.note(seen.version(), 1, 2, keys, [generation] * len(keys))
        assert seen.has_all(seen.version(), 1, 2, keys)
    assert len(seen._pages[1, 2]) <= 1.5 * MOST + 1


def test_with_the_index_lost_nothing_is_remembered(store, folder):
    (index,) = folder.glob("pooled/index.*")
    index.unlink()
    assert store.batch_exists(keys_of(PAGES)) == 0
