"""Use stores of ``pooled`` on a btrfs of 120 MiB with quotas, which are real ones; print what they answer as JSON.

Runs in a separate mount namespace (unshare), so that the mount ends with the process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from disk_log import mounted, run
from support import as_bytes, keys_of, scramble, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import ConfigError
from hicache_nixl.host.pools import HostKVPool, pool_for_page_bytes

PAGES, PAGE_BYTES, BATCHES = 4, 1 << 17, 60  # 30 MiB


def folder_with_quota(mount: Path, name: str, quota: str) -> Path:
    run("btrfs", "subvolume", "create", mount / name)
    run("btrfs", "qgroup", "limit", quota, mount / name)
    (mount / name).chmod(0o700)
    return mount / name


def open_store(folder: Path, pool: HostKVPool) -> HiCacheNixl:
    store = HiCacheNixl(storage_config("pooled", capacity_gb=40 / 1024), str(folder))
    store.register_mem_pool_host(pool)
    return store


def is_stored(store: HiCacheNixl, pool: HostKVPool, batch: int) -> bool:
    """Set a batch and get it; return whether all its bytes are there again."""
    keys, indices = keys_of(PAGES, f"{batch}-"), pool.page_indices(0, PAGES)
    scramble(pool)
    expected = as_bytes(pool.kv_buffer).clone()
    stored = store.batch_set_v1(keys, indices)
    scramble(pool)
    loaded = store.batch_get_v1(keys, indices)
    return all(stored) and all(loaded) and as_bytes(pool.kv_buffer).equal(expected)


def main(folder: Path) -> None:
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("hicache_nixl").addHandler(handler)
    pool, found, mount = pool_for_page_bytes(PAGE_BYTES, pages=PAGES), {}, folder / "mounted"
    mount.mkdir()
    (folder / "image").touch()
    os.truncate(folder / "image", 120 << 20)
    run("mkfs.btrfs", "-q", folder / "image")
    with mounted(folder / "image", mount, "-o", "loop"):
        run("btrfs", "quota", "enable", mount)
        try:
            open_store(folder_with_quota(mount, "none", "256K"), pool)
        except ConfigError as error:
            found["construction"] = str(error)
        lines.clear()
        with open_store(folder_with_quota(mount, "some", "12M"), pool) as store:
            found["stored"] = [is_stored(store, pool, batch) for batch in range(BATCHES)]
            found["there"] = [store.batch_exists(keys_of(PAGES, f"{batch}-")) for batch in range(BATCHES)]
        found["warnings"] = lines[:]
        with open_store(folder_with_quota(mount, "little", "1M"), pool) as store:
            lines.clear()
            found["without room"] = store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES))
            found["lines"] = lines[:]
            run("btrfs", "qgroup", "limit", "none", mount / "little")
            found["with room"] = is_stored(store, pool, 0)
    sys.stdout.write("\n" + json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
