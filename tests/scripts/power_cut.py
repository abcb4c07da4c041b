"""Store pages on a file system of its own, cut it off at random moments, mount it again, and print what it holds.

A shutdown of ext4 without a flush of its journal is a power cut: nothing is written any more, and what was only in
memory is lost.  Runs in a separate mount namespace (unshare), so that the mounts end with the process.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from support import storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.host.pools import HostKVPool, pool_for_page_bytes

SHUTDOWN, WITHOUT_JOURNAL = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
PAGES, PAGE_BYTES, CALL = 64, 131072, 4
MEGABYTES = 128


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def fill(pool: HostKVPool, first: int, version: int) -> None:
    """Give pages bytes that tell which page and version they are."""
    for page in range(first, first + CALL):
        pool.kv_buffer.view(torch.uint8).view(2, PAGES, -1)[:, page] = (7 * page + version) % 251


def store_until_cut(folder: Path, sync: bool, chance: random.Random) -> dict[int, int]:
    """Store versions of pages until the file system is cut off; return the last version of each that was True."""
    pool, stored = pool_for_page_bytes(PAGE_BYTES, pages=PAGES), {}
    fd = os.open(folder, os.O_RDONLY)

    def cut():
        time.sleep(chance.uniform(0.5, 3))
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", WITHOUT_JOURNAL))

    with HiCacheNixl(storage_config("scoped", sync=sync), str(folder / "pages")) as store:
        store.register_mem_pool_host(pool)
        cutting = threading.Thread(target=cut)
        cutting.start()
        version = 0
        while cutting.is_alive():
            version += 1
            for first in range(0, PAGES, CALL):
                fill(pool, first, version)
                keys = [f"page{page}" for page in range(first, first + CALL)]
                for page, good in enumerate(store.batch_set_v1(keys, pool.page_indices(first, CALL)), first):
                    if good and cutting.is_alive():
                        stored[page] = version
    os.close(fd)
    return stored


def look(folder: Path, stored: dict[int, int]) -> Counter[str]:
    """Compare what is present with what was stored."""
    pool, found = pool_for_page_bytes(PAGE_BYTES, pages=PAGES), Counter()
    with HiCacheNixl(storage_config("scoped"), str(folder / "pages")) as store:
        store.register_mem_pool_host(pool)
        for page in range(PAGES):
            if not store.exists(f"page{page}"):
                found["lost"] += page in stored
                continue
            assert store.batch_get_v1([f"page{page}"], pool.page_indices(page, 1)) == [True]
            values = pool.kv_buffer.view(torch.uint8).view(2, PAGES, -1)[:, page].unique().tolist()
            version = (values[0] - 7 * page) % 251
            found["present"] += 1
            found["other bytes"] += len(values) > 1 or version not in range(1, 251)
            found["older"] += version < stored.get(page, 0)
    return found


def main(folder: Path, sync: bool, cuts: int) -> None:
    chance, found = random.Random(1), Counter()
    disk, mounted = folder / "disk", folder / "mounted"
    mounted.mkdir()
    for _ in range(cuts):
        disk.unlink(missing_ok=True)
        disk.touch()
        os.truncate(disk, MEGABYTES << 20)
        run("mkfs.ext4", "-q", str(disk))
        run("mount", "-o", "loop,commit=1", str(disk), str(mounted))
        stored = store_until_cut(mounted, sync, chance)
        run("umount", str(mounted))
        run("mount", "-o", "loop,commit=1", str(disk), str(mounted))  # replays the journal
        found["stored"] += len(stored)
        found += look(mounted, stored)
        run("umount", str(mounted))
    sys.stdout.write(
        "\n"
        + json.dumps({kind: found[kind] for kind in ("stored", "present", "lost", "older", "other bytes")})
    )


if __name__ == "__main__":
    logging.disable()
    main(Path(sys.argv[1]), sys.argv[2] == "sync", int(sys.argv[3]))
