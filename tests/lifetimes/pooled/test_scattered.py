"""Small pieces that lie anywhere in the pool go to the store, and come back, as one I/O."""

from __future__ import annotations

import pytest
import torch
from support import as_bytes, keys_of, scramble

from hicache_nixl.config import QUEUES
from hicache_nixl.host.pools import pool_for_page_bytes

PAGES = 64


def indices_of(pool, pages):
    return torch.cat([pool.page_indices(page, 1) for page in pages])


@pytest.fixture
def order():
    return torch.randperm(PAGES, generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("page_bytes", [1024, 4096, 32768, 65536])
def test_pages_in_any_order_are_stored_and_loaded_into_any_other(
    make_store, request, order, page_bytes, queue
):
    if queue == "io_uring":
        request.getfixturevalue("needs_io_uring")
    pool = pool_for_page_bytes(page_bytes, pages=PAGES)
    store = make_store("pooled", pool=pool, posix={"queue": queue}, segment_mb=8, capacity_gb=1 / 16)
    scramble(pool)
    original = as_bytes(pool.kv_buffer).view(2, PAGES, -1).clone()
    assert all(store.batch_set_v1(keys_of(PAGES), indices_of(pool, order)))
    pool.kv_buffer.zero_()
    other = order[::-1]
    assert all(store.batch_get_v1(keys_of(PAGES), indices_of(pool, other)))
    assert torch.equal(as_bytes(pool.kv_buffer).view(2, PAGES, -1)[:, other], original[:, order])


@pytest.mark.parametrize(("page_bytes", "most"), [(4096, 1), (32768, 2), (131072, 2 * PAGES)])
def test_small_pieces_are_few_operations_and_large_ones_are_not_copied(
    make_store, replace_method, order, page_bytes, most
):
    pool = pool_for_page_bytes(page_bytes, pages=PAGES)
    store = make_store("pooled", pool=pool, segment_mb=16, capacity_gb=1 / 16)
    agent, seen = store.lifetime.registration.agent, []
    listed = agent.get_xfer_descs

    def counted(descs, *args):
        seen.append(len(descs))
        return listed(descs, *args)

    replace_method(agent, "get_xfer_descs", counted)
    assert all(store.batch_set_v1(keys_of(PAGES), indices_of(pool, order)))
    assert seen == [most, most]


def test_a_call_of_very_many_pages_is_several_transfers(make_store, replace_method):
    pages = 10_000
    pool = pool_for_page_bytes(512, pages=pages)
    store = make_store("pooled", pool=pool, segment_mb=8, capacity_gb=1 / 16)
    scramble(pool)
    original = as_bytes(pool.kv_buffer).view(2, pages, -1).clone()
    mixed = torch.randperm(pages, generator=torch.Generator().manual_seed(2)).tolist()
    assert all(store.batch_set_v1(keys_of(pages), indices_of(pool, mixed)))
    pool.kv_buffer.zero_()
    assert all(store.batch_get_v1(keys_of(pages), indices_of(pool, mixed)))
    assert torch.equal(as_bytes(pool.kv_buffer).view(2, pages, -1), original)


def test_two_sets_at_once_do_not_share_the_memory_that_pieces_are_copied_to(make_store, run_together, order):
    pool = pool_for_page_bytes(4096, pages=PAGES)
    store = make_store("pooled", pool=pool, segment_mb=8, capacity_gb=1 / 16)
    scramble(pool)
    original = as_bytes(pool.kv_buffer).clone()
    half = PAGES // 2

    def set_some(part):
        for turn in range(30):
            keys = [f"{turn}_{page}" for page in order[part]]
            assert all(store.batch_set_v1(keys, indices_of(pool, order[part])))

    run_together(lambda: set_some(slice(0, half)), lambda: set_some(slice(half, None)))
    pool.kv_buffer.zero_()
    keys = [f"29_{page}" for page in order]
    assert all(store.batch_get_v1(keys, indices_of(pool, order)))
    assert torch.equal(as_bytes(pool.kv_buffer), original)
