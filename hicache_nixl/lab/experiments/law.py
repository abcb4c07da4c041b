"""How many descriptors one call leaves, for each kind of page and number of keys."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from itertools import product

import pandas as pd

from ...config import LAYOUTS
from ..worker.client import Worker
from ..worker.schedule import Schedule, files_per_key
from ..worker.setup import Setup
from .replay import replay_each

SIZES = tuple(2**power for power in range(9))  # keys per call, 1 to 256
PAGE_BYTES = 4096


def traced_set(
    setup: Setup, keys: int, *, storage_dir: str | os.PathLike[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make one set with every ``os.open`` traced, in a worker of its own.

    Returns
    -------
    descriptors : pandas.DataFrame
        Every descriptor of the worker after the set: ``fd``, ``kind``, ``target``, as ``fd_table`` gives them.
    opened : pandas.DataFrame
        The storage files that are still open, and the Python lines that opened them, as from ``opened_by``.
    """
    with Worker(setup, storage_dir=storage_dir) as worker:
        worker.trace()
        worker.call("set", keys)
        return worker.fds(), worker.opened_by()


def left_by_calls(
    setup: Setup, sizes: Sequence[int] = SIZES, *, storage_dir: str | os.PathLike[str] | None = None
) -> pd.DataFrame:
    """Make one set and one get of every size for every kind of page, and count what each leaves open.

    Parameters
    ----------
    setup : Setup
        The connector and the queue; layouts, attention and page size are varied or small.

    Returns
    -------
    pandas.DataFrame
        A row per call: ``kind`` of page, ``operation``, ``keys``, ``files_per_key`` of this kind, and ``left``,
        the storage files that the call left open.
    """
    sweep = Schedule.of([(operation, size) for size in sizes for operation in ("set", "get")], "sweep")
    kinds = list(product((False, True), LAYOUTS))
    setups = [
        dataclasses.replace(setup, page_bytes=PAGE_BYTES, pages=max(sizes), layout=layout, mla=mla)
        for mla, layout in kinds
    ]
    swept = []
    for (mla, layout), table in zip(kinds, replay_each(sweep, setups, storage_dir=storage_dir), strict=True):
        left = table.storage_fds.diff().fillna(table.storage_fds).astype(int)
        about = {
            "kind": f"{'MLA' if mla else 'multi-head'}, {layout}",
            "files_per_key": files_per_key(layout, mla),
        }
        swept.append(table[["operation", "keys"]].assign(**about, left=left))
    return pd.concat(swept, ignore_index=True)[["kind", "operation", "keys", "files_per_key", "left"]]
