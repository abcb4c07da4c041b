"""Which pages are there: those with all their bytes, at any time, and for any number of keys."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from support import as_bytes, fds_below, files_in, keys_of, make_pool, page_files, scramble, suffix

from hicache_nixl.config import QUEUES, RELEASED
from hicache_nixl.host.pools import pool_for_page_bytes


def truncate(path, size):
    os.truncate(path, size - 1)


def halve(path, size):
    os.truncate(path, size // 2)


def empty(path, size):
    os.truncate(path, 0)


def lengthen(path, size):
    os.truncate(path, size + 1)


def remove(path, size):
    path.unlink()


def replace_by_folder(path, size):
    path.unlink()
    path.mkdir()


DAMAGE = (truncate, halve, empty, lengthen, remove, replace_by_folder)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_page_is_there_when_every_piece_has_all_its_bytes(make_store, mla, layout, folder, log, damage):
    pool = make_pool(mla, layout)
    store = make_store(mla=mla, pool=pool)
    for ending, content in page_files(pool, mla, 1).items():
        assert all(store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)))
        assert store.batch_exists(keys_of(3)) == 3
        path = folder / f"page1{suffix(mla, layout)}{ending}"
        damage(path, len(content))
        assert store.batch_exists(keys_of(3)) == 1
        assert not store.exists("page1")
        assert store.exists("page2")
        if path.is_dir():
            path.rmdir()
    assert log.lines() == []


@pytest.mark.parametrize("lifetime", RELEASED)
def test_a_release_sees_a_page_as_soon_as_its_files_are_there(make_store, lifetime, folder):
    pool = make_pool(False, "page_first")
    store = make_store(lifetime, pool=pool)
    for ending in ("_k", "_v"):
        (folder / f"page_org-model_0_1{ending}").touch()
    assert store.exists("page")


def test_without_a_pool_a_value_is_there_when_it_has_bytes(make_store, folder):
    store = make_store()
    assert not store.exists("value")
    (folder / "value_org-model_0_1").touch()
    assert not store.exists("value")
    assert store.set("value", torch.zeros(1))
    assert store.exists("value")


# -- while it is written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
@pytest.mark.parametrize("first", [True, False], ids=["new", "overwritten"])
def test_a_page_is_not_there_from_the_moment_its_files_are_opened(
    make_store, folder, replace_method, layout, first
):
    pool = make_pool(False, layout)
    store, other = make_store(pool=pool), make_store(pool=pool)
    if not first:
        assert all(store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)))
    agent, seen = store.lifetime.registration.agent, []
    post = agent.transfer

    def observed_post(handle):
        assert len(fds_below(folder)) == len(page_files(pool, False, 0)) * 3
        seen.append((store.batch_exists(keys_of(3)), other.batch_exists(keys_of(3))))
        return post(handle)

    replace_method(agent, "transfer", observed_post)
    assert all(store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)))
    assert seen == [(0, 0)]
    assert store.batch_exists(keys_of(3)) == other.batch_exists(keys_of(3)) == 3


@pytest.mark.parametrize("queue", QUEUES)
def test_a_page_that_is_seen_holds_every_byte(make_store, folder, queue):
    """Another thread looks all the time, as the server's prefetch does, while large pages are written."""
    pool = pool_for_page_bytes(1 << 23, pages=1)
    scramble(pool)
    store = make_store(pool=pool, posix={"queue": queue})
    expected = page_files(pool, False, 0)
    current, done, seen = ["page0"], threading.Event(), []

    def watch():
        while not done.is_set():
            key = current[0]
            for ending, content in expected.items():
                path = folder / f"{key}_org-model_0_1{ending}"
                if store.lifetime.file_manager.is_whole(str(path), len(content)):
                    seen.append(path.read_bytes() == content)

    watching = threading.Thread(target=watch)
    watching.start()
    for current[0] in keys_of(8):
        assert store.batch_set_v1(current, pool.page_indices(0, 1)) == [True]
    done.set()
    watching.join()
    assert seen
    assert all(seen)


# -- any number of keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_a_thousand_keys_are_asked_for_in_a_call(make_store, folder, layout):
    pool = make_pool(False, layout)
    store = make_store(pool=pool)
    for ending, content in page_files(pool, False, 0).items():
        for key in keys_of(1000):
            (folder / f"{key}_org-model_0_1{ending}").write_bytes(content)
    assert store.batch_exists([*keys_of(1000), "missing"]) == 1000
    os.truncate(folder / next(name for name in files_in(folder) if name.startswith("page777")), 1)
    assert store.batch_exists(keys_of(1000)) == 777


def test_a_bad_page_among_many_leaves_every_other_of_every_transfer(make_store, folder, log):
    """300 copied pages are three transfers."""
    count, bad = 300, {0, 127, 128, 255, 299}
    pool = make_pool(True, "layer_first", count)
    store = make_store(mla=True, pool=pool)
    assert all(store.batch_set_v1(keys_of(count), pool.page_indices(0, count)))
    for page in bad:
        (folder / f"page{page}_org-model").unlink()
    stored = [page_files(pool, True, page) for page in range(count)]
    scramble(pool)
    before = [page_files(pool, True, page) for page in range(count)]
    answers = store.batch_get_v1(keys_of(count), pool.page_indices(0, count))
    assert answers == [page not in bad for page in range(count)]
    loaded = [page_files(pool, True, page) for page in range(count)]
    assert loaded == [(before if page in bad else stored)[page] for page in range(count)]
    assert len(log.lines()) == len(bad)


@pytest.mark.parametrize("lifetime", ["scoped", *RELEASED])
def test_more_keys_than_the_pool_has_pages_go_through_copies_too(make_store, lifetime, folder):
    """The same page of the pool under several keys: the stage has no more slots than the pool has pages."""
    pool = make_pool(False, "layer_first", 2)
    store = make_store(lifetime, pool=pool)
    indices = torch.cat([pool.page_indices(page, 1) for page in (0, 1, 0, 1, 1)])
    expected = [page_files(pool, False, page)[""] for page in (0, 1, 0, 1, 1)]
    assert store.batch_set_v1(keys_of(5), indices) == [True] * 5
    assert [(folder / f"{key}_org-model_0_1").read_bytes() for key in keys_of(5)] == expected
    original = pool.kv_buffer.clone()
    scramble(pool)
    assert store.batch_get_v1(keys_of(5), indices) == [True] * 5
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))
