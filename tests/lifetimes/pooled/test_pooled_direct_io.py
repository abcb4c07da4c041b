"""``use_direct_io`` in ``pooled``: past the page cache where addresses and sizes allow it."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
import torch
from support import as_bytes, keys_of, names_open, scramble

from hicache_nixl.host.pools import pool_for_page_bytes

PAGES = 8
# Two pieces of 32 KiB; of 1 KiB, which are moved together; of 16.3 KiB, which are not.
ALIGNED, SMALL, UNALIGNED = 1 << 16, 1 << 11, 33408


def round_trip(store, pool):
    scramble(pool)
    original = as_bytes(pool.kv_buffer).clone()
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    scramble(pool)
    assert all(store.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert torch.equal(as_bytes(pool.kv_buffer), original)


@pytest.fixture
def used(monkeypatch):
    """For each transfer of a store, from now on: whether its descriptor has O_DIRECT."""

    def watch(store):
        seen = []
        lane = store.lifetime._transfers.lanes[0]
        move = lane.move

        def observed(direction, fd, *args):
            flags = Path(f"/proc/self/fdinfo/{fd}").read_text().split("flags:")[1].split()[0]
            seen.append(bool(int(flags, 8) & os.O_DIRECT))
            move(direction, fd, *args)

        monkeypatch.setattr(lane, "move", observed)
        return seen

    return watch


@pytest.mark.parametrize(("page_bytes", "direct"), [(ALIGNED, True), (SMALL, True), (UNALIGNED, False)])
def test_pages_go_past_the_page_cache_where_they_are_aligned(
    make_store, folder, log, used, page_bytes, direct
):
    pool = pool_for_page_bytes(page_bytes, pages=PAGES)
    store = make_store("pooled", pool=pool, use_direct_io=True)
    seen = used(store)
    round_trip(store, pool)
    assert seen == [direct] * 2
    for _ in range(3):
        round_trip(store, pool)
    assert names_open(folder).count("pooled/segment-0000") == 1 + direct
    store.close()
    assert names_open(folder) == []
    assert log.lines() == []


def test_values_of_any_size_are_stored_through_the_page_cache(make_store, log, used):
    store = make_store("pooled", use_direct_io=True)
    seen, value = used(store), torch.arange(7)
    assert store.set("value", value)
    assert torch.equal(store.get("value", torch.zeros_like(value)), value)
    assert seen == [False, False]
    assert log.lines() == []


def test_pages_of_both_kinds_in_one_segment_are_right(make_store, folder, log):
    pools = [pool_for_page_bytes(size, pages=PAGES) for size in (ALIGNED, UNALIGNED)]
    stores = [make_store("pooled", pool=pool, use_direct_io=True) for pool in pools]
    for _ in range(5):
        for store, pool in zip(stores, pools, strict=True):
            round_trip(store, pool)
            assert store.set("value", torch.arange(5))
    assert log.lines() == []


def test_a_file_system_without_direct_io_is_used_through_the_page_cache(make_store, monkeypatch, log, used):
    really_open = os.open

    def refusing(path, flags, *args, **kwargs):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return really_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    pool = pool_for_page_bytes(ALIGNED, pages=PAGES)
    store = make_store("pooled", pool=pool, use_direct_io=True)
    assert "use_direct_io falls back to the page cache" in log.lines(logging.WARNING)[0]
    seen = used(store)
    round_trip(store, pool)
    assert seen == [False, False]
    assert not store.lifetime.direct
