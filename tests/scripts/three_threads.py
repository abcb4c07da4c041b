"""Use one store as SGLang's controller does: backup, lookup and prefetch each in its own thread.

Prints the calls that gave a wrong answer as JSON, by lifetime and queue.  In a separate process, because an
agent without locking crashes the process.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from support import close_below, keys_of, scramble, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.config import QUEUES
from hicache_nixl.host.pools import pool_for_page_bytes

ROUNDS = 60
PAGES = 32


def wrong_answers(folder: Path, lifetime: str, queue: str) -> list[str]:
    """Return the name of each call that gave a wrong answer."""
    pool = pool_for_page_bytes(4096, pages=PAGES)
    scramble(pool)
    keys = keys_of(PAGES)
    first, second = pool.page_indices(0, PAGES // 2), pool.page_indices(PAGES // 2, PAGES // 2)
    wrong: list[str] = []
    with HiCacheNixl(storage_config(lifetime, posix={"queue": queue}), str(folder)) as store:
        store.register_mem_pool_host(pool)
        assert all(store.batch_set_v1(keys, pool.page_indices(0, PAGES)))

        def backup(number: int) -> bool:
            return all(store.batch_set_v1(keys_of(PAGES // 2, f"round{number}-"), first))

        def lookup(number: int) -> bool:
            return store.batch_exists(keys) == PAGES

        def prefetch(number: int) -> bool:
            return all(store.batch_get_v1(keys[PAGES // 2 :], second))

        def repeat(call: Callable[[int], bool]) -> None:
            wrong.extend(call.__name__ for number in range(ROUNDS) if not call(number))

        calls = (backup, lookup, prefetch) * 2  # twice the controller's threads show a race twice as soon
        threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    close_below(folder)
    return wrong


if __name__ == "__main__":
    root, lifetimes = Path(sys.argv[1]), sys.argv[2:]
    answers = {
        f"{lifetime}-{queue}": wrong_answers(root / lifetime / queue, lifetime, queue)
        for lifetime in lifetimes
        for queue in QUEUES
    }
    sys.stdout.write("\n" + json.dumps(answers))
