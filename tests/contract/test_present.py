"""Which pages are present: those with all their bytes, for any number of keys."""

from __future__ import annotations

import pytest
import torch
from stores import ALONE, BY_PIECE, DAMAGE, damage
from support import as_bytes, keys_of, make_pool, page_files, scramble, suffix

GEOMETRIES = [(False, "page_first"), (False, "page_first_direct"), (True, "layer_first")]


@pytest.mark.parametrize("lifetime", ALONE)
@pytest.mark.parametrize(("mla", "layout"), GEOMETRIES)
@pytest.mark.parametrize("how", DAMAGE)
def test_a_page_is_present_when_every_piece_has_all_its_bytes(
    make_store, lifetime, mla, layout, raw, log, how
):
    pool = make_pool(mla, layout)
    store = make_store(lifetime, mla=mla, pool=pool)
    for ending in page_files(pool, mla, 1):
        assert all(store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)))
        assert store.batch_exists(keys_of(3)) == 3
        damage(raw, f"page1{suffix(mla, layout)}{ending}", how)
        assert store.batch_exists(keys_of(3)) == 1
        assert not store.exists("page1")
        assert store.exists("page2")
    assert log.lines() == []


@pytest.mark.parametrize("lifetime", ALONE)
def test_without_a_pool_a_value_is_present_when_it_has_bytes(make_store, lifetime, raw):
    store = make_store(lifetime)
    assert not store.exists("value")
    if lifetime in BY_PIECE:
        raw.put("value_org-model_0_1", b"")
        assert not store.exists("value")
    assert store.set("value", torch.zeros(1))
    assert store.exists("value")


@pytest.mark.parametrize("lifetime", ALONE)
@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_a_thousand_keys_are_looked_up_in_a_call(make_store, lifetime, raw, layout):
    pool = make_pool(False, layout)
    store = make_store(lifetime, pool=pool)
    assert all(store.batch_set_v1(keys_of(1000), pool.page_indices(0, 1).repeat(1000)))
    assert store.batch_exists([*keys_of(1000), "missing"]) == 1000
    damage(raw, next(name for name in raw.names() if name.startswith("page777")), "truncated")
    assert store.batch_exists(keys_of(1000)) == 777


def test_more_keys_than_the_pool_has_pages_go_through_copies_too(make_store, lifetime, raw):
    """The same page of the pool under several keys: the stage has no more slots than the pool has pages."""
    pool = make_pool(False, "layer_first", 2)
    store = make_store(lifetime, pool=pool)
    indices = torch.cat([pool.page_indices(page, 1) for page in (0, 1, 0, 1, 1)])
    expected = [page_files(pool, False, page)[""] for page in (0, 1, 0, 1, 1)]
    assert store.batch_set_v1(keys_of(5), indices) == [True] * 5
    assert [raw.get(f"{key}_org-model_0_1") for key in keys_of(5)] == expected
    original = pool.kv_buffer.clone()
    scramble(pool)
    assert store.batch_get_v1(keys_of(5), indices) == [True] * 5
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))
