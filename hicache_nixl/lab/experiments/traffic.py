"""A day of traffic in a minute: a real store of lifetime ``pooled`` at its full capacity."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from ...config import HiCacheStorageConfig
from ...connector import HiCacheNixl
from ...host.pools import pool_for_page_bytes
from ..progress import tqdm

MOST_KEYS = 128  # of a call, as in SGLang
PAGE_BYTES = 4096
SEGMENT_BYTES, SEGMENTS = 1 << 20, 16  # few, so that a store is full soon


def traffic(
    trace: Sequence[Sequence[str]],
    segments: int = SEGMENTS,
    *,
    queue: str = "libaio",
    storage_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Replay requests: look pages up, load those that are there, store the others.

    Pages have 4 KiB and segments 1 MiB.  Every loaded page is compared with what was stored.

    Parameters
    ----------
    trace : sequence of sequence of str
        The keys of each request, see ``conversations``.
    segments : int
        The capacity.

    Returns
    -------
    pandas.DataFrame
        A row per request: ``asked``, its pages; ``loaded``; ``wrong``, loaded pages with other bytes than were stored;
        ``open_fds`` after it; ``recycled``, segments so far.
    """
    pool = pool_for_page_bytes(PAGE_BYTES, pages=max(map(len, trace)))
    config = connector_config("pooled", queue, segments * SEGMENT_BYTES, SEGMENT_BYTES)
    with (
        tempfile.TemporaryDirectory(prefix="hicache-nixl-", dir=storage_dir) as folder,
        HiCacheNixl(config, folder) as store,
    ):
        store.register_mem_pool_host(pool)
        rows = [_request(store, pool, request) for request in tqdm(trace, desc="requests", leave=False)]
    return pd.DataFrame(rows)


def _request(store: HiCacheNixl, pool: Any, keys: Sequence[str]) -> dict[str, int]:
    pages = pool.kv_buffer.view(torch.int16).view(2, pool.page_num, -1)[:, : len(keys)].numpy()
    expected = np.array([int(key[:4], 16) - 2**15 for key in keys], np.int16)[:, None]
    pages[:] = 0
    found, loaded = store.batch_exists(keys), 0
    for first in range(0, found, MOST_KEYS):
        part = keys[first : min(first + MOST_KEYS, found)]
        answers = store.batch_get_v1(part, pool.page_indices(first, len(part)))
        loaded += sum(answers[: (*answers, False).index(False)])
    wrong = int((pages[:, :loaded] != expected[:loaded]).any(axis=(0, 2)).sum())
    pages[:] = expected
    for first in range(loaded, len(keys), MOST_KEYS):
        part = keys[first : first + MOST_KEYS]
        store.batch_set_v1(part, pool.page_indices(first, len(part)))
    open_fds, recycled = psutil.Process().num_fds(), vars(store.lifetime)["_store"].segments.recycled
    return {"asked": len(keys), "loaded": loaded, "wrong": wrong, "open_fds": open_fds, "recycled": recycled}


def connector_config(
    lifetime: str, queue: str, capacity: int, segment_bytes: int = 64 << 20
) -> HiCacheStorageConfig:
    """Return the configuration of a connector; ``pooled`` gets a store of so many bytes, or some more."""
    extra: dict[str, Any] = {"plugin": {"posix": {"active": True, "queue": queue}}, "lifetime": lifetime}
    if lifetime == "pooled":
        segments = max(2, -(-capacity // segment_bytes))
        extra |= {
            "segment_mb": segment_bytes >> 20,
            "capacity_gb": segments * segment_bytes / 2**30,
            "min_free_gb": 0,
        }
    return HiCacheStorageConfig(0, 1, 0, 1, 0, 1, False, False, True, "lab", extra_config=extra)


def keys_of(numbers: Iterable[int]) -> list[str]:
    """Return a key for each number, as SGLang makes them."""
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
