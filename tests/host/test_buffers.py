"""The v1 batch calls, over every lifetime, multi-head and MLA, and the three memory layouts."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from support import (
    as_bytes,
    files_in,
    keys_of,
    make_pool,
    names_open,
    page_files,
    scramble,
    suffix,
)

from hicache_nixl.config import LIFETIMES

PAGES = 8


@pytest.fixture
def pool(mla, layout):
    return make_pool(mla, layout, PAGES)


@pytest.fixture
def store(make_store, lifetime, mla, pool):
    return make_store(lifetime, mla=mla, pool=pool)


@pytest.fixture
def endings(mla, layout, lifetime, pool):
    """What stands behind the key in the name of each file of a page."""
    return [suffix(mla, layout, lifetime) + ending for ending in page_files(pool, mla, 0)]


@pytest.fixture
def files_of(endings):
    """The files of some keys: sorted names."""
    return lambda keys: sorted(key + ending for key in keys for ending in endings)


@pytest.fixture
def contents(mla, endings, pool):
    """What the files of a page hold: by name, for every page of the pool."""
    return {
        f"page{page}{ending}": content
        for page in range(PAGES)
        for ending, content in zip(endings, page_files(pool, mla, page).values(), strict=True)
    }


def test_pages_come_back_bit_for_bit(store, pool):
    assert store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)) == [True] * PAGES
    original = pool.kv_buffer.clone()
    scramble(pool)
    assert store.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)) == [True] * PAGES
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))


def test_files_hold_the_pool_s_memory_under_the_documented_names(store, pool, contents, folder):
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    stored = {name: (folder / name).read_bytes() for name in files_in(folder)}
    assert sorted(stored) == sorted(contents)
    assert stored == contents


@pytest.mark.parametrize(("writer", "reader"), list(permutations(LIFETIMES, 2)))
def test_what_one_lifetime_wrote_another_one_reads(make_store, mla, layout, writer, reader, pool):
    """Of 64 tokens a page has the same name and bytes, but for the layout that has a name of its own."""
    first, second = (make_store(lifetime, mla=mla, pool=pool) for lifetime in (writer, reader))
    original = pool.kv_buffer.clone()
    assert all(first.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    same = suffix(mla, layout, writer) == suffix(mla, layout, reader)
    assert same == (layout != "page_first_direct" or "scoped" not in (writer, reader))
    assert second.batch_exists(keys_of(PAGES)) == (PAGES if same else 0)
    scramble(pool)
    assert second.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)) == [same] * PAGES
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original)) == same


def test_files_written_by_hand_are_loaded(store, pool, contents, folder):
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    original = pool.kv_buffer.clone()
    scramble(pool)
    assert all(store.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))


def test_pages_may_be_scattered_in_the_pool_and_come_back_elsewhere(store, pool, mla):
    taken = [6, 1, 3]
    before = [page_files(pool, mla, page) for page in taken]
    sources = torch.cat([pool.page_indices(page, 1) for page in taken])
    assert all(store.batch_set_v1(keys_of(3), sources))
    targets = torch.cat([pool.page_indices(page, 1) for page in (0, 7, 2)])
    assert all(store.batch_get_v1(keys_of(3), targets))
    assert [page_files(pool, mla, page) for page in (0, 7, 2)] == before


def test_a_get_writes_its_own_pages_only(store, pool, mla):
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    loaded = page_files(pool, mla, 0), page_files(pool, mla, 1)
    scramble(pool)
    others = [page_files(pool, mla, page) for page in (0, 1, 2, 3, 6, 7)]
    assert all(store.batch_get_v1(keys_of(2), pool.page_indices(4, 2)))
    assert (page_files(pool, mla, 4), page_files(pool, mla, 5)) == loaded
    assert [page_files(pool, mla, page) for page in (0, 1, 2, 3, 6, 7)] == others


def test_a_page_that_is_not_loaded_leaves_its_place_alone_where_pages_are_copied(
    make_store, lifetime, left, mla, log
):
    pool = make_pool(mla, "layer_first")
    store = make_store(lifetime, mla=mla, pool=pool)
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    stored = [page_files(pool, mla, page) for page in range(3)]
    scramble(pool)
    before = [page_files(pool, mla, page) for page in range(3)]
    answers = store.batch_get_v1([*keys_of(2), "missing"], pool.page_indices(0, 3))
    assert answers == left.answers(True, True, False)
    expected = [(stored if loaded else before)[page] for page, loaded in enumerate(answers)]
    assert [page_files(pool, mla, page) for page in range(3)] == expected
    assert "missing" in log.line()


def test_descriptors_and_registrations_after_every_call(store, left, pool, folder, files_of, regions_alive):
    """2 files per page for multi-head zero-copy, 1 for MLA and for copied pages; then the lifetime's share."""
    alive = regions_alive(store)
    names = files_of(keys_of(5))
    expected: list[str] = []
    for call in (store.batch_set_v1, store.batch_get_v1, store.batch_set_v1, store.batch_get_v1):
        assert all(call(keys_of(5), pool.page_indices(0, 5)))
        expected += names * left.fds
        assert names_open(folder) == sorted(expected), f"fd leak after {call.__name__}"
    assert alive["FILE_SEG"] == 4 * len(names) * left.file_registrations
    assert alive["DRAM_SEG"] == 4 * len(names) * left.buffer_registrations


@pytest.mark.parametrize(
    ("mla", "layout", "per_page"),
    [
        (False, "page_first", 2),
        (False, "page_first_direct", 2),
        (False, "layer_first", 1),
        (True, "page_first", 1),
        (True, "page_first_direct", 1),
        (True, "layer_first", 1),
    ],
)
def test_leaky_keeps_this_many_descriptors_per_page(make_store, folder, mla, layout, per_page):
    """The law of the PR: +2 per key and call for multi-head zero-copy."""
    pool = make_pool(mla, layout)
    store = make_store("leaky", mla=mla, pool=pool)
    for calls in range(1, 4):
        assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
        assert len(names_open(folder)) == calls * PAGES * per_page, names_open(folder)


def test_batch_exists_counts_the_leading_pages(store, pool):
    keys = keys_of(5)
    assert store.batch_exists(keys) == 0
    assert all(store.batch_set_v1(keys[:3], pool.page_indices(0, 3)))
    assert store.batch_exists(keys) == 3
    assert store.batch_exists(keys[:3]) == 3
    assert store.batch_exists(keys[:1]) == 1
    assert store.batch_exists(keys[3:]) == 0
    assert store.exists(keys[2])
    assert not store.exists(keys[3])


def test_batch_exists_stops_at_a_hole(store, pool):
    keys = keys_of(5)
    held = [0, 1, 3, 4]
    indices = torch.cat([pool.page_indices(page, 1) for page in held])
    assert all(store.batch_set_v1([keys[page] for page in held], indices))
    assert store.batch_exists(keys) == 2
    assert store.batch_exists(keys[2:]) == 0
    assert store.batch_exists(keys[3:]) == 2


def test_a_page_of_which_a_file_is_missing_is_not_there(store, left, pool, folder, files_of, log):
    keys = keys_of(4)
    for gone in files_of([keys[2]]):
        assert all(store.batch_set_v1(keys, pool.page_indices(0, 4)))
        (folder / gone).unlink()
        assert store.batch_exists(keys) == 2
        assert not store.exists(keys[2])
        answers = store.batch_get_v1(keys, pool.page_indices(0, 4))
        assert answers == left.answers(True, True, False, True)
        line = log.line()
        assert gone in line
        assert "[Errno 2]" in line


def test_batch_exists_answers_an_int(store):
    assert type(store.batch_exists(keys_of(2))) is int
    assert type(store.exists("page")) is bool


@pytest.mark.parametrize("mla", [False, True], ids=["multi_head", "mla"])
@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_more_than_128_keys_in_a_call(make_store, lifetime, left, folder, mla, layout):
    """The controller takes 128 at most for set and get, and whole requests for exists."""
    count = 300  # more than twice what is staged at once
    pool = make_pool(mla, layout, count)
    store = make_store(lifetime, mla=mla, pool=pool)
    original = pool.kv_buffer.clone()
    assert store.batch_set_v1(keys_of(count), pool.page_indices(0, count)) == [True] * count
    scramble(pool)
    assert store.batch_get_v1(keys_of(count), pool.page_indices(0, count)) == [True] * count
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))
    assert len(names_open(folder)) == 2 * len(files_in(folder)) * left.fds
    assert store.batch_exists([*keys_of(count), "missing", *keys_of(700, "after")]) == count


def test_the_same_page_may_stand_twice_in_a_call(store, pool, mla):
    indices = torch.cat([pool.page_indices(2, 1)] * 2)
    before = page_files(pool, mla, 2)
    assert store.batch_set_v1(["page", "page"], indices) == [True, True]
    scramble(pool)
    assert store.batch_get_v1(["page"], pool.page_indices(2, 1)) == [True]
    assert page_files(pool, mla, 2) == before


def test_ranks_of_a_multi_head_model_keep_their_pages_apart(make_store):
    pool = make_pool(False, "page_first")
    first, second = (make_store(pool=pool, tp_rank=rank, tp_size=2) for rank in (0, 1))
    assert all(first.batch_set_v1(["page"], pool.page_indices(0, 1)))
    assert first.exists("page")
    assert not second.exists("page")


def test_ranks_of_an_mla_model_share_their_pages(make_store):
    pool = make_pool(True, "page_first")
    first, second = (make_store(pool=pool, mla=True, tp_rank=rank, tp_size=2) for rank in (0, 1))
    assert all(first.batch_set_v1(["page"], pool.page_indices(0, 1)))
    assert second.exists("page")


def test_extra_info_of_the_controller_is_taken(store, pool):
    extra = object()
    assert store.batch_set_v1(["page"], pool.page_indices(0, 1), extra) == [True]
    assert store.batch_get_v1(["page"], pool.page_indices(0, 1), extra_info=extra) == [True]
    assert store.batch_exists(["page"], extra) == 1
