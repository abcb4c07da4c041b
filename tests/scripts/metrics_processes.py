"""Two ranks with metrics in Prometheus' multiprocess mode, read as the web process of a server reads them.

Arguments: a folder, a lifetime.  Prints the sums over ranks with both, with one of them closed, and with both closed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER, LIFETIME = Path(sys.argv[1]), sys.argv[2]
(FOLDER / "prometheus").mkdir(exist_ok=True)
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(FOLDER / "prometheus")  # before prometheus_client is imported

from prometheus_client import CollectorRegistry  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector  # noqa: E402
from support import keys_of, make_pool, storage_config  # noqa: E402

from hicache_nixl import HiCacheNixl  # noqa: E402

SHARED = ("store_bytes", "store_capacity_bytes")


def stored(rank: int, pages: int) -> HiCacheNixl:
    pool = make_pool(False, "page_first")
    config = storage_config(LIFETIME, tp_rank=rank, tp_size=2, metrics=True)
    store = HiCacheNixl(config, str(FOLDER / "pages"))
    store.register_mem_pool_host(pool)
    assert all(store.batch_set_v1(keys_of(pages), pool.page_indices(0, pages)))
    assert store.batch_exists(keys_of(pages)) == pages
    store._calls.metrics.refresh()
    return store


def read() -> dict[str, Any]:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    found: dict[str, Any] = {"ranks": set()}
    for family in registry.collect():
        for sample in family.samples:
            name = family.name.removeprefix("hicache_nixl_")
            if family.type == "histogram" or sample.name.endswith("_created"):
                continue
            key = f"{name} {sample.labels.get('operation', '')}".strip()
            combine = max if name in SHARED else lambda one, other: one + other
            found[key] = combine(found.get(key, 0), sample.value)
            found["ranks"].add(sample.labels["tp_rank"])
    return {**found, "ranks": sorted(found["ranks"])}


def main() -> None:
    if len(sys.argv) > 3:  # the other rank
        store = stored(1, 2)
        sys.stdout.write("stored\n")
        sys.stdout.flush()
        sys.stdin.read()
        store.close()
        return
    store = stored(0, 3)
    other = subprocess.Popen(
        [sys.executable, __file__, str(FOLDER), LIFETIME, "other"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    while other.stdout.readline() != b"stored\n":
        assert other.poll() is None
    seen = [read()]
    other.communicate(timeout=60)
    seen.append(read())
    store.close()
    seen.append(read())
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
