"""When page files are whole: while they are written, and as a release sees them."""

from __future__ import annotations

import threading

import pytest
from support import fds_below, keys_of, make_pool, page_files, scramble

from hicache_nixl.config import QUEUES, RELEASED
from hicache_nixl.host.pools import pool_for_page_bytes


@pytest.mark.parametrize("lifetime", RELEASED)
def test_a_release_sees_a_page_as_soon_as_its_files_are_there(make_store, lifetime, folder):
    pool = make_pool(False, "page_first")
    store = make_store(lifetime, pool=pool)
    for ending in ("_k", "_v"):
        (folder / f"page_org-model_0_1{ending}").touch()
    assert store.exists("page")


def test_a_folder_in_the_place_of_a_piece_is_no_piece(make_store, folder, log):
    pool = make_pool(False, "page_first")
    store = make_store(pool=pool)
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    (folder / "page1_org-model_0_1_v").unlink()
    (folder / "page1_org-model_0_1_v").mkdir()
    assert store.batch_exists(keys_of(2)) == 1
    assert log.lines() == []


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
