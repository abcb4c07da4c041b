"""Where the time of a call goes."""

from __future__ import annotations

import cProfile
import os
import pstats
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd

from ...connector import HiCacheNixl
from ...host.pools import pool_for_page_bytes
from .traffic import connector_config, keys_of

KEYS, CALLS = 128, 31
STEPS = ("names", "index", "open and close", "register", "lists", "transfer", "wait", "checksum", "rest")
# By what the name of a function, or of its file, contains; the first that fits.  What is compiled is part of its caller.
_PLACES = (
    ("checksum", ("checksums.py", "xxh3")),
    ("names", ("names.py", "keys.py", "addresses.py", "buffers.py")),
    ("register", ("register", "registerMem", "reg_descs", "_held")),
    ("lists", ("xfer_descs", "initialize", "createXferReq", "pieces.py")),
    ("wait", ("check_xfer_state", "getXferStatus", "pause", "sched_yield", "sleep", "acquire", "_base.py")),
    (
        "transfer",
        (
            "postXferReq",
            "transfer",
            "releaseXferReq",
            "release_xfer_handle",
            "registration.py",
            "staging.py",
        ),
    ),
    (
        "open and close",
        (
            "'extend' of 'list'",
            "deque",
            "posix.stat",
            "posix.fstat",
            "files.py",
            "faults.py",
            "folder.py",
            "posix.open",
            "posix.close",
            "posix.unlink",
            "posix.lstat",
        ),
    ),
    (
        "index",
        ("table.py", "row.py", "table_file.py", "index.py", "locks.py", "state.py", "segments.py", "numpy"),
    ),
)


def anatomy(
    lifetimes: Sequence[str],
    page_bytes: int,
    *,
    queue: str = "libaio",
    storage_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Measure the steps of sets of new pages, lookups and gets.

    The time of a call is a median without a profiler; its shares are those of Python's profiler in the calling thread,
    which makes steps of many Python calls look somewhat longer than they are.

    Parameters
    ----------
    lifetimes : sequence of str
        Those that leave no descriptor open: the calls are made in this process.

    Returns
    -------
    pandas.DataFrame
        A row per lifetime, operation and step: ``lifetime``, ``operation``, ``step`` (of ``STEPS``), ``seconds`` of a
        call of 128 pages.
    """
    pool, rows = pool_for_page_bytes(page_bytes, pages=KEYS), []
    indices = pool.page_indices(0, KEYS)
    for lifetime in lifetimes:
        with tempfile.TemporaryDirectory(prefix="hicache-nixl-", dir=storage_dir) as folder:
            bytes_ = 2 * CALLS * KEYS * page_bytes
            with HiCacheNixl(connector_config(lifetime, queue, capacity=3 * bytes_), folder) as store:
                store.register_mem_pool_host(pool)
                keys = [keys_of(range(call * KEYS, (call + 1) * KEYS)) for call in range(2 * CALLS)]
                for operation, action in (
                    ("set", partial(store.batch_set_v1, host_indices=indices)),
                    ("exists", store.batch_exists),
                    ("get", partial(store.batch_get_v1, host_indices=indices)),
                ):
                    seconds, shares = _timed(action, keys[:CALLS]), _shares(action, keys[CALLS:])
                    rows += [(lifetime, operation, step, seconds * shares[step]) for step in STEPS]
    return pd.DataFrame(rows, columns=["lifetime", "operation", "step", "seconds"])


def _timed(action: Callable[[list[str]], object], batches: Sequence[list[str]]) -> float:
    seconds = []
    for keys in batches:
        start = time.perf_counter()
        action(keys)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _shares(action: Callable[[list[str]], object], batches: Sequence[list[str]]) -> Counter[str]:
    """Return the share of each step in the time of calls."""
    profile = cProfile.Profile()
    for keys in batches:
        profile.runcall(action, keys)
    spent: Counter[str] = Counter()
    for (file, _, function), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        spent[_step(f"{file}:{function}")] += own
    whole = sum(spent.values())
    return Counter({step: seconds / whole for step, seconds in spent.items()})


def _step(name: str) -> str:
    return next((step for step, parts in _PLACES if any(part in name for part in parts)), "rest")
