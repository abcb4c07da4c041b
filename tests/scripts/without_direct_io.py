"""Ask for O_DIRECT on a ramfs, which refuses it; print what was logged and whether pages come back, as JSON.

Runs in a separate mount namespace (unshare), so that the file system ends with the process.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import torch
from support import keys_of, scramble, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.host.pools import pool_for_page_bytes

PAGES = 4


class Lines(logging.Handler):
    """Collects the warnings of the package."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.taken: list[str] = []

    def emit(self, record):
        self.taken.append(record.getMessage())


def main(folder: Path) -> None:
    lines = Lines()
    logging.getLogger("hicache_nixl").addHandler(lines)
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(folder)], check=True)
    pool = pool_for_page_bytes(1 << 16, pages=PAGES)
    scramble(pool)
    original = pool.kv_buffer.clone()
    with HiCacheNixl(storage_config(use_direct_io=True), str(folder)) as store:
        store.register_mem_pool_host(pool)
        moved = store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES))
        pool.kv_buffer.zero_()
        moved += store.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES))
        same = torch.equal(pool.kv_buffer.view(torch.uint8), original.view(torch.uint8))
        answers = {"lines": lines.taken, "whole": all(moved) and same, "zero_copy": store.is_zero_copy}
    sys.stdout.write("\n" + json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
