"""What waiting for a transfer costs: time, and a core."""

from __future__ import annotations

import os

import pandas as pd

from ..progress import tqdm
from ..worker.client import Worker, WorkerError
from ..worker.setup import Setup, queue_params

PAUSES = ("none", "growing", "steady")  # spinning, scoped's own, SGLang's 100 us
MEASURED = ("seconds", "core_seconds")


def waits(
    setup: Setup,
    keys: int,
    *,
    repeats: int,
    pauses: tuple[str, ...] = PAUSES,
    storage_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Get the same pages again and again, with one way of waiting after the other in each pair.

    Returns
    -------
    pandas.DataFrame
        A row per get: ``pair``, ``pause``, ``seconds`` and ``core_seconds`` (of the calling thread).

    Raises
    ------
    WorkerError
        When a get did not bring back every page, for an unknown pause, and for a connector that is not
        ``scoped``: the others wait in a way of their own.
    """
    rows = []
    with Worker(setup, storage_dir=storage_dir) as worker:
        worker.call("set", keys)
        for pair in tqdm(range(-1, repeats), desc="waits", unit="pair", leave=False):
            for pause in pauses if pair % 2 else pauses[::-1]:
                worker.request("pause", name=pause)
                row = worker.call("get", keys)
                if row["pages_ok"] != keys:
                    raise WorkerError(f"get of {keys} keys: {row['pages_ok']} are right; log: {row['log']}")
                rows.append({"pair": pair, "pause": pause, **{name: row[name] for name in MEASURED}})
    table = pd.DataFrame(rows)
    return table[table.pair >= 0].reset_index(drop=True)


def small_transfer(queue: str = "libaio") -> Setup:
    """One MLA page of 4 KiB, a single file, past the page cache: a read that has to be waited for."""
    return Setup("scoped", queue_params(queue), page_bytes=4096, pages=1, mla=True, direct=True)


def large_transfer(queue: str = "libaio") -> Setup:
    """128 pages of 512 KiB past the page cache, which take the disk a while."""
    return Setup("scoped", queue_params(queue), page_bytes=2**19, pages=128, direct=True)
