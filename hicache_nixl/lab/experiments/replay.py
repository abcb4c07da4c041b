"""Running a schedule against one connector in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..progress import tqdm
from ..worker import call
from ..worker.client import Worker
from ..worker.schedule import Schedule, ScheduleError
from ..worker.setup import Setup

COLUMNS = ["call", *call.COLUMNS]


def replay(
    schedule: Schedule,
    connector: str = "leaky",
    *,
    storage_dir: str | os.PathLike[str] | None = None,
    plugin_params: Mapping[str, Any] | None = None,
    page_bytes: int = 65536,
    layout: str = "page_first",
    mla: bool = False,
    direct: bool = False,
    baseline_fds: int | None = None,
    nofile_limit: int | None = None,
    seed: int = 0,
    timeout: float = 600,
) -> pd.DataFrame:
    """Run a schedule against one connector in a process of its own.

    Parameters
    ----------
    connector : str
        A lifetime, such as ``"leaky"``, or a released connector, such as ``"sglang==0.5.11"``, whose wheel is
        fetched into the cache folder (``HICACHE_NIXL_CACHE``, ``~/.cache/hicache-nixl``).
    storage_dir : path, optional
        An existing folder on the disk to measure.  The replay makes a folder of its own in it and removes
        that again.  The folder for temporary files when left out.
    plugin_params : mapping, optional
        SGLang's ``extra_config``, full or flat form; ``{"use_uring": "true"}`` or ``{"queue": "io_uring"}``
        chooses a queue.  The POSIX plugin on libaio when left out.
    page_bytes : int
        Bytes of a page, keys and values together.
    direct : bool
        O_DIRECT in place of the page cache, for connectors that have that option.
    baseline_fds : int, optional
        Pad the worker with open descriptors up to this number before the first call, so that counts can be
        compared with those of a server (135 in PR #24671).
    nofile_limit : int, optional
        The worker's RLIMIT_NOFILE.
    timeout : float
        Seconds for the whole replay.

    Returns
    -------
    pandas.DataFrame
        A row per call: ``call`` (from 1), ``operation``, ``keys``, ``files``, ``bytes`` (of pages that
        arrived), ``seconds`` (in the connector alone), ``open_fds``, ``storage_fds`` and ``rss_bytes`` (of
        the worker, from outside, after the call), ``registrations`` (regions alive), ``registration_seconds``
        (of ``seconds``, in registering and deregistering), ``pages_ok`` (stored, found, or read back bit for
        bit), ``errno`` (0 for none).  ``attrs["log"]`` holds the warnings and errors that calls logged, by
        number of the call.

    Raises
    ------
    ConfigError
        Something in the arguments cannot work.
    WorkerError
        The worker died, hung or refused.

    Examples
    --------
    >>> table = replay(Schedule.steady(calls=2, keys=4), "leaky", page_bytes=4096)  # a set and a get
    >>> table.storage_fds.tolist(), table.pages_ok.tolist()
    ([8, 16], [4, 4])
    """
    if not len(schedule):
        raise ScheduleError(f"schedule {schedule.name!r} has no calls")
    setup = Setup(
        connector=connector,
        plugin_params=dict(plugin_params) if plugin_params else None,
        page_bytes=page_bytes,
        pages=max(schedule.largest, 1),
        layout=layout,
        mla=mla,
        direct=direct,
        seed=seed,
    )
    limits = {"baseline_fds": baseline_fds, "nofile_limit": nofile_limit}
    with Worker(setup, storage_dir=storage_dir, timeout=timeout, **limits) as worker:
        return _run(worker, schedule, connector)


def replay_each(
    schedule: Schedule, setups: Sequence[Setup], *, storage_dir: str | os.PathLike[str] | None = None
) -> list[pd.DataFrame]:
    """Run a schedule against one setup after the other in a single worker; a table each, as from ``replay``.

    What a connector keeps is closed before the next one, so that ``storage_fds`` and ``registrations`` begin at
    zero; ``rss_bytes`` does not.
    """
    with Worker(setups[0], storage_dir=storage_dir) as worker:
        tables = []
        for setup in setups:
            worker.open(setup)
            tables.append(_run(worker, schedule, setup.connector))
        return tables


def _run(worker: Worker, schedule: Schedule, connector: str) -> pd.DataFrame:
    progress = tqdm(schedule, desc=f"{connector}: {schedule.name}", unit="call", leave=False)
    rows = [worker.call(asked.operation, asked.keys) for asked in progress]
    table = pd.DataFrame(
        [{"call": number, **row.as_columns()} for number, row in enumerate(rows, 1)], columns=COLUMNS
    )
    table.attrs["log"] = {number: row.log for number, row in enumerate(rows, 1) if row.log}
    return table
