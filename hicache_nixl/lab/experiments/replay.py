"""Running a schedule against one connector in a process of its own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import pandas as pd
import psutil

from ...errors import ConfigError
from ..progress import tqdm
from ..worker import call
from ..worker.client import Worker
from ..worker.descriptors import count_fds
from ..worker.schedule import Schedule, ScheduleError
from ..worker.setup import Setup

POOL = 1.25  # size of the host pool, in the pages of the largest call
COLUMNS = ["call", *call.COLUMNS]


def replay(
    schedule: Schedule,
    setup: Setup | str = "leaky",
    *,
    storage_dir: str | os.PathLike[str] | None = None,
    baseline_fds: int | None = None,
    nofile_limit: int | None = None,
    timeout: float = 600,
    **fields: Any,
) -> pd.DataFrame:
    """Run a schedule against one connector in a process of its own.

    Parameters
    ----------
    setup : Setup or str
        What is measured, or the name of a connector: a lifetime, such as ``"leaky"``, or a release, such as
        ``"sglang==0.5.11"``, whose wheel is fetched into the cache folder (``HICACHE_NIXL_CACHE``,
        ``~/.cache/hicache-nixl``).
    storage_dir : path, optional
        An existing folder on the disk to measure.  The replay creates a folder in it and removes that again.  By
        default the folder for temporary files.
    baseline_fds : int, optional
        Pad the worker with open descriptors up to this number before the first call, so that counts can be
        compared with those of a server (135 in PR #24671).
    nofile_limit : int, optional
        The worker's RLIMIT_NOFILE.
    timeout : float
        Seconds for the whole replay.
    **fields
        Fields of ``Setup``, such as ``queue``, ``page_bytes``, ``layout`` or ``mla``; they override those of
        ``setup``.  ``pages`` is always the number of keys of the largest call, ``room`` that of all that is stored.

    Returns
    -------
    pandas.DataFrame
        A row per call: ``call``, its number from 1, and the columns of ``CallRow``, which describes them.
        ``attrs["log"]`` holds, by number of the call, the warnings and errors that were logged, and what was found
        to be wrong; ``attrs["fds_before"]`` the descriptors that were open before the first call.

    Raises
    ------
    ConfigError
        Something in the arguments cannot work.
    WorkerError
        The worker died, did not answer, or refused.

    Examples
    --------
    >>> table = replay(Schedule.steady(calls=2, keys=4), "leaky", page_bytes=4096)  # a set and a get
    >>> table.storage_fds.tolist(), table.pages_ok.tolist()
    ([8, 16], [4, 4])
    >>> setup = Setup("try_finally", page_bytes=4096)
    >>> replay(Schedule.steady(calls=2, keys=4), setup).storage_fds.tolist()
    [0, 0]
    """
    if not len(schedule):
        raise ScheduleError(f"schedule {schedule.name!r} has no calls")
    named = setup if isinstance(setup, Setup) else Setup(**{"connector": setup, **fields})
    sizes = {"pages": max(schedule.largest, 1), "room": schedule.total("set") + schedule.stored_before}
    setup = dataclasses.replace(named, **{**fields, **sizes})
    _check_memory(setup)
    limits = {"baseline_fds": baseline_fds, "nofile_limit": nofile_limit}
    with Worker(setup, storage_dir=storage_dir, timeout=timeout, **limits) as worker:
        return _run(worker, schedule, setup.connector)


def replay_each(
    schedule: Schedule, setups: Sequence[Setup], *, storage_dir: str | os.PathLike[str] | None = None
) -> list[pd.DataFrame]:
    """Run a schedule against one setup after another in a single worker; return a table for each, as ``replay``.

    What a connector leaves open is closed before the next one, so that ``storage_fds`` and ``registrations`` begin
    at zero; ``rss_bytes`` does not.
    """
    with Worker(setups[0], storage_dir=storage_dir) as worker:
        tables = []
        for setup in setups:
            worker.open(setup)
            tables.append(_run(worker, schedule, setup.connector))
        return tables


def _check_memory(setup: Setup) -> None:
    """Refuse a host pool that does not fit into memory, which would end the worker or this machine."""
    needed, free = setup.pages * setup.page_bytes * POOL, psutil.virtual_memory().available
    if needed > free:
        raise ConfigError(
            f"the largest call has {setup.pages} keys; with pages of {setup.page_bytes} bytes its host pool needs "
            f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are available"
        )


def _run(worker: Worker, schedule: Schedule, connector: str) -> pd.DataFrame:
    if schedule.stored_before:
        worker.request("store_before", keys=schedule.stored_before)
    before = count_fds(worker.pid)
    progress = tqdm(schedule, desc=f"{connector}: {schedule.name}", unit="call", leave=False)
    rows = [worker.call(asked.operation, asked.keys) for asked in progress]
    table = pd.DataFrame(
        [{"call": number, **row.as_columns()} for number, row in enumerate(rows, 1)], columns=COLUMNS
    )
    table.attrs["fds_before"] = before
    table.attrs["log"] = {number: row.log for number, row in enumerate(rows, 1) if row.log}
    return table
