"""One bad page in a batch: what is answered for it and for the others, what is logged, and what is overwritten."""

from __future__ import annotations

import pytest
from stores import ALONE, DAMAGE, complaint, damage
from support import LEFT, close_below, keys_of, make_pool, page_files, scramble, suffix

NAME = "page1_org-model_0_1_k"
GEOMETRIES = [(False, "page_first"), (False, "layer_first"), (True, "page_first_direct")]


@pytest.mark.parametrize("how", [how for how in DAMAGE if how != "longer"])
def test_get_of_a_damaged_page_says_which_piece_and_why(make_store, lifetime, left, folder, raw, log, how):
    pool, keys = make_pool(False, "page_first"), keys_of(3)
    store = make_store(lifetime, pool=pool)
    assert all(store.batch_set_v1(keys, pool.page_indices(0, 3)))
    if left.fds:
        close_below(folder)
    damage(raw, NAME, how)
    assert store.batch_get_v1(keys, pool.page_indices(0, 3)) == left.answers(True, False, True)
    line = log.line()
    assert "READ" in line
    assert [text for text in complaint(lifetime, NAME, how) if text not in line] == []
    opened = 6 if "Errno 5" in line else 0  # an open that fails closes those before it
    assert len(raw.handles()) == opened * left.fds, raw.handles()
    assert all(store.batch_get_v1(keys[:1], pool.page_indices(0, 1))), "the other pages are still good"


@pytest.mark.parametrize("lifetime", ALONE)
@pytest.mark.parametrize(("mla", "layout"), GEOMETRIES)
@pytest.mark.parametrize("how", DAMAGE)
def test_a_bad_page_affects_no_other_one(make_store, lifetime, mla, layout, raw, log, how):
    pool = make_pool(mla, layout)
    store = make_store(lifetime, mla=mla, pool=pool)
    assert all(store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)))
    stored = [page_files(pool, mla, page) for page in range(3)]
    bad = f"page1{suffix(mla, layout)}{next(iter(stored[1]))}"
    damage(raw, bad, how)
    scramble(pool)
    before = page_files(pool, mla, 1)
    assert store.batch_get_v1(keys_of(3), pool.page_indices(0, 3)) == [True, False, True]
    assert [page_files(pool, mla, page) for page in (0, 2)] == [stored[0], stored[2]]
    if layout == "layer_first":
        assert page_files(pool, mla, 1) == before, "the bad page's place in the pool is left alone"
    assert complaint(lifetime, bad)[0] in log.line()
    assert raw.handles() == []


@pytest.mark.parametrize("lifetime", ALONE)
def test_every_bad_piece_has_its_own_line(make_store, lifetime, left, raw, log):
    """Where pages are records, those that are missing share one, which names the first and says how many."""
    pool = make_pool(False, "page_first")
    store = make_store(lifetime, pool=pool)
    assert all(store.batch_set_v1(keys_of(8), pool.page_indices(0, 8)))
    bad = [f"page{page}_org-model_0_1_v" for page in (0, 3, 7)]
    for name in bad:
        raw.remove(name)
    good = [page not in (0, 3, 7) for page in range(8)]
    assert store.batch_get_v1(keys_of(8), pool.page_indices(0, 8)) == good
    lines = log.lines()
    assert len(lines) == left.lines(len(bad))
    assert all(complaint(lifetime, name)[0] in line for name, line in zip(bad, lines, strict=False))
    assert not left.one_record or "READ of 3" in lines[0]


@pytest.mark.parametrize("lifetime", ALONE)
def test_a_bad_page_among_many_leaves_every_other_of_every_transfer(make_store, lifetime, raw, log):
    """300 copied pages, which may be three transfers of at most 128."""
    count, bad = 300, {0, 127, 128, 255, 299}
    pool = make_pool(True, "layer_first", count)
    store = make_store(lifetime, mla=True, pool=pool)
    assert all(store.batch_set_v1(keys_of(count), pool.page_indices(0, count)))
    for page in bad:
        raw.remove(f"page{page}_org-model")
    stored = [page_files(pool, True, page) for page in range(count)]
    scramble(pool)
    before = [page_files(pool, True, page) for page in range(count)]
    answers = store.batch_get_v1(keys_of(count), pool.page_indices(0, count))
    assert answers == [page not in bad for page in range(count)]
    loaded = [page_files(pool, True, page) for page in range(count)]
    assert loaded == [(before if page in bad else stored)[page] for page in range(count)]
    assert len(log.lines()) == (3 if LEFT[lifetime].one_record else len(bad))
