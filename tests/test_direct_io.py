"""``use_direct_io``: past the page cache where sizes, addresses and the file system allow it, else with one warning."""

from __future__ import annotations

import errno
import logging
import os

import pytest
import torch
from support import (
    TESTS,
    answer_of,
    as_bytes,
    fds_below,
    files_in,
    keys_of,
    make_pool,
    run_python,
    scramble,
    unshare,
)

from hicache_nixl.config import QUEUES
from hicache_nixl.host.pools import LAYOUTS, ZERO_COPY_LAYOUTS, pool_for_page_bytes

ALIGNED = 1 << 16  # multi-head: two pieces of 32 KiB


@pytest.fixture
def flags_seen(folder, replace_method):
    """The flags of the page files that are open when a store's transfers are posted, from now on."""

    def watch(store):
        agent, seen = store.lifetime.registration.agent, set()
        post = agent.transfer

        def observed_post(handle):
            for fd in fds_below(folder):
                with open(f"/proc/self/fdinfo/{fd}") as info:
                    (flags,) = [line.split()[1] for line in info if line.startswith("flags:")]
                seen.add(bool(int(flags, 8) & os.O_DIRECT))
            return post(handle)

        replace_method(agent, "transfer", observed_post)
        return seen

    return watch


@pytest.fixture
def warnings(log):
    return lambda: log.lines(logging.WARNING)


def round_trip(store, pool, pages=4):
    """Set pages, get them again, and return whether every bit is as before."""
    original = pool.kv_buffer.clone()
    stored = store.batch_set_v1(keys_of(pages), pool.page_indices(0, pages))
    scramble(pool)
    loaded = store.batch_get_v1(keys_of(pages), pool.page_indices(0, pages))
    return all(stored) and all(loaded) and torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_aligned_pages_move_past_the_page_cache(make_store, flags_seen, warnings, layout, queue):
    pool = pool_for_page_bytes(ALIGNED, pages=4, layout=layout)
    store = make_store(pool=pool, use_direct_io=True, posix={"queue": queue})
    seen = flags_seen(store)
    assert round_trip(store, pool)
    assert seen == {True}
    assert store.batch_exists(keys_of(4)) == 4
    assert warnings() == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_the_option_no_file_is_opened_with_o_direct(make_store, flags_seen, layout):
    pool = pool_for_page_bytes(ALIGNED, pages=4, layout=layout)
    store = make_store(pool=pool)
    seen = flags_seen(store)
    assert round_trip(store, pool)
    assert seen == {False}


def test_pages_are_the_same_with_and_without_it(make_store, folder):
    pool = pool_for_page_bytes(ALIGNED, pages=4)
    direct, buffered = make_store(pool=pool, use_direct_io=True), make_store(pool=pool)
    original = pool.kv_buffer.clone()
    assert all(direct.batch_set_v1(keys_of(4), pool.page_indices(0, 4)))
    written = {name: (folder / name).read_bytes() for name in files_in(folder)}
    scramble(pool)
    assert all(buffered.batch_get_v1(keys_of(4), pool.page_indices(0, 4)))
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))
    assert all(buffered.batch_set_v1(keys_of(4), pool.page_indices(0, 4)))
    assert {name: (folder / name).read_bytes() for name in files_in(folder)} == written


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_that_are_not_aligned_fall_back_with_one_warning(make_store, flags_seen, warnings, layout):
    pool = make_pool(False, layout)  # pieces of 3072 bytes, copies of 6144
    store = make_store(pool=pool, use_direct_io=True)
    seen = flags_seen(store)
    for _ in range(3):
        assert round_trip(store, pool, pages=8)
    assert seen == {False}
    (line,) = warnings()
    assert "use_direct_io falls back" in line
    assert "4096" in line
    assert "3072 bytes" in line or "6144 bytes" in line


@pytest.mark.parametrize("layout", ZERO_COPY_LAYOUTS)
def test_pieces_that_are_not_aligned_are_copied_where_the_page_is(make_store, flags_seen, warnings, layout):
    """A page of 4096 bytes in two pieces of 2048."""
    pool = pool_for_page_bytes(4096, pages=4, layout=layout)
    store = make_store(pool=pool, use_direct_io=True)
    seen = flags_seen(store)
    for _ in range(3):
        assert round_trip(store, pool)
    assert not store.is_zero_copy
    assert seen == {True}
    (line,) = warnings()
    assert "falls back to copies" in line
    assert "2048" in line


def test_a_value_that_is_not_aligned_falls_back_and_aligned_pages_do_not(make_store, flags_seen, warnings):
    pool = pool_for_page_bytes(ALIGNED, pages=4)
    store = make_store(pool=pool, use_direct_io=True)
    seen = flags_seen(store)
    value = torch.arange(5)
    for _ in range(2):
        assert store.set("value", value)
        assert torch.equal(store.get("value", torch.zeros_like(value)), value)
    assert seen == {False}
    (line,) = warnings()
    assert "40 bytes" in line
    seen.clear()
    assert round_trip(store, pool)
    assert seen == {True}


def test_a_bad_page_affects_no_other_one(make_store, folder, log):
    pool = pool_for_page_bytes(ALIGNED, pages=4)
    store = make_store(pool=pool, use_direct_io=True)
    assert all(store.batch_set_v1(keys_of(4), pool.page_indices(0, 4)))
    os.truncate(folder / "page2_org-model_0_1_v", 4096)
    assert store.batch_get_v1(keys_of(4), pool.page_indices(0, 4)) == [True, True, False, True]
    assert "holds 4096 of 32768 bytes" in log.line()


# -- file systems that refuse it ---------------------------------------------------------------------------


def test_a_file_system_that_refuses_it_is_a_warning_at_construction(tmp_path):
    """ramfs does."""
    script = str(TESTS / "scripts" / "without_direct_io.py")
    answers = answer_of(run_python(script, str(tmp_path), prefix=unshare()))
    (line,) = answers["lines"]
    assert "falls back to the page cache" in line
    assert f"file system of {tmp_path} refuses O_DIRECT (Invalid argument)" in line
    assert answers["whole"] is True
    assert answers["zero_copy"] is True


def test_an_open_that_refuses_it_is_a_warning_at_construction(
    make_store, flags_seen, warnings, folder, monkeypatch
):
    really = os.open

    def refusing(path, flags, *args, **kwargs):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return really(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    pool = pool_for_page_bytes(ALIGNED, pages=4)
    store = make_store(pool=pool, use_direct_io=True)
    (line,) = warnings()
    assert str(folder) in line
    assert "Invalid argument" in line
    seen = flags_seen(store)
    assert round_trip(store, pool)
    assert seen == {False}
    assert warnings() == []
