"""Processes that use one store at the same time; print what each of them found, as JSON.

Takes a folder and the name of a function of this module.  Each process is forked from this one, which has loaded
everything and opened nothing.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from support import storage_config
from versions import PAGE_BYTES, filled, versions_in

from hicache_nixl import HiCacheNixl
from hicache_nixl.host.pools import HostKVPool, pool_for_page_bytes
from hicache_nixl.lifetimes import load
from hicache_nixl.lifetimes.pooled import locks
from hicache_nixl.transport.agent import load_nixl

SEGMENTS, PAGES = 8, 16
PROCESSES, SHARED, OWN = 4, 40, 40  # keys that all write, keys that only one writes
WRITER_BITS = 32  # a version is the number of its writer and a count


def open_store(folder: Path) -> tuple[HiCacheNixl, HostKVPool]:
    """Return a store that recycles all the time and hides no wrong byte, and its host pool."""
    options = {"capacity_gb": SEGMENTS / 1024, "segment_mb": 1, "min_free_gb": 0, "verify": "none"}
    store = HiCacheNixl(storage_config("pooled", **options), str(folder))
    pool = pool_for_page_bytes(PAGE_BYTES, pages=PAGES)
    store.register_mem_pool_host(pool)
    return store, pool


def started(action: Callable[..., dict[str, Any]], *args: Any) -> Callable[[], dict[str, Any]]:
    """Run a function in a process of its own; return what waits for its end and returns what it returned."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(writing, json.dumps(action(*args)).encode())
        finally:
            os._exit(0)
    os.close(writing)

    def wait() -> dict[str, Any]:
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        status = os.waitpid(pid, 0)[1]
        return json.loads(said) if said else {"died": status}

    wait.pid = pid
    return wait


def set_keys(store: HiCacheNixl, pool: HostKVPool, keys: list[int], version: int) -> list[bool]:
    for page, key in enumerate(keys):
        filled(pool, page, key, version)
    return store.batch_set_v1([f"page{key}" for key in keys], pool.page_indices(0, len(keys)))


def get_keys(store: HiCacheNixl, pool: HostKVPool, keys: list[int]) -> dict[int, set[int]]:
    """Return the versions in each page that was loaded."""
    good = store.batch_get_v1([f"page{key}" for key in keys], pool.page_indices(0, len(keys)))
    return {key: versions_in(pool, page, key) for page, key in enumerate(keys) if good[page]}


def use(folder: Path, number: int, seconds: float, completed: np.ndarray) -> dict[str, Any]:
    """Set keys of all and of its own, get keys of all; ``completed`` tells the others which counts it has set."""
    store, pool = open_store(folder)
    chance, found, count = random.Random(number), Counter[str](), 0
    own = range(SHARED + number * OWN, SHARED + (number + 1) * OWN)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        count += 1
        keys = chance.sample([*range(SHARED), *own], chance.randint(1, PAGES))
        good = set_keys(store, pool, keys, number << WRITER_BITS | count)
        found["set"] += good.count(True)
        found["refused"] += good.count(False)
        for key, stored in zip(keys, good, strict=True):
            if stored and key in own:
                completed[key] = count
        keys = chance.sample(range(SHARED + PROCESSES * OWN), PAGES)
        known = completed[keys].tolist()
        for key, versions in get_keys(store, pool, keys).items():
            found["loaded"] += 1
            found["other bytes"] += len(versions) != 1 or -1 in versions
            writer, version = divmod(max(versions), 1 << WRITER_BITS)
            if key >= SHARED:
                found["of another writer"] += writer != (key - SHARED) // OWN
                found["older"] += version < known[keys.index(key)]
            found["of others"] += writer != number
    found["recycled"] = store.lifetime._store.segments.recycled
    store.close()
    return found


def together(folder: Path, seconds: str) -> list[dict[str, Any]]:
    """Several processes set and get the same and different keys."""
    completed = np.frombuffer(mmap.mmap(-1, 8 * (SHARED + PROCESSES * OWN)), np.int64)
    running = [started(use, folder, number, float(seconds), completed) for number in range(PROCESSES)]
    return [wait() for wait in running]


def stop_here() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_for_stop(pid: int) -> None:
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])


def read_slowly(folder: Path, keys: list[int]) -> dict[str, Any]:
    """Load pages, and stop when their places are known and nothing was read."""
    store, pool = open_store(folder)
    lane = store.lifetime._transfers.lanes[0]
    move = lane.move

    def stop_and_move(*args: Any) -> None:
        lane.move = move
        stop_here()
        move(*args)

    lane.move = stop_and_move
    loaded = get_keys(store, pool, keys)
    store.close()
    return {"loaded": {key: sorted(versions) for key, versions in loaded.items()}}


def stopped_reader(folder: Path) -> dict[str, Any]:
    """A reader is stopped in the middle of a load, while another process fills the store several times."""
    store, pool = open_store(folder)
    keys = list(range(PAGES))
    assert all(set_keys(store, pool, keys, 1))
    wait = started(read_slowly, folder, keys)
    wait_for_stop(wait.pid)
    generations = store.lifetime._store.state.generations
    before = generations[:SEGMENTS].tolist()
    refused = [set_keys(store, pool, keys, version).count(False) for version in range(2, 100)]
    after = generations[:SEGMENTS].tolist()
    os.kill(wait.pid, signal.SIGCONT)
    read = wait()
    refused += [set_keys(store, pool, keys, version).count(False) for version in range(100, 200)]
    kept = [len(set(before) & set(now) - {0}) for now in (after, generations[:SEGMENTS].tolist())]
    return {**read, "refused": sum(refused), "kept while stopped": kept[0], "kept later": kept[1]}


def hold(folder: Path) -> dict[str, Any]:
    """Stop while no other process can change the index."""
    store, _ = open_store(folder)
    with store.lifetime._store.locks.index():
        stop_here()
    store.close()
    return {}


def stopped_holder(folder: Path) -> dict[str, Any]:
    """A process is stopped while it holds the lock of the index."""
    locks.PATIENCE = 0.5
    lines: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("hicache_nixl").addHandler(handler)
    store, pool = open_store(folder)
    keys = list(range(PAGES))
    assert all(set_keys(store, pool, keys, 1))
    wait = started(hold, folder)
    wait_for_stop(wait.pid)
    start = time.monotonic()
    good = set_keys(store, pool, keys, 2)
    seconds = time.monotonic() - start
    found = {
        "set": good.count(True),
        "seconds": seconds,
        "lines": lines[:],
        "loaded": len(get_keys(store, pool, keys)),
    }
    os.kill(wait.pid, signal.SIGCONT)
    return {**found, **wait(), "set later": set_keys(store, pool, keys, 3).count(True)}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    logging.getLogger("hicache_nixl").addHandler(logging.NullHandler())
    logging.getLogger("hicache_nixl").propagate = False
    load_nixl()
    load("pooled")
    answer = globals()[sys.argv[2]](Path(sys.argv[1]), *sys.argv[3:])
    sys.stdout.write("\n" + json.dumps(answer))
