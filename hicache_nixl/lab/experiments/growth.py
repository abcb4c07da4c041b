"""Whether calls take longer the more pages a store has."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from ...config import HiCacheStorageConfig
from ...connector import HiCacheNixl
from ...host.pools import pool_for_page_bytes
from ..progress import tqdm
from .traffic import connector_config, keys_of

KEYS = 128  # of a call
CALLS = 41  # of each kind that are timed
OPENINGS = 7
PAGE_BYTES = 512


def growth(
    stored: Sequence[int], *, queue: str = "libaio", storage_dir: str | os.PathLike[str] | None = None
) -> pd.DataFrame:
    """Time calls of lifetime ``pooled`` when the store has so many pages, and how long it then takes to open it.

    Sets store new pages; lookups and gets are of the pages of an earlier set, chosen at random, as a server asks for
    pages of one conversation.  The last page of a lookup is not stored: a lookup of pages that were all seen lately does
    not ask the index.  Pages have 512 bytes.

    Parameters
    ----------
    stored : sequence of int
        Numbers of pages, ascending.

    Returns
    -------
    pandas.DataFrame
        A row per number and call: ``stored``; ``operation``: set, exists, get, open; ``seconds``; ``good``, whether all pages were; ``open_fds`` of this process after it; ``index_bytes`` on disk.
    """
    pool, rows, chance = pool_for_page_bytes(PAGE_BYTES, pages=KEYS), [], random.Random(1)
    indices, have, missing = pool.page_indices(0, KEYS), 0, keys_of([-1])
    config = connector_config("pooled", queue, 2 * (stored[-1] + KEYS * CALLS * len(stored)) * PAGE_BYTES)
    with tempfile.TemporaryDirectory(prefix="hicache-nixl-", dir=storage_dir) as folder:

        def timed(operation: str, action: Callable[..., Any], *args: Any) -> None:
            start = time.perf_counter()
            answer = action(*args)
            seconds, open_fds = time.perf_counter() - start, psutil.Process().num_fds()
            good = answer in ([True] * KEYS, KEYS - 1, None)
            rows.append((wanted, operation, seconds, good, open_fds, _index_bytes(folder)))

        for wanted in tqdm(stored, desc="storing pages", leave=False):
            with HiCacheNixl(config, folder) as store:
                store.register_mem_pool_host(pool)
                while have < wanted:
                    store.batch_set_v1(keys_of(range(have, have + KEYS)), indices)
                    have += KEYS
                for _ in range(CALLS):
                    first = KEYS * chance.randrange(have // KEYS)
                    new, old = keys_of(range(have, have + KEYS)), keys_of(range(first, first + KEYS))
                    have += KEYS
                    timed("set", store.batch_set_v1, new, indices)
                    timed("exists", store.batch_exists, [*old[:-1], *missing])
                    timed("get", store.batch_get_v1, old, indices)
            for _ in range(OPENINGS):
                timed("open", _open_and_close, config, folder)
    columns = ["stored", "operation", "seconds", "good", "open_fds", "index_bytes"]
    return pd.DataFrame(rows, columns=columns)


def _open_and_close(config: HiCacheStorageConfig, folder: str) -> None:
    HiCacheNixl(config, folder).close()


def _index_bytes(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).glob("pooled/index.*"))
