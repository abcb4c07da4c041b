"""Pages that are in use outlive the recycling of their segment."""

from __future__ import annotations

import pytest
from support import as_bytes, keys_of, make_pool, scramble

PAGES = 8
SEGMENTS = 8


@pytest.fixture
def pool():
    return make_pool(False, "page_first", PAGES)


@pytest.fixture
def store(make_store, pool):
    return make_store("pooled", pool=pool, segment_mb=1, capacity_gb=SEGMENTS / 1024, min_free_gb=0)


def fill(store, pool, segments, label):
    """Append other pages until so many segments are full."""
    batches = segments * (1 << 20) // (PAGES * pool.page_bytes)
    for batch in range(batches):
        keys = [f"{label}{batch}_{page}" for page in range(PAGES)]
        assert all(store.batch_set_v1(keys, pool.page_indices(0, PAGES)))


def test_pages_that_are_loaded_now_and_then_stay_while_others_are_evicted(store, pool):
    scramble(pool)
    original = as_bytes(pool.kv_buffer).clone()
    used, unused = keys_of(PAGES), [f"unused{page}" for page in range(PAGES)]
    assert all(store.batch_set_v1(used, pool.page_indices(0, PAGES)))
    assert all(store.batch_set_v1(unused, pool.page_indices(0, PAGES)))
    for round_ in range(4 * SEGMENTS):
        fill(store, pool, 1, f"round{round_}_")
        pool.kv_buffer.zero_()
        assert all(store.batch_get_v1(used, pool.page_indices(0, PAGES)))
        assert (as_bytes(pool.kv_buffer) == original).all()
    assert store.batch_exists(unused) == 0


def test_a_page_that_is_set_again_meanwhile_keeps_its_new_bytes(store, make_store, pool, replace_method):
    used = keys_of(PAGES)
    assert all(store.batch_set_v1(used, pool.page_indices(0, PAGES)))
    for batch in range(8):
        fill(store, pool, 1, f"round{batch}_")
        if store.lifetime._store.segments.old_below():  # the next get renews
            break
    other_pool = make_pool(False, "page_first", PAGES)
    other = make_store("pooled", pool=other_pool)
    write, calls = store.lifetime._write, []

    def set_by_another_first(*args, **kwargs):
        calls.append(other.batch_set_v1(used, other_pool.page_indices(0, PAGES)))
        return write(*args, **kwargs)

    replace_method(store.lifetime, "_write", set_by_another_first)
    assert all(store.batch_get_v1(used, pool.page_indices(0, PAGES)))
    assert calls == [[True] * PAGES]
    assert all(store.batch_get_v1(used, pool.page_indices(0, PAGES)))
    assert (as_bytes(pool.kv_buffer) == as_bytes(other_pool.kv_buffer)).all()


def test_nothing_is_written_again_while_there_is_room(store, pool):
    used = keys_of(PAGES)
    assert all(store.batch_set_v1(used, pool.page_indices(0, PAGES)))
    fill(store, pool, SEGMENTS // 2, "other")
    segments = store.lifetime._store.segments
    before = segments._writers[0].head
    assert all(store.batch_get_v1(used, pool.page_indices(0, PAGES)))
    assert segments._writers[0].head == before
