"""Use a store of ``pooled`` on a file system of 3 MiB that is full, or read-only; print what it answers as JSON.

Runs in a separate mount namespace (unshare), so that the file system ends with the process.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from support import keys_of, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import HiCacheNixlError
from hicache_nixl.host.pools import HostKVPool, pool_for_page_bytes

PAGES, PAGE_BYTES = 4, 1 << 17
KEYS = keys_of(PAGES)


def open_store(folder: Path, pool: HostKVPool) -> HiCacheNixl:
    """Open a store whose capacity is more than the file system has."""
    options = {"capacity_gb": 16 / 1024, "segment_mb": 1, "min_free_gb": 0}
    store = HiCacheNixl(storage_config("pooled", **options), str(folder))
    store.register_mem_pool_host(pool)
    return store


def refusal(folder: Path, pool: HostKVPool) -> str:
    """Return why a store cannot be opened."""
    try:
        open_store(folder, pool).close()
        return "no error"
    except HiCacheNixlError as error:
        return str(error)


def main(folder: Path) -> None:
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("hicache_nixl").addHandler(handler)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs", str(folder)], check=True)
    pool = pool_for_page_bytes(PAGE_BYTES, pages=PAGES)
    indices = pool.page_indices(0, PAGES)
    with open_store(folder, pool) as store:
        found = {"set": [store.batch_set_v1(KEYS, indices) for _ in range(12)], "warnings": warnings}
        found["loaded"] = store.batch_get_v1(KEYS, indices)
    found["segments"] = sum(path.stat().st_size > 0 for path in (folder / "pooled").glob("segment-*"))
    for path in (folder / "pooled").iterdir():
        path.unlink()
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    found["no room at all"] = refusal(folder, pool)
    filler.unlink()
    with open_store(folder, pool) as store:
        found["later"] = store.batch_set_v1(KEYS, indices)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    found["read only"] = refusal(folder, pool)
    sys.stdout.write("\n" + json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
