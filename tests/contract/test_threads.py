"""One connector under several threads: SGLang sets, gets and looks up from a thread each."""

from __future__ import annotations

import pytest
from stores import ALONE
from support import keys_of, make_pool, page_files, scramble

ROUNDS, PAGES = 30, 4


# leaky runs out of descriptors, and the two released lifetimes are run as in the controller elsewhere
ACROSS = pytest.mark.parametrize("lifetime", ALONE)


@ACROSS
@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_a_set_a_get_and_a_lookup_do_not_disturb_each_other(
    make_store, run_together, lifetime, raw, log, layout
):
    pool, control = make_pool(False, layout, 2 * PAGES), make_pool(False, layout, PAGES)
    store = make_store(lifetime, pool=pool)
    there, ours, theirs = (
        keys_of(PAGES, "there"),
        pool.page_indices(0, PAGES),
        pool.page_indices(PAGES, PAGES),
    )
    assert all(store.batch_set_v1(there, theirs))
    stored = [page_files(pool, False, page) for page in range(2 * PAGES)]

    def setting():
        for number in range(ROUNDS):
            assert store.batch_set_v1(keys_of(PAGES, f"new{number}-"), ours) == [True] * PAGES

    def getting():
        for _ in range(ROUNDS):
            for page in range(PAGES, 2 * PAGES):
                pool.set_from_flat_data_page(page * pool.page_size, pool.get_dummy_flat_data_page())
            assert store.batch_get_v1(there, theirs) == [True] * PAGES
            assert [page_files(pool, False, page) for page in range(PAGES, 2 * PAGES)] == stored[PAGES:]

    def looking():
        for _ in range(ROUNDS):
            assert store.batch_exists([*there, "missing"]) == PAGES

    run_together(setting, getting, looking)
    assert log.lines() == []
    assert raw.handles() == []
    other = make_store(lifetime, pool=control)
    for number in range(ROUNDS):
        scramble(control)
        assert all(other.batch_get_v1(keys_of(PAGES, f"new{number}-"), control.page_indices(0, PAGES)))
        assert [page_files(control, False, page) for page in range(PAGES)] == stored[:PAGES]


@ACROSS
@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_sets_of_two_threads_do_not_mix(make_store, run_together, lifetime, raw, layout):
    """In layer_first both go through the same stage, one after the other."""
    pool = make_pool(False, layout, 2)
    store = make_store(lifetime, pool=pool)

    def setting(page):
        for number in range(ROUNDS):
            assert store.batch_set_v1([f"page{page}-{number}"], pool.page_indices(page, 1)) == [True]

    run_together(lambda: setting(0), lambda: setting(1))
    for page in (0, 1):
        for ending, content in page_files(pool, False, page).items():
            for number in range(ROUNDS):
                assert raw.get(f"page{page}-{number}_org-model_0_1{ending}") == content


@ACROSS
@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_gets_of_two_threads_do_not_mix(make_store, run_together, lifetime, layout):
    pool = make_pool(False, layout, 2 * PAGES)
    store = make_store(lifetime, pool=pool)
    stored = [page_files(pool, False, page) for page in range(2 * PAGES)]
    assert all(store.batch_set_v1(keys_of(2 * PAGES), pool.page_indices(0, 2 * PAGES)))
    scramble(pool)

    def getting(first):
        keys, indices = keys_of(2 * PAGES)[first : first + PAGES], pool.page_indices(first, PAGES)
        for _ in range(ROUNDS):
            assert store.batch_get_v1(keys, indices) == [True] * PAGES
            assert [page_files(pool, False, first + page) for page in range(PAGES)] == stored[first:][:PAGES]

    run_together(lambda: getting(0), lambda: getting(PAGES))
