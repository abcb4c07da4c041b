"""Interrupt the calls of a connector at random moments, then print what is left as JSON."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from support import files_in, keys_of, make_pool, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.lifetimes.pooled import transfers

transfers.LARGE = 1  # bytes from which its second thread takes part
PAGES, INTERRUPTS, SECONDS = 4, 500, 40
FEW_SEGMENTS = {"capacity_gb": 6 / 1024, "segment_mb": 1}  # which are recycled soon


class Counted:
    """The agent of a store, with its registrations and transfer handles counted."""

    def __init__(self, store: HiCacheNixl):
        agent = store.lifetime.registration.agent
        self.alive = {"registrations": 0, "handles": 0}
        self._count(agent, "register_memory", "registrations", 1)
        self._count(agent, "deregister_memory", "registrations", -1)
        self._count(agent, "initialize_xfer", "handles", 1)
        self._count(agent, "release_xfer_handle", "handles", -1)

    def _count(self, agent, method, kind, step):
        original = getattr(agent, method)

        def counted(*args, **kwargs):
            answer = original(*args, **kwargs)
            self.alive[kind] += step
            return answer

        setattr(agent, method, counted)


def closed(files) -> None:
    if files is not None:  # None where the file is not there
        files.close()


def main(folder: Path, seed: int, queue: str, lifetime: str) -> None:
    chance, armed = random.Random(seed), False

    def interrupt(number, frame):
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    pool, keys = make_pool(False, "page_first"), keys_of(PAGES)
    indices = pool.page_indices(0, PAGES)
    files = [f"{folder}/value_org-model_0_1"]
    config = storage_config(
        lifetime, posix={"queue": queue}, **(FEW_SEGMENTS if lifetime == "pooled" else {})
    )
    store = HiCacheNixl(config, str(folder))
    counted = Counted(store)
    store.register_mem_pool_host(pool)
    calls = [
        lambda: store.batch_set_v1(keys, indices),
        lambda: store.batch_get_v1(keys, indices),
        lambda: store.batch_exists(keys),
        lambda: store.set("value", torch.zeros(4)),
        lambda: store.get("value", torch.zeros(4)),
        lambda: store.register_mem_pool_host(pool),
        lambda: closed(store.register_files(files)),
        lambda: HiCacheNixl(config, str(folder)).close(),
    ]
    weights = [4, 4, 4, 4, 4, 2, 1, 0.1]
    assert all(call() is not False for call in [*calls, *calls[:2] * 400])  # every segment is open now
    before, interrupts, end = len(os.listdir("/proc/self/fd")), 0, time.monotonic() + SECONDS
    threads, registrations = threading.active_count(), counted.alive["registrations"]
    main_thread = threading.get_ident()
    while interrupts < INTERRUPTS and time.monotonic() < end:
        delay = chance.uniform(1e-6, 2e-3)
        sender = threading.Timer(delay, signal.pthread_kill, [main_thread, signal.SIGINT])
        if by_thread := chance.random() < 0.1:
            sender.start()
        try:
            armed = True
            if not by_thread:
                signal.setitimer(signal.ITIMER_REAL, delay)
            chance.choices(calls, weights)[0]()
            armed = False
        except KeyboardInterrupt:
            interrupts += 1
        if by_thread:
            sender.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    works = store.batch_set_v1(keys, indices) == [True] * PAGES
    # what register_files opened and an interrupt kept from its caller
    for owner in list(getattr(store.lifetime, "_owners", ())):
        owner.close()
    store.clear()
    answer = {
        "interrupts": interrupts,
        "running": len(store._calls._running),
        "descriptors": len(os.listdir("/proc/self/fd")) - before,
        "registrations": counted.alive["registrations"] - registrations,
        "handles": counted.alive["handles"],
        "threads": threading.active_count() - threads,
        "files": files_in(folder),
        "works": works,
    }
    store.close()
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    logging.disable()
    faulthandler.dump_traceback_later(60, exit=True)
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
