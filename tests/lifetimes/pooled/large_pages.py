"""Pages of which four fill a segment, for the tests of what happens to whole segments."""

from __future__ import annotations

from support import keys_of

from hicache_nixl import HiCacheNixl
from hicache_nixl.host.pools import HostKVPool

PAGES, PAGE_BYTES = 8, 1 << 18
KEYS = keys_of(PAGES)
OPTIONS = {"capacity_gb": 4 / 1024, "segment_mb": 1, "min_free_gb": 0}


def set_pages(store: HiCacheNixl, pool: HostKVPool, count: int = PAGES) -> list[bool]:
    return store.batch_set_v1(KEYS[:count], pool.page_indices(0, count))


def get_pages(store: HiCacheNixl, pool: HostKVPool) -> list[bool]:
    return store.batch_get_v1(KEYS, pool.page_indices(0, PAGES))
