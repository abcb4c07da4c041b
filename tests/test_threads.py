"""One connector under several threads: SGLang sets, gets and looks up from a thread each."""

from __future__ import annotations

import threading

import pytest
import torch
from support import keys_of, make_pool, names_open, page_files, scramble

from hicache_nixl.config import QUEUES

ROUNDS, PAGES = 30, 4


@pytest.fixture
def run_together():
    """Run functions in threads at the same time; the first that raised raises here."""

    def run(*functions):
        errors, start = [], threading.Barrier(len(functions))

        def guarded(function):
            start.wait(10)
            try:
                function()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        for error in errors:
            raise error

    return run


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_a_set_a_get_and_a_lookup_do_not_disturb_each_other(
    make_store, run_together, folder, log, layout, queue
):
    pool, control = make_pool(False, layout, 2 * PAGES), make_pool(False, layout, PAGES)
    store = make_store(pool=pool, posix={"queue": queue})
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
    assert names_open(folder) == []
    other = make_store(pool=control)
    for number in range(ROUNDS):
        scramble(control)
        assert all(other.batch_get_v1(keys_of(PAGES, f"new{number}-"), control.page_indices(0, PAGES)))
        assert [page_files(control, False, page) for page in range(PAGES)] == stored[:PAGES]


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_sets_of_two_threads_do_not_mix(make_store, run_together, folder, layout):
    """In layer_first both go through the same stage, one after the other."""
    pool = make_pool(False, layout, 2)
    store = make_store(pool=pool)

    def setting(page):
        for number in range(ROUNDS):
            assert store.batch_set_v1([f"page{page}-{number}"], pool.page_indices(page, 1)) == [True]

    run_together(lambda: setting(0), lambda: setting(1))
    for page in (0, 1):
        for ending, content in page_files(pool, False, page).items():
            for number in range(ROUNDS):
                assert (folder / f"page{page}-{number}_org-model_0_1{ending}").read_bytes() == content


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_gets_of_two_threads_do_not_mix(make_store, run_together, layout):
    pool = make_pool(False, layout, 2 * PAGES)
    store = make_store(pool=pool)
    stored = [page_files(pool, False, page) for page in range(2 * PAGES)]
    assert all(store.batch_set_v1(keys_of(2 * PAGES), pool.page_indices(0, 2 * PAGES)))
    scramble(pool)

    def getting(first):
        keys, indices = keys_of(2 * PAGES)[first : first + PAGES], pool.page_indices(first, PAGES)
        for _ in range(ROUNDS):
            assert store.batch_get_v1(keys, indices) == [True] * PAGES
            assert [page_files(pool, False, first + page) for page in range(PAGES)] == stored[first:][:PAGES]

    run_together(lambda: getting(0), lambda: getting(PAGES))


def test_owners_of_registered_files_come_and_go_in_threads(make_store, run_together, folder, regions_alive):
    store = make_store()
    assert store.batch_set(keys_of(4), [torch.zeros(4)] * 4)
    alive = regions_alive(store)
    paths = [str(folder / f"{key}_org-model_0_1") for key in keys_of(4)]

    def owning():
        for _ in range(ROUNDS):
            with store.register_files(paths) as owner:
                assert owner.registration.descCount() == 4

    run_together(owning, owning, owning)
    assert names_open(folder) == []
    assert alive["FILE_SEG"] == 0
