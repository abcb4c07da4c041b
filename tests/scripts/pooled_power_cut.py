"""Store versions of pages on a disk that logs, and print what power cuts would have left of ``pooled`` as JSON.

Takes a folder, a file system (see ``power_cut.FILE_SYSTEMS``) and the ``verify`` after the cut; with ``nothing``, the
store does not notice the boot.  Runs in a separate mount namespace (unshare), so that the mounts end with the process.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from disk_log import LoggedDisk, run
from power_cut import left_by_cuts
from support import storage_config
from versions import PAGE_BYTES, filled, versions_in

from hicache_nixl import HiCacheNixl
from hicache_nixl.host.pools import HostKVPool, pool_for_page_bytes
from hicache_nixl.lifetimes.pooled import opening, state

MEGABYTES, SECONDS = 32, 3
SEGMENTS, KEYS, PAGES = 6, 150, 8
PAUSE = 0.02  # seconds between two sets, so that the journal is written several times


def open_store(folder: Path, boot: str, verify: str) -> tuple[HiCacheNixl, HostKVPool]:
    """Open the store as after a certain boot of the machine."""
    for module in (state, opening):
        module.boot_id = lambda: boot.encode()
    options = {"capacity_gb": SEGMENTS / 1024, "segment_mb": 1, "min_free_gb": 0, "verify": verify}
    store = HiCacheNixl(storage_config("pooled", **options), str(folder / "pages"))
    pool = pool_for_page_bytes(PAGE_BYTES, pages=PAGES)
    store.register_mem_pool_host(pool)
    return store, pool


def set_keys(store: HiCacheNixl, pool: HostKVPool, keys: list[int], version: int) -> int:
    for page, key in enumerate(keys):
        filled(pool, page, key, version)
    return sum(store.batch_set_v1([f"page{key}" for key in keys], pool.page_indices(0, len(keys))))


def store_versions(folder: Path, disk: LoggedDisk) -> list[int]:
    """Store versions of pages; return the size of the log before each version."""
    store, pool = open_store(folder, "first", "none")
    chance, end, began = random.Random(1), time.monotonic() + SECONDS, []
    while time.monotonic() < end:
        began.append(disk.position())
        assert set_keys(store, pool, chance.sample(range(KEYS), PAGES), len(began)) == PAGES
        if len(began) % 20 == 0:
            run("sync", "-f", folder)  # now and then all is on the disk, and what follows is in part
        time.sleep(PAUSE)
    store.close()
    return began


def look(verify: str, folder: Path, began: list[int], cut: int) -> Counter[str]:
    """Load each page; count those with other bytes, or with versions that were not begun."""
    booted, begun = verify != "nothing", sum(at <= cut for at in began)
    store, pool = open_store(folder, "second" if booted else "first", verify if booted else "none")
    found = Counter(cuts=1)
    for key in range(KEYS):
        found["listed"] += store.exists(f"page{key}")
        if store.batch_get_v1([f"page{key}"], pool.page_indices(0, 1)) == [True]:
            versions = versions_in(pool, 0, key)
            found["present"] += 1
            found["other bytes"] += len(versions) != 1 or not 0 < max(versions) <= begun
    keys = list(range(PAGES))
    found["refused"] += PAGES - set_keys(store, pool, keys, begun + 1)
    good = store.batch_get_v1([f"page{key}" for key in keys], pool.page_indices(0, PAGES))
    found["refused"] += good.count(False)
    store.close()
    return found


def main(folder: Path, file_system: str, verify: str) -> None:
    found = left_by_cuts(folder, file_system, MEGABYTES, store_versions, partial(look, verify))
    kinds = ("cuts", "listed", "present", "other bytes", "refused")
    sys.stdout.write("\n" + json.dumps({kind: found[kind] for kind in kinds}))


if __name__ == "__main__":
    logging.disable()
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
