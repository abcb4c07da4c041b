"""Fill a file system of 4 MiB with pages of ``pooled``, then make it read-only; print what happens as JSON.

Runs in a separate mount namespace (unshare), so that the file system ends with the process.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

from support import as_bytes, keys_of, scramble, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import ConfigError
from hicache_nixl.host.pools import pool_for_page_bytes

BATCHES, PAGES, PAGE_BYTES = 100, 8, 16 << 10  # 12.5 MiB


def fill(folder: Path, queue: str) -> dict:
    """Set batches and get each; return what went wrong and how many of the last ones are there."""
    pool = pool_for_page_bytes(PAGE_BYTES, pages=PAGES)
    indices = pool.page_indices(0, PAGES)
    wrong = []
    with HiCacheNixl(storage_config("pooled", posix={"queue": queue}), str(folder)) as store:
        store.register_mem_pool_host(pool)
        for number in range(BATCHES):
            scramble(pool)
            stored = as_bytes(pool.kv_buffer).clone()
            keys = keys_of(PAGES, f"{number}-")
            if not all(store.batch_set_v1(keys, indices)):
                wrong.append(f"set {number}")
            scramble(pool)
            if not all(store.batch_get_v1(keys, indices)) or not as_bytes(pool.kv_buffer).equal(stored):
                wrong.append(f"get {number}")
        there = [store.batch_exists(keys_of(PAGES, f"{number}-")) for number in range(BATCHES)]
    return {"wrong": wrong, "there": there}


def construct(folder: Path) -> str:
    try:
        HiCacheNixl(storage_config("pooled"), str(folder)).close()
    except ConfigError as error:
        return str(error)
    return "no error"


def main(folder: Path, queue: str) -> None:
    lines: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("hicache_nixl").addHandler(handler)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(folder)], check=True)
    answer = fill(folder, queue)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    answer["construction"] = construct(folder)
    sys.stdout.write("\n" + json.dumps(answer | {"lines": lines}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
