"""Store and load pages on an S3 endpoint through NIXL's OBJ plugin; print what happened as JSON, by lifetime.

In a separate process, because a process loads only one build of NIXL, and OBJ needs the one for CUDA 12.
``object_store.py PLUGIN LIFETIME...``, with the section ``plugin`` of the configuration as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from typing import Any

import several
from support import keys_of, make_pool, scramble, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.transport.files import NixlFileManager

lines: list[str] = []
handler = logging.Handler(logging.ERROR)
handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
logging.getLogger("hicache_nixl").addHandler(handler)

files_used: list[str] = []
for name in ("__init__", "opened", "open_file", "close_file", "create_file", "is_whole", "discard"):
    setattr(NixlFileManager, name, lambda *args, name=name: files_used.append(name))


def answers_of(lifetime: str, plugin: dict[str, Any]) -> dict[str, object]:
    """Set and get pages, one of them missing, and return the answers and what was left."""
    lines.clear()
    config = storage_config(lifetime, model=f"org/{lifetime}")
    config.extra_config["plugin"] = plugin
    pool = make_pool(False, "page_first")
    keys, indices = keys_of(3), pool.page_indices(0, 3)

    with HiCacheNixl(config) as store:
        store.register_mem_pool_host(pool)
        agent, alive = store.lifetime.registration.agent, Counter[str]()
        register, deregister = agent.register_memory, agent.deregister_memory

        def counted_register(*args: object) -> object:
            regions = register(*args)
            alive["regions"] += regions.descCount()
            return regions

        def counted_deregister(regions: object) -> object:
            alive["regions"] -= regions.descCount()  # type: ignore[attr-defined]
            return deregister(regions)

        agent.register_memory, agent.deregister_memory = counted_register, counted_deregister
        before = pool.kv_buffer[:, : 3 * pool.page_size].clone()
        stored = store.batch_set_v1(keys, indices)
        scramble(pool)
        loaded = store.batch_get_v1(keys, indices)
        same = bool((pool.kv_buffer[:, : 3 * pool.page_size].view(int) == before.view(int)).all())
        exists = store.batch_exists([*keys, "missing"])
        ours, lines[:] = list(lines), []
        missing = store.batch_get_v1([keys[0], "missing", keys[2]], indices)
        left = alive["regions"]
        return {
            "several": several_answers(store),
            "stored": stored,
            "loaded": loaded,
            "same": same,
            "exists": exists,
            "missing": missing,
            "logged": ours,
            "logged_missing": list(lines),
            "files_used": list(files_used),
            "registrations_left": left,
        }


def several_answers(store: HiCacheNixl) -> list[object]:
    """Store, find and load pages of several host pools; the window of one of them has a hole."""
    pools = several.several_pools()
    several.register(store, pools)
    keys = several.hashed(4)
    asked = [several.transfer(name, pool, keys) for name, pool in pools.items() if name != "swa"]
    holes = several.transfer("swa", pools["swa"], [keys[0], keys[2]], [0, 2])
    stored = store.batch_set_v2([*asked, holes])
    pages = {name: several.page_of(pool, 2) for name, pool in pools.items()}
    several.scramble_all(pools)
    loaded = store.batch_get_v2([*asked, holes])
    same = all(several.page_of(pool, 2) == pages[name] for name, pool in pools.items())
    window = several.PoolTransfer("swa", keys=keys[:1], hit_policy="trailing_pages")
    found = store.batch_exists_v2(keys, [several.PoolTransfer("mamba"), window])
    return [stored == loaded, all(map(all, loaded.values())), same, found.restorable_prefix_pages]


plugin, *lifetimes = sys.argv[1:]
sys.stdout.write(
    f"{json.dumps({lifetime: answers_of(lifetime, json.loads(plugin)) for lifetime in lifetimes})}\n"
)
