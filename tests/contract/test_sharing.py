"""Several configurations on one storage: none finds, overwrites or clears the pages of another."""

from __future__ import annotations

import pytest
import torch
from stores import ALONE
from support import keys_of, make_pool, page_files, scramble

OTHERS = {
    "model": ({"model": "org/model2"}, {}),
    "tp rank": ({"tp_rank": 1, "tp_size": 2}, {}),
    "tp size": ({"tp_size": 2}, {}),
    "pp rank": ({"pp": (1, 2)}, {}),
    "cp rank": ({"cp": (0, 2)}, {}),
    "dtype": ({}, {"dtype": torch.float16}),
    "layout": ({}, {"layout": "page_first_direct"}),
    "copied layout": ({}, {"layout": "layer_first"}),
    "page size": ({}, {"page_size": 32}),
}


def pool_of(layout="page_first", **shape):
    return make_pool(False, layout, **shape)


@pytest.mark.parametrize("lifetime", ALONE)
@pytest.mark.parametrize("name", OTHERS)
def test_pages_of_another_configuration_are_not_found(make_store, lifetime, name):
    """Their pieces may have the very same size."""
    config, shape = OTHERS[name]
    pool, other_pool = pool_of(), pool_of(**shape)
    store, other = make_store(lifetime, pool=pool), make_store(lifetime, pool=other_pool, **config)
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    assert other.batch_exists(keys_of(2)) == 0
    assert other.batch_get_v1(keys_of(2), other_pool.page_indices(0, 2)) == [False, False]
    assert all(other.batch_set_v1(keys_of(2), other_pool.page_indices(0, 2)))
    stored = page_files(pool, False, 0)
    scramble(pool)
    assert all(store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)))
    assert page_files(pool, False, 0) == stored


@pytest.mark.parametrize("lifetime", ALONE)
def test_clear_keeps_the_pages_of_every_other_configuration(make_store, lifetime, raw):
    """But for plain copies of the same rank: they are named as its values are."""
    stores = []
    for config, shape in (other for name, other in OTHERS.items() if name != "copied layout"):
        pool = pool_of(**shape)
        stores.append(make_store(lifetime, pool=pool, **config))
        assert all(stores[-1].batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    kept = raw.names()
    pool = pool_of()
    store = make_store(lifetime, pool=pool)
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    store.clear()
    assert raw.names() == kept
    assert all(other.batch_exists(keys_of(2)) == 2 for other in stores)
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    for other in stores:
        other.clear()
    assert store.batch_exists(keys_of(2)) == 2
    store.clear()
    assert raw.names() == [], "each removes its own"
