"""Fixtures of the tests of `pooled`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import large_pages
import pytest
from support import page_files, scramble

from hicache_nixl import HiCacheNixl
from hicache_nixl.host.pools import HostKVPool, pool_for_page_bytes


@pytest.fixture
def dir_fd(tmp_path: Path) -> Iterator[int]:
    """The test's folder, open."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def pool() -> HostKVPool:
    """A pool of a few large pages."""
    pool = pool_for_page_bytes(large_pages.PAGE_BYTES, pages=large_pages.PAGES)
    scramble(pool)
    return pool


@pytest.fixture
def open_store(make_store: Callable[..., HiCacheNixl], pool: HostKVPool) -> Callable[..., HiCacheNixl]:
    """Return a function that opens a store of four segments; ``None`` omits an option."""

    def open_it(**options: Any) -> HiCacheNixl:
        given = {name: value for name, value in (large_pages.OPTIONS | options).items() if value is not None}
        return make_store("pooled", pool=pool, **given)

    return open_it


@pytest.fixture
def original(pool: HostKVPool) -> list[dict[str, bytes]]:
    """What the first pages of the pool, in ``faults`` those of a call, hold before the test."""
    return [page_files(pool, False, page) for page in range(faults.PAGES)]
