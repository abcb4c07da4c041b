"""Rounds of prompts to servers, as ``lab.served`` returns them, for what draws them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pandas as pd

from hicache_nixl.lab import figures
from hicache_nixl.lab.experiments.serving import COLUMNS, rounds_schedule
from hicache_nixl.lab.worker.schedule import predicted_fds

BEFORE, LIMIT = 62, 512
RELEASES = ("sglang==0.5.12", "sglang==0.5.13.post1", "sglang==0.5.23")


def served(
    connector: str, server: str = "0.5.11", rounds: int = 5, per_key: int = 0, limit: int | None = None
) -> pd.DataFrame:
    """Rounds that leave so many descriptors for each key; what does not fit below the limit loads nothing."""
    counts, failure = predicted_fds(rounds_schedule(rounds), per_key, BEFORE, limit)
    rows = []
    for number, count in enumerate(counts):
        full = failure is not None and number + 1 >= failure
        loaded = 2048 if number % 2 and not full else 0
        step = ("backup", "prefetch")[number % 2]
        what = (
            BEFORE,
            count,
            count - BEFORE,
            loaded,
            0.05 + 0.01 * number,
            True,
            int(full),
            1024**2 * number,
        )
        rows.append((server, connector, number // 2 + 1, step, *what))
    return pd.DataFrame(rows, columns=COLUMNS)


LEAK = served("sglang==0.5.11", per_key=2, limit=LIMIT)
PREDICTED = pd.DataFrame({"open_fds": predicted_fds(rounds_schedule(5), 2, BEFORE, LIMIT)[0]})
OURS = pd.concat(
    [
        served(connector, server, per_key=2 * (connector == "leaky")).assign(
            fds_before=BEFORE - (connector == "pooled")
        )
        for server, connector in product(("0.5.11", "0.5.23"), ("leaky", "scoped", "pooled"))
    ],
    ignore_index=True,
)
LATER = pd.concat(
    [served(name, name.removeprefix("sglang==")) for name in RELEASES[:1]]
    + [served(name, name.removeprefix("sglang==")).assign(registered=1024**2) for name in RELEASES[1:]],
    ignore_index=True,
)
FIRST = pd.DataFrame(
    [
        (arm, repeat, origin, 2048, seconds * (1 + repeat / 50))
        for arm, slower in (("sglang==0.5.23", 1.1), ("scoped", 1.0), ("pooled", 0.9))
        for origin, seconds in (("cold", 1.8), ("storage", 0.4 * slower), ("host", 0.25))
        for repeat in range(1, 9)
    ],
    columns=["arm", "repeat", "origin", "tokens", "seconds"],
)

SERVED: dict[str, Callable[[], figures.Drawn]] = {
    "served_leak": lambda: figures.served_leak(LEAK, PREDICTED, LIMIT),
    "served_counts": lambda: figures.served_counts(OURS),
    "served_registrations": lambda: figures.served_registrations(LATER),
    "first_tokens": lambda: figures.first_tokens(FIRST),
}
