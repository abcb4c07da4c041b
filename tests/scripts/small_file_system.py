"""Fill a file system of 256 KiB with pages, then make it read-only; print what a store answers as JSON.

Runs in a separate mount namespace (unshare), so that the file system ends with the process.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

from support import close_below, fds_below, files_in, keys_of, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.config import FILE_PER_PIECE, QUEUES
from hicache_nixl.errors import ConfigError
from hicache_nixl.host.pools import pool_for_page_bytes

PAGES = 8
PAGE_BYTES = 49152  # two files of 24 KiB: five pages fit, and the sixth finds 16 KiB for both


class Lines(logging.Handler):
    """Collects the error lines of the package."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self._lines: list[str] = []

    def emit(self, record):
        self._lines.append(record.getMessage())

    def taken(self):
        lines, self._lines = self._lines, []
        return lines


def fill(folder: Path, lines: Lines, lifetime: str, queue: str) -> dict:
    """Set pages one by one until one is refused; then, with another store, a batch over all of them."""
    pool = pool_for_page_bytes(PAGE_BYTES, pages=PAGES)
    result = {}
    with HiCacheNixl(storage_config(lifetime, posix={"queue": queue}), str(folder)) as store:
        store.register_mem_pool_host(pool)
        stored = 0
        while store.batch_set_v1([f"page{stored}"], pool.page_indices(stored, 1)) == [True]:
            stored += 1
        result["single"] = {"stored": stored, "lines": lines.taken(), "files": files_in(folder)}
    with HiCacheNixl(storage_config(lifetime, posix={"queue": queue}), str(folder)) as store:
        store.register_mem_pool_host(pool)
        result["loaded"] = store.batch_get_v1(keys_of(stored), pool.page_indices(0, stored))
        answers = store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES))
        result["batch"] = {"answers": answers, "lines": lines.taken(), "files": files_in(folder)}
    result["open"] = len(fds_below(folder))
    close_below(folder)  # a removed file gives its space back when its last descriptor is closed
    remove_all(folder)
    return result


def remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def make_read_only(folder: Path, lines: Lines, lifetime: str) -> dict:
    """Store a page, remount, then set, get and make another store."""
    pool = pool_for_page_bytes(PAGE_BYTES, pages=PAGES)
    with HiCacheNixl(storage_config(lifetime), str(folder)) as store:
        store.register_mem_pool_host(pool)
        assert store.batch_set_v1(["old"], pool.page_indices(0, 1)) == [True]
        close_below(folder)  # the kernel refuses to remount while a file is open for writing
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        result = {}
        for key in ("new", "old"):
            answer = store.batch_set_v1([key], pool.page_indices(0, 1))
            result[key] = {"answer": answer, "lines": lines.taken()}
        result["exists"] = store.batch_exists(["old", "new"])
        result["files"] = files_in(folder)
    try:
        HiCacheNixl(storage_config(lifetime), str(folder))
        result["construction"] = "no error"
    except ConfigError as error:
        result["construction"] = str(error)
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    remove_all(folder)
    return result


def main(folder: Path) -> None:
    lines = Lines()
    logging.getLogger("hicache_nixl").addHandler(lines)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(folder)], check=True)
    answers = {
        "full": {
            f"{lifetime}-{queue}": fill(folder, lines, lifetime, queue)
            for lifetime in FILE_PER_PIECE
            for queue in QUEUES
        },
        "read_only": {lifetime: make_read_only(folder, lines, lifetime) for lifetime in FILE_PER_PIECE},
    }
    sys.stdout.write("\n" + json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
