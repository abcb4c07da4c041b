"""Kill the writer of a store again and again, and print what the next process finds each time, as JSON.

Takes a folder, an I/O queue, a number of kills, and seconds after which it ends at the latest.  Each process is
forked from this one, which has loaded everything and opened nothing.
"""

from __future__ import annotations

import json
import logging
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from support import fds_below, storage_config
from versions import PAGE_BYTES, filled, versions_in

from hicache_nixl import HiCacheNixl
from hicache_nixl.host.pools import HostKVPool, pool_for_page_bytes
from hicache_nixl.lifetimes import load
from hicache_nixl.transport.agent import load_nixl

SEGMENTS, KEYS, PAGES = 6, 150, 16  # 4.7 MiB of pages: they nearly fill the segments of 1 MiB
RECENT = 3 << 20  # bytes that were stored last, and are in segments that are not the oldest
VERSIONS = 10**6  # of one process


def open_store(folder: Path, queue: str) -> tuple[HiCacheNixl, HostKVPool]:
    """Return a store that recycles all the time and hides no wrong byte, and its host pool."""
    options = {"capacity_gb": SEGMENTS / 1024, "segment_mb": 1, "min_free_gb": 0, "verify": "none"}
    store = HiCacheNixl(storage_config("pooled", posix={"queue": queue}, **options), str(folder))
    pool = pool_for_page_bytes(PAGE_BYTES, pages=PAGES)
    store.register_mem_pool_host(pool)
    return store, pool


class Known:
    """What is known of the versions of each key: of the last that was stored, and the last that was begun."""

    def __init__(self) -> None:
        self.stored: dict[int, int] = {}
        self.begun: dict[int, int] = {}
        self.recent: list[int] = []  # keys of the last writer, in the order of their sets
        self.under_way: set[int] = set()

    def note(self, line: str) -> None:
        """Take a line of a writer: of the beginning or the end of a set."""
        what, version, keys, good = json.loads(line)
        if what == "begin":
            self.begun.update(dict.fromkeys(keys, version))
            self.under_way = set(keys)
            return
        self.under_way = set()
        for key, stored in zip(keys, good, strict=True):
            if stored:
                self.stored[key] = version
                self.recent.append(key)

    def must_be_present(self) -> set[int]:
        """Return the keys that cannot have been recycled, nor been lost while they were replaced."""
        return set(self.recent[-RECENT // PAGE_BYTES :]) - self.under_way


def look(store: HiCacheNixl, pool: HostKVPool, known: Known, found: Counter[str]) -> None:
    """Load every page, and compare its version with what is known."""
    expected = known.must_be_present()
    for first in range(0, KEYS, PAGES):
        keys = range(first, min(first + PAGES, KEYS))
        good = store.batch_get_v1([f"page{key}" for key in keys], pool.page_indices(0, len(keys)))
        for page, key in enumerate(keys):
            if not good[page]:
                found["missing"] += 1
                found["lost"] += key in expected
                continue
            found["present"] += 1
            versions = versions_in(pool, page, key)
            found["other bytes"] += len(versions) != 1
            found["older"] += max(versions) < known.stored.get(key, 0)
            found["never stored"] += max(versions) > known.begun.get(key, 0)


def write(store: HiCacheNixl, pool: HostKVPool, version: int, say: Callable[..., None], sets: int = 0) -> int:
    """Set and get pages, for ever or a number of times; return how many pages could not be set."""
    chance, refused = random.Random(version), 0
    for number in range(1, (sets or VERSIONS - 1) + 1):
        keys = chance.sample(range(KEYS), chance.randint(1, PAGES))
        for page, key in enumerate(keys):
            filled(pool, page, key, version + number)
        names, places = [f"page{key}" for key in keys], pool.page_indices(0, len(keys))
        say("begin", version + number, keys, [])
        good = store.batch_set_v1(names, places)
        say("end", version + number, keys, good)
        refused += good.count(False)
        if number % 8 == 0:
            store.batch_get_v1(names, places)
    return refused


def live(folder: Path, queue: str, known: Known, number: int, out: int, last: bool) -> None:
    """Look at all pages, say what was found, and write until the end."""

    def say(*words: object) -> None:
        os.write(out, (json.dumps(words) + "\n").encode())

    store, pool = open_store(folder, queue)
    found = Counter(processes=1)
    look(store, pool, known, found)
    say(found)
    if not last:
        write(store, pool, number * VERSIONS, say)
    state = store.lifetime._store.state
    before = set(state.generations[:SEGMENTS].tolist())
    refused = write(store, pool, number * VERSIONS, lambda *words: None, sets=200)
    kept = before & set(state.generations[:SEGMENTS].tolist()) - {0}
    files = sorted(Counter(fds_below(folder).values()).items())
    say({"refused at the end": refused, "blocked segments": len(kept)}, files)
    store.close()


def life(known: Known, seconds: float, arguments: tuple[object, ...], last: bool = False) -> list[object]:
    """Let a process live for some seconds after its first look; return what it said of it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            live(*arguments[:2], known, arguments[2], writing, last)
        finally:
            os._exit(0)
    os.close(writing)
    known.recent, known.under_way = [], set()
    heard: list[object] = []
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        rest, end = b"", time.monotonic() + 30
        while (left := end - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            if not (data := os.read(pipe.fileno(), 1 << 16)):
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if isinstance(said[0], dict):
                    end = end if heard or last else time.monotonic() + seconds
                    heard += said
                else:
                    known.note(line)
        os.kill(pid, signal.SIGKILL)
        rest += pipe.readall() or b""
    for line in rest.split(b"\n")[:-1]:
        known.note(line)
    os.waitpid(pid, 0)
    return heard or [{"died": 1}]


def main(folder: Path, queue: str, kills: int, seconds: float) -> None:
    load_nixl()
    load("pooled")
    chance, known, found = random.Random(), Known(), Counter[str]()
    end, number = time.monotonic() + seconds, 0
    while number < kills and time.monotonic() < end:
        number += 1
        found.update(life(known, chance.uniform(0, 0.15), (folder, queue, number))[0])
    heard = life(known, 30, (folder, queue, number + 1), last=True)
    for said in heard[:2]:
        found.update(said)
    files = dict(heard[2]) if len(heard) > 2 else {}
    sys.stdout.write("\n" + json.dumps({"kills": number, **found, "files": files}))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("hicache_nixl.calls").setLevel(logging.CRITICAL)  # a line for each page that is missing
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
