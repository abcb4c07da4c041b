"""The v1 batch calls of multi-head and MLA pages in the three memory layouts."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from stores import BY_PIECE, STORES, complaint
from support import as_bytes, keys_of, make_pool, page_files, scramble, suffix

from hicache_nixl.config import LAYOUTS

PAGES = 8


GEOMETRIES = tuple(product((False, True), LAYOUTS))
# The layout is a matter of the host side, which is the same for every lifetime: one lifetime with all of them,
# the others with pages in two pieces and with copies.
CASES = [("scoped", *geometry) for geometry in GEOMETRIES] + [
    (lifetime, *geometry)
    for lifetime in STORES
    for geometry in ((False, "page_first"), (True, "layer_first"))
    if lifetime != "scoped"
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'mla' if case[1] else 'multi_head'}-{case[2]}")
def case(request):
    return request.param


@pytest.fixture
def lifetime(case):
    return case[0]


@pytest.fixture
def mla(case):
    return case[1]


@pytest.fixture
def layout(case):
    return case[2]


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


def test_pieces_hold_the_pool_s_memory_under_the_documented_names(store, pool, contents, raw):
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    stored = {name: raw.get(name) for name in raw.names()}
    assert sorted(stored) == sorted(contents)
    assert stored == contents


@pytest.mark.parametrize("case", [case for case in CASES if case[0] in BY_PIECE], indirect=True)
def test_pieces_written_by_hand_are_loaded(store, pool, contents, raw):
    for name, content in contents.items():
        raw.put(name, content)
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


@pytest.mark.parametrize("case", [(lifetime, True, "layer_first") for lifetime in STORES], indirect=True)
def test_a_page_that_is_not_loaded_leaves_its_place_alone_where_pages_are_copied(store, pool, left, mla, log):
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    stored = [page_files(pool, mla, page) for page in range(3)]
    scramble(pool)
    before = [page_files(pool, mla, page) for page in range(3)]
    answers = store.batch_get_v1([*keys_of(2), "missing"], pool.page_indices(0, 3))
    assert answers == left.answers(True, True, False)
    expected = [(stored if loaded else before)[page] for page, loaded in enumerate(answers)]
    assert [page_files(pool, mla, page) for page in range(3)] == expected
    assert "missing" in log.line()


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


def test_a_page_of_which_a_piece_is_missing_is_not_there(store, lifetime, left, pool, raw, endings, log):
    keys = keys_of(4)
    for ending in endings:
        gone = keys[2] + ending
        assert all(store.batch_set_v1(keys, pool.page_indices(0, 4)))
        raw.remove(gone)
        assert store.batch_exists(keys) == 2
        assert not store.exists(keys[2])
        answers = store.batch_get_v1(keys, pool.page_indices(0, 4))
        assert answers == left.answers(True, True, False, True)
        line = log.line()
        assert [text for text in complaint(lifetime, gone) if text not in line] == []


def test_batch_exists_answers_an_int(store):
    assert type(store.batch_exists(keys_of(2))) is int
    assert type(store.exists("page")) is bool


def test_more_than_128_keys_in_a_call(make_store, lifetime, left, raw, mla, layout):
    """The controller takes 128 at most for set and get, and whole requests for exists."""
    count = 300  # more than twice what is staged at once
    pool = make_pool(mla, layout, count)
    store = make_store(lifetime, mla=mla, pool=pool)
    original = pool.kv_buffer.clone()
    assert store.batch_set_v1(keys_of(count), pool.page_indices(0, count)) == [True] * count
    scramble(pool)
    assert store.batch_get_v1(keys_of(count), pool.page_indices(0, count)) == [True] * count
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))
    assert len(raw.handles()) == 2 * len(raw.names()) * left.fds
    assert store.batch_exists([*keys_of(count), "missing", *keys_of(700, "after")]) == count


def test_the_same_page_may_stand_twice_in_a_call(store, pool, mla):
    indices = torch.cat([pool.page_indices(2, 1)] * 2)
    before = page_files(pool, mla, 2)
    assert store.batch_set_v1(["page", "page"], indices) == [True, True]
    scramble(pool)
    assert store.batch_get_v1(["page"], pool.page_indices(2, 1)) == [True]
    assert page_files(pool, mla, 2) == before


def test_extra_info_of_the_controller_is_taken(store, pool):
    extra = object()
    assert store.batch_set_v1(["page"], pool.page_indices(0, 1), extra) == [True]
    assert store.batch_get_v1(["page"], pool.page_indices(0, 1), extra_info=extra) == [True]
    assert store.batch_exists(["page"], extra) == 1


# -- ranks -----------------------------------------------------------------------------------------------

EACH_STORE = [(lifetime, False, "page_first") for lifetime in STORES]


@pytest.mark.parametrize("case", EACH_STORE, indirect=True)
def test_ranks_of_a_multi_head_model_keep_their_pages_apart(make_store, lifetime):
    pool = make_pool(False, "page_first")
    first, second = (make_store(lifetime, pool=pool, tp_rank=rank, tp_size=2) for rank in (0, 1))
    assert all(first.batch_set_v1(["page"], pool.page_indices(0, 1)))
    assert first.exists("page")
    assert not second.exists("page")


@pytest.mark.parametrize("case", EACH_STORE, indirect=True)
def test_ranks_of_an_mla_model_share_their_pages(make_store, lifetime):
    pool = make_pool(True, "page_first")
    first, second = (make_store(lifetime, pool=pool, mla=True, tp_rank=rank, tp_size=2) for rank in (0, 1))
    assert all(first.batch_set_v1(["page"], pool.page_indices(0, 1)))
    assert second.exists("page")
