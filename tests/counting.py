"""What the tests of the metrics do and look at."""

from __future__ import annotations

from prometheus_client import REGISTRY
from support import (
    keys_of,
)

PAGE_BYTES = 6144  # of make_pool
PIECES = 2


def registered():
    return [name for name in REGISTRY._names_to_collectors if "hicache" in name]


def set_pages(store, pool, count, first=0):
    return store.batch_set_v1(keys_of(first + count)[first:], pool.page_indices(first, count))
