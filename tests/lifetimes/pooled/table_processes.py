"""Processes that share a table, for test_table_processes.py: ``python table_processes.py SCENARIO FOLDER NUMBER``.

They are forked here, where there are no threads.  The last line of the output is JSON.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter

import numpy as np
from page_rows import SPACE, are_whole, keys_of, make_rows

from hicache_nixl.lifetimes.pooled.table import Table

KEYS, BATCH = 1000, 128
GENERATIONS = np.array([1, 1], np.uint64)


def forked(function, *args):
    """Run a function in another process; return its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*args)
        os._exit(0)
    finally:
        os._exit(1)


def update(dir_fd, until):
    """Put new versions of the same keys in random order."""
    rng, version = np.random.default_rng(1), 1
    with Table.open(dir_fd, "index") as table:
        while time.monotonic() < until:
            version += 1
            assert table.put(make_rows(rng.integers(0, KEYS, BATCH), version), GENERATIONS).all()


def read(dir_fd, until, pipe, seed):
    """Look up random keys, all of which are always there."""
    rng, seen, versions = np.random.default_rng(seed), Counter(), set()
    with Table.open(dir_fd, "index") as table:
        while time.monotonic() < until:
            numbers = rng.integers(0, KEYS, BATCH)
            rows, slots = table.find(keys_of(numbers), SPACE)
            present = slots >= 0
            seen["found"] += int(present.sum())
            seen["missing"] += int((~present).sum())
            seen["wrong"] += int((present & ~are_whole(rows, numbers)).sum())
            versions.update(rows["size"].tolist())
    os.write(pipe, json.dumps({**seen, "versions": len(versions)}).encode() + b"\n")


def concurrent(dir_fd, seconds):
    """One process updates a table while two read it."""
    with Table.create(dir_fd, "index", 4 * KEYS) as table:
        table.put(make_rows(range(KEYS)), GENERATIONS)
    until, (output, pipe) = time.monotonic() + seconds, os.pipe()
    children = [forked(update, dir_fd, until), *(forked(read, dir_fd, until, pipe, seed) for seed in (2, 3))]
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    lines = os.read(output, 1 << 16).decode().splitlines()
    return {"ends": ends, "readers": [json.loads(line) for line in lines]}


def passing(version):
    """Return the numbers of keys that are put in this version only."""
    return np.arange(BATCH) + (version + 1) * KEYS


def write_until_killed(dir_fd, begun, done):
    """Update keys, and put others that are stale one version later, so that buckets are full of stale rows."""
    with Table.open(dir_fd, "index") as table:
        while True:
            begun[0] = version = begun[0] + 1
            generations = np.array([1, version], np.uint64)
            rows = make_rows(range(KEYS), version)
            passed = make_rows(passing(version), version, segment=1, generation=version)
            assert table.put(np.concatenate([rows, passed]), generations).all()
            done[0] = version


def look(table, begun, done, seen):
    """Count the rows as they are after a kill in the middle of the call that put the version ``begun``."""
    rows, slots = table.find(keys_of(range(KEYS)), SPACE)
    found = slots >= 0
    whole = are_whole(rows, range(KEYS))
    seen["missing"] += int((~found).sum())
    seen["new"] += int((found & whole & (rows["size"] == begun)).sum())
    seen["old"] += int((found & whole & (rows["size"] == done) & (done != begun)).sum())
    seen["wrong"] += int((found & ~(whole & ((rows["size"] == begun) | (rows["size"] == done)))).sum())
    rows, slots = table.find(keys_of(passing(begun)), SPACE)
    seen["wrong"] += int(((slots >= 0) & ~are_whole(rows, passing(begun))).sum())
    live = table.live(np.array([1, begun], np.uint64))
    kept = int((live["segment"] == 0).sum())
    seen["live differs from found"] += int(kept != found.sum())


def kills(dir_fd, count):
    """Kill a writer again and again; the next one goes on with the same table."""
    chance, seen = random.Random(4), Counter()
    shared = np.frombuffer(mmap.mmap(-1, 16), np.int64)
    begun, done = shared[:1], shared[1:]
    with Table.create(dir_fd, "index", 4 * KEYS) as table:
        table.put(make_rows(range(KEYS), 0), GENERATIONS)
        for _ in range(count):
            before = begun[0]
            writer = forked(write_until_killed, dir_fd, begun, done)
            while begun[0] < before + 2:
                time.sleep(0)
            time.sleep(chance.random() * 0.01)
            os.kill(writer, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGKILL
            look(table, int(begun[0]), int(done[0]), seen)
    return seen


if __name__ == "__main__":
    folder = os.open(sys.argv[2], os.O_RDONLY)
    print(json.dumps(globals()[sys.argv[1]](folder, int(sys.argv[3]))))  # noqa: T201
