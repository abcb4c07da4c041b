"""The number of open files of ``pooled`` depends on its segments, not on its keys."""

from __future__ import annotations

from collections import Counter

import pytest
from support import fds_below, names_open

from hicache_nixl.host.pools import pool_for_page_bytes

PAGE_BYTES, BATCH = 512, 5000
SEGMENTS = 8
# The folder, the locks, and each mapped file twice: once for its size, once for its map.
CONSTANT = {"pooled": 1, "pooled/locks": 1, "pooled/state": 2, "index": 2}


def open_files(folder) -> dict[str, int]:
    """Return how often each file is open; the table has another number each time it grew."""
    return dict(Counter("index" if "index." in name else name for name in fds_below(folder).values()))


def fill(store, pool, keys: int) -> None:
    for first in range(0, keys, BATCH):
        names = [f"page{key}" for key in range(first, min(first + BATCH, keys))]
        assert all(store.batch_set_v1(names, pool.page_indices(0, len(names))))


@pytest.mark.parametrize("segment_mb", [pytest.param(1, id="recycling"), pytest.param(128, id="room")])
@pytest.mark.parametrize(
    "keys", [10, 10_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["10", "10^4", "10^6"]
)
def test_descriptors_are_the_segments_and_a_constant(make_store, folder, keys, segment_mb):
    pool = pool_for_page_bytes(PAGE_BYTES, pages=BATCH)
    store = make_store(
        "pooled", pool=pool, capacity_gb=SEGMENTS * segment_mb / 1024, segment_mb=segment_mb, min_free_gb=0
    )
    fill(store, pool, keys)
    segments = {f"pooled/{path.name}": 1 for path in (folder / "pooled").glob("segment-*")}
    needed = -(-keys * PAGE_BYTES // (segment_mb << 20))
    assert min(SEGMENTS, needed) <= len(segments) <= min(SEGMENTS, needed + 1), "two are written at once"
    assert open_files(folder) == CONSTANT | segments
    store.close()
    assert names_open(folder) == []
