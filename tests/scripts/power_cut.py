"""Store versions of pages on a disk that logs, and print what power cuts would have left of them.

Takes a folder, a file system (see ``FILE_SYSTEMS``) and options of the store.  Runs in a separate mount
namespace (unshare), so that the mounts end with the process.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from disk_log import LoggedDisk, logged_disk, mounted, run
from support import storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.host.pools import HostKVPool, pool_for_page_bytes

# Name: options of mkfs.ext4 and of mount.  A journal that is written each second makes more of what can go wrong.
FILE_SYSTEMS = {
    "ordered": ((), ("-o", "commit=1")),
    "writeback": ((), ("-o", "commit=1,data=writeback")),
    "no_journal": (("-O", "^has_journal"), ()),
}
MEGABYTES, SECONDS, PAUSE, CUTS = (
    32,
    2.5,
    0.004,
    40,
)  # the pause keeps the log of a store that waits for no disk small
PAGES, PAGE_BYTES, CALL, THREADS = 64, 65536, 4, 2

Stored = TypeVar("Stored")  # what was stored when


class Call(NamedTuple):
    """A set of ``CALL`` pages; where the log began and ended it, and what it answered."""

    began: int
    ended: int
    first: int
    version: int
    good: Sequence[bool]


def numbers_of(pool: HostKVPool, page: int) -> torch.Tensor:
    """View keys and values of a page as numbers."""
    return pool.kv_buffer.view(torch.int64).view(2, PAGES, -1)[:, page]


def open_store(folder: Path, **options: bool) -> tuple[HiCacheNixl, HostKVPool]:
    store = HiCacheNixl(storage_config("scoped", **options), str(folder / "pages"))
    pool = pool_for_page_bytes(PAGE_BYTES, pages=PAGES)
    store.register_mem_pool_host(pool)
    return store, pool


def store_versions(folder: Path, disk: LoggedDisk, **options: bool) -> list[Call]:
    """Store versions of all pages from several threads, which makes the journal be written at any time."""
    store, pool = open_store(folder, **options)
    end = time.monotonic() + SECONDS

    def store_some(thread: int) -> list[Call]:
        calls, version = [], 0
        while time.monotonic() < end:
            version += 1
            for first in range(thread * CALL, PAGES, THREADS * CALL):
                pages = range(first, first + CALL)
                for page in pages:  # each number tells page and version
                    numbers_of(pool, page)[:] = page << 32 | version
                began = disk.position()
                good = store.batch_set_v1([f"page{page}" for page in pages], pool.page_indices(first, CALL))
                calls.append(Call(began, disk.position(), first, version, good))
                time.sleep(PAUSE)
        return calls

    with store, ThreadPoolExecutor(THREADS) as threads:
        return [call for calls in threads.map(store_some, range(THREADS)) for call in calls]


def known_at(cut: int, calls: Sequence[Call]) -> tuple[dict[int, int], dict[int, int], set[int]]:
    """Return the newest version of each page that was begun, and that was stored, and the pages under way."""
    started, stored, under_way = {}, {}, set()
    for call in calls:
        for page, good in enumerate(call.good, call.first):
            if call.began <= cut:
                started[page] = call.version
            if call.ended <= cut and good:
                stored[page] = call.version
            elif call.began <= cut:
                under_way.add(page)
    return started, stored, under_way


def look(folder: Path, calls: Sequence[Call], cut: int) -> Counter[str]:
    """Compare what is present with what was stored before the cut."""
    started, stored, under_way = known_at(cut, calls)
    found = Counter(stored=len(stored))
    store, pool = open_store(folder)
    with store:
        present = [page for page in range(PAGES) if store.exists(f"page{page}")]
        places = pool.page_indices(0, PAGES).view(PAGES, -1)[present].flatten()
        assert all(store.batch_get_v1([f"page{page}" for page in present], places))
    for page in set(stored) - set(present):
        found["lost while replaced" if page in under_way else "lost"] += 1
    for page in present:
        number, *others = numbers_of(pool, page).unique().tolist()
        version = number - (page << 32)
        found["present"] += 1
        if others or version not in range(1, started.get(page, 0) + 1):
            found["other bytes"] += 1
        else:
            found["older"] += version < stored.get(page, 0)
    return found


def left_by_cuts(
    folder: Path,
    file_system: str,
    megabytes: int,
    store: Callable[[Path, LoggedDisk], Stored],
    look: Callable[[Path, Stored, int], Counter[str]],
) -> Counter[str]:
    """Let ``store`` write to a disk, and add up what ``look`` finds after cuts, given where the log was cut."""
    found: Counter[str] = Counter()
    features, mount_options = FILE_SYSTEMS[file_system]
    with logged_disk(folder, megabytes) as disk:
        target = folder / "mounted"
        target.mkdir()
        run("mkfs.ext4", "-q", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0", *features, disk.device)
        with mounted(disk.device, target, *mount_options):
            (target / "pages").mkdir(0o700)
            run("sync", "-f", target)
            start = disk.position()
            stored = store(target, disk)
    for cut, image in disk.disks(CUTS, random.Random(1), after=start):
        if file_system == "no_journal":
            run("e2fsck", "-fy", image, accept=(0, 1))  # 1: errors were corrected
        with mounted(image, target, "-o", "loop"):  # replays the journal
            found += look(target, stored, cut)
    return found


def main(folder: Path, file_system: str, **options: bool) -> None:
    store = partial(store_versions, **options)
    found = left_by_cuts(folder, file_system, MEGABYTES, store, look)
    kinds = ("stored", "present", "lost", "lost while replaced", "older", "other bytes")
    sys.stdout.write("\n" + json.dumps({kind: found[kind] for kind in kinds}))


if __name__ == "__main__":
    logging.disable()
    main(Path(sys.argv[1]), sys.argv[2], **dict.fromkeys(sys.argv[3:], True))
