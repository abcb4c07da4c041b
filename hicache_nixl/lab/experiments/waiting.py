"""What waiting for a transfer costs: time, and CPU time."""

from __future__ import annotations

import os

import pandas as pd

from ..worker.client import Worker, WorkerError
from ..worker.setup import Setup
from .alternating import alternating, counted

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
    """Get the same pages repeatedly, with each way of waiting in turn.

    Returns
    -------
    pandas.DataFrame
        A row per get: ``pair``, ``pause``, ``seconds`` and ``core_seconds`` (of the calling thread).

    Raises
    ------
    WorkerError
        When a get did not read back every page, for an unknown pause, and for a connector other than ``scoped``,
        whose way of waiting cannot be changed.
    """
    rows = []
    with Worker(setup, storage_dir=storage_dir) as worker:
        worker.call("set", keys)
        for pair, pause in alternating(pauses, repeats, label="waits"):
            worker.request("pause", name=pause)
            row = worker.call("get", keys)
            if row.pages_ok != keys:
                raise WorkerError(f"get of {keys} keys: {row.pages_ok} are right; log: {row.log}")
            rows.append({"pair": pair, "pause": pause, **{name: getattr(row, name) for name in MEASURED}})
    return counted(rows)


def small_transfer(queue: str = "libaio") -> Setup:
    """One MLA page of 4 KiB, a single file, read with O_DIRECT: a transfer that is short, and not instantaneous."""
    return Setup("scoped", queue=queue, page_bytes=4096, pages=1, mla=True, direct=True)


def large_transfer(queue: str = "libaio") -> Setup:
    """128 pages of 512 KiB, read with O_DIRECT, which takes the disk several milliseconds."""
    return Setup("scoped", queue=queue, page_bytes=2**19, pages=128, direct=True)
