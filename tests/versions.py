"""Pages whose bytes tell which page and which version of it they are."""

from __future__ import annotations

import torch

from hicache_nixl.host.pools import HostKVPool

PAGE_BYTES = 32768
VERSION_BITS = 40


def words_of(pool: HostKVPool, page: int) -> torch.Tensor:
    """View the keys and values of a page as numbers of 64 bits."""
    pages = pool.size // pool.page_size
    return pool.kv_buffer.view(torch.int64).view(2, pages, -1)[:, page]


def filled(pool: HostKVPool, page: int, key: int, version: int) -> None:
    """Fill a page of the pool with a version of a key."""
    words_of(pool, page)[:] = key << VERSION_BITS | version


def versions_in(pool: HostKVPool, page: int, key: int) -> set[int]:
    """Return the versions of a key that a page holds; -1 for what is none."""
    words = words_of(pool, page).unique().tolist()
    return {word & (1 << VERSION_BITS) - 1 if word >> VERSION_BITS == key else -1 for word in words}
