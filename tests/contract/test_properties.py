"""Laws: whatever the calls, sizes and layouts, handles and bytes are as predicted."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from object_pieces import empty_bucket
from stores import STORES, raw_access
from support import LEFT, STORE_VARIABLE, as_bytes, close_below, keys_of, scramble, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.config import DEFAULT_LIFETIME
from hicache_nixl.host.pools import LAYOUTS, pool_for_page_bytes

PAGES = 9
PAGE_BYTES = st.integers(1, 512).map(lambda eighths: 8 * eighths)
CALLS = st.lists(
    st.tuples(st.sampled_from(["set", "get", "exists", "set_tensors"]), st.integers(1, PAGES)),
    min_size=1,
    max_size=8,
)


class Run:
    """A store in a new folder, for one example."""

    def __init__(self, lifetime: str, mla: bool, layout: str, page_bytes: int):
        if STORE_VARIABLE in os.environ:
            empty_bucket()
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.raw = raw_access(lifetime, self.folder)
        self.pool = pool_for_page_bytes(page_bytes, pages=PAGES, layout=layout, mla=mla)
        scramble(self.pool)
        self.store = HiCacheNixl(storage_config(lifetime, mla=mla), str(self.folder))
        self.store.register_mem_pool_host(self.pool)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.store.close()
        close_below(self.folder)
        self._folder.cleanup()


@pytest.mark.parametrize("lifetime", STORES)
@settings(max_examples=12, deadline=None)
@given(calls=CALLS, page_bytes=PAGE_BYTES, layout=st.sampled_from(LAYOUTS), mla=st.booleans())
def test_every_schedule_leaves_the_predicted_handles(lifetime, calls, page_bytes, layout, mla):
    per_page = 2 if not mla and layout != "layer_first" else 1
    stored = opened = 0  # leading pages stored; files opened by calls that got them all open
    with Run(lifetime, mla, layout, page_bytes) as run:
        for operation, count in calls:
            keys, indices = keys_of(count), run.pool.page_indices(0, count)
            if operation == "set":
                assert run.store.batch_set_v1(keys, indices) == [True] * count
                stored, opened = max(stored, count), opened + count * per_page
            elif operation == "get":
                found = LEFT[lifetime].answers(*(page < stored for page in range(count)))
                assert run.store.batch_get_v1(keys, indices) == found
                opened += count * per_page * all(found)
            elif operation == "exists":
                assert run.store.batch_exists(keys) == min(count, stored)
            else:
                assert run.store.batch_set(keys_of(count, "value"), [torch.zeros(3)] * count)
                opened += count
            assert len(run.raw.handles()) == opened * LEFT[lifetime].fds, run.raw.handles()


@pytest.mark.parametrize("lifetime", STORES)
@settings(max_examples=10, deadline=None)
@given(
    pages=st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=PAGES, unique=True),
    page_bytes=PAGE_BYTES,
    layout=st.sampled_from(LAYOUTS),
    mla=st.booleans(),
)
def test_pages_set_then_got_are_equal_and_no_other_page_moves(lifetime, pages, page_bytes, layout, mla):
    with Run(lifetime, mla, layout, page_bytes) as run:
        keys = [f"page{page}" for page in pages]
        indices = torch.cat([run.pool.page_indices(page, 1) for page in pages])
        original = run.pool.kv_buffer.clone()
        assert all(run.store.batch_set_v1(keys, indices))
        for page in pages:
            flat = run.pool.get_dummy_flat_data_page()
            run.pool.set_from_flat_data_page(page * run.pool.page_size, flat)
        assert all(run.store.batch_get_v1(keys, indices))
        assert torch.equal(as_bytes(run.pool.kv_buffer), as_bytes(original))


@settings(max_examples=12, deadline=None)
@given(contents=st.lists(st.binary(min_size=1, max_size=4096), min_size=1, max_size=6))
def test_values_of_any_bytes_set_then_got_are_equal(contents):
    with Run(DEFAULT_LIFETIME, False, "page_first", 8) as run:
        values = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
        assert run.store.batch_set(keys_of(len(values)), values)
        loaded = run.store.batch_get(keys_of(len(values)), [torch.zeros_like(value) for value in values])
        assert [value.numpy().tobytes() for value in loaded] == contents
