"""Tables of pages in an object store, as the lab measures them, for what draws them."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from hicache_nixl.lab import figures
from hicache_nixl.lab.experiments.object_costs import GROWN
from hicache_nixl.lab.experiments.objects import COUNTS, TURNS

ARMS = [
    (name, "OBJ", sockets)
    for name, sockets in (("leaky", 1), ("try_finally", 1), ("scoped", 8), ("pooled", 2))
]


def counts(leaking: int = 0) -> pd.DataFrame:
    """Calls of 16 keys; in objects, each call may leave some storage descriptors."""
    rows = []
    for name, kept, sockets in [*ARMS, ("leaky", "FILE", 0)]:
        files = 32 if kept == "FILE" else leaking
        kept_registrations = {"scoped": 2, "pooled": 1}.get(name)
        for call in range(22):
            registered = 64 * call if kept_registrations is None else kept_registrations * (call > 0)
            opened = (files * call, 2 + sockets * (call > 0), 7)
            rows.append((name, kept, call, "set", 16, 16, sum(opened), *opened, registered))
    return pd.DataFrame(rows, columns=COUNTS)


def turns(repeats: int = 6, ms_per_request: float = 1.0, ms_per_mib: float = 2.0) -> pd.DataFrame:
    """Calls whose CPU is so much for each request and each MiB; ``scoped`` makes two requests for a page."""
    rows = []
    for size in (16384, 262144):
        for keys in (16, 64):
            for pair in range(repeats):
                for arm, requests in (("pooled, OBJ", 1), ("scoped, OBJ", 2 * keys), ("scoped, FILE", None)):
                    for operation in ("set", "get"):
                        moved, asked = keys * size, requests or 1
                        used = (ms_per_request * asked + ms_per_mib * moved / 2**20) / 1e3
                        counted = (None,) * 2 if requests is None else (used, requests)
                        rows.append((size, keys, pair, arm, operation, used, moved, used / 2, *counted))
    return pd.DataFrame(rows, columns=TURNS)


def grown() -> pd.DataFrame:
    """Up to 8 clients and 3 volume servers."""
    rows = []
    for volumes in (1, 3):
        for clients in (1, 2, 4, 8):
            for operation, speed in (("set", 300), ("get", 1500)):
                pages, rate = 100 * clients, speed * min(clients, 4)
                cpu = [1e-3 * pages * share for share in (0.4, 0.5, 0.1, 0.4, 0.01)]
                rows.append((2, volumes, clients, operation, pages, pages / rate, rate, 0.8, *cpu))
    return pd.DataFrame(rows, columns=GROWN)


OBJECTS: dict[str, Callable[[], figures.Drawn]] = {
    "object_counts": lambda: figures.object_counts(counts()),
    "object_speed": lambda: figures.object_speed(turns()),
    "object_growth": lambda: figures.object_growth(grown()),
}
