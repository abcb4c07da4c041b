"""A connector of lifetime `pooled` on a store of few small segments, for the tests that look at stores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from support import make_pool, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.lifetimes.pooled.inspection import Inspection

MIB = 1 << 20
PAGE, PAGES = 6144, 128  # bytes of a page; pages of a pool
CAPACITY = {"capacity_gb": 8 / 1024, "segment_mb": 1, "min_free_gb": 0}


class SmallStore:
    """A connector whose pages are numbers; its store has 8 segments of 1 MiB, for 170 pages each."""

    def __init__(self, folder: Path, mla: bool = False, layout: str = "page_first", **options: Any):
        self.folder = folder
        self.pool = make_pool(mla, layout, PAGES)
        config = storage_config("pooled", mla=mla, **{**CAPACITY, **options})
        self.connector = HiCacheNixl(config, str(folder))
        self.connector.register_mem_pool_host(self.pool)

    def set(self, numbers: Sequence[int]) -> list[bool]:
        """Store pages, whose bytes are those of as many places of the pool, from the first on."""
        return self.connector.batch_set_v1(keys_of(numbers), self._indices(len(numbers)))

    def get(self, numbers: Sequence[int]) -> list[bool]:
        """Load pages."""
        return self.connector.batch_get_v1(keys_of(numbers), self._indices(len(numbers)))

    def _indices(self, pages: int) -> torch.Tensor:
        return torch.arange(pages * self.pool.page_size)

    def __enter__(self) -> SmallStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.connector.close()


def keys_of(numbers: Sequence[int]) -> list[str]:
    """Return the keys of pages, as SGLang's."""
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def damage(folder: Path, pages: int) -> list[str]:
    """Change a byte in some pages of a store, past everything that opens it; return their keys."""
    with Inspection(folder) as inspection:
        rows = inspection.rows()[:pages]
    for row in rows:
        with (folder / "pooled" / f"segment-{row['segment']:04}").open("r+b") as file:
            file.seek(int(row["offset"]) + 17)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    return [row["key"].tobytes().hex() for row in rows]


def everything_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of change of all files of a store."""
    return {path.name: (path.read_bytes(), path.stat().st_ctime_ns) for path in (folder / "pooled").iterdir()}
