"""Two connectors timed against each other, alternating."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pandas as pd

from ...config import QUEUES
from ...errors import ConfigError
from ..worker.client import Worker, WorkerError
from ..worker.placement import new_subfolder, truncate_files
from ..worker.releases import PREFIX
from ..worker.schedule import files_per_key
from ..worker.setup import COLUMNS, Setup
from .alternating import WARM_UP, alternating, counted

MEASURED = (
    "operation",
    "seconds",
    "bytes",
    "open_fds",
    "registrations",
    "registration_seconds",
    "rss_bytes",
)
SMALLEST = 8192  # bytes that a page of two small files takes on the disk
USABLE = 0.9  # share of the free space that a comparison may use


def compare(
    arms: Sequence[str],
    setups: Sequence[Setup],
    *,
    repeats: int,
    storage_dir: str | os.PathLike[str] | None = None,
    timeout: float = 1800,
) -> pd.DataFrame:
    """Time one set and one get per arm and repeat, in the order A B, B A, A B, ...

    Every arm has a worker of its own; both stay alive for all setups, and each setup starts with a new
    connector in them.  A set stores new pages into files that did not exist; the get right after it reads
    them, so it measures the page cache, unless the setup is ``direct``.  Every page that is read back is compared bit
    for bit, outside the measured time.

    All arms store into one folder, where ext4 places their files next to each other.  No file is deleted before the
    end, since ext4 creates files more slowly where many were deleted (see ``deletion_times``): each setup has a new
    folder, and the files of the previous one are truncated.  So the storage folder needs space for all that one setup
    stores: ``repeats`` + 1 sets of every arm.

    Parameters
    ----------
    arms : sequence of str
        Connectors.
    setups : sequence of Setup
        What each comparison holds fixed; their own ``connector`` is not used.  A call has ``pages`` keys.
    repeats : int
        Pairs per setup.

    Returns
    -------
    pandas.DataFrame
        A row per measured call: the columns of ``Setup.as_columns``, ``pair``, ``arm``, and the columns of a replay
        that are in ``MEASURED``.

    Raises
    ------
    ConfigError
        When the descriptors that a leaky arm keeps would exceed the hard limit, or the pages the free space.
    WorkerError
        When a call did not store or read back every page.
    """
    _check_limit(arms, setups, repeats)
    _check_space(arms, setups, repeats, storage_dir)
    rows = []
    with ExitStack() as stack:
        first = {arm: setups[0].for_connector(arm) for arm in arms}
        workers = _started(stack, first, storage_dir, timeout)
        owner = workers[arms[0]]  # its folder has the others'; it is removed with it, whatever happens
        for setup in setups:
            truncate_files(owner.folder)
            folder, room = new_subfolder(owner.folder), (repeats + WARM_UP) * setup.pages
            for seed, (arm, worker) in enumerate(workers.items()):  # pages of different keys
                worker.open(dataclasses.replace(setup, connector=arm, seed=seed, room=room), folder=folder)
            for pair, arm in alternating(arms, repeats):
                measured = [_timed(workers[arm], operation, setup.pages) for operation in ("set", "get")]
                rows += [{**setup.as_columns(), "pair": pair, "arm": arm, **row} for row in measured]
    return counted(rows)


def left_per_key(times: pd.DataFrame) -> pd.DataFrame:
    """Return how many descriptors each call of ``compare`` left per key, next to the predicted number.

    Returns
    -------
    pandas.DataFrame
        For each setup and arm: ``predicted`` files per key, and ``least`` and ``most`` that a call left.
    """
    columns = [*COLUMNS, "arm"]
    rows = []
    for values, calls in times.groupby(columns, sort=False):
        point = dict(zip(columns, values, strict=True))
        left = calls.open_fds.diff().dropna() / point["keys"]
        predicted = files_per_key(point["layout"], point["mla"])
        rows.append({**point, "predicted": predicted, "least": left.min(), "most": left.max()})
    return pd.DataFrame(rows)


def usable_queues(storage_dir: str | os.PathLike[str] | None = None, *, timeout: float = 60) -> pd.DataFrame:
    """Try the POSIX plugin's queues: ``queue``, ``works``, and the ``reason`` when one does not work.

    io_uring is refused in many containers, and libaio where its requests are used up.  Each queue is tried in a
    process of its own, for ``timeout`` seconds at most.
    """
    rows = []
    for queue in QUEUES:
        reason = ""
        try:
            setup = Setup(queue=queue, pages=1)
            with Worker(setup, storage_dir=storage_dir, timeout=timeout) as worker:
                moved = worker.call("set", 1)
                if not moved.pages_ok:
                    reason = "; ".join(moved.log)
        except WorkerError as error:
            reason = str(error)
        rows.append({"queue": queue, "works": not reason, "reason": reason})
    return pd.DataFrame(rows)


def _started(
    stack: ExitStack, setups: Mapping[str, Setup], storage_dir: str | os.PathLike[str] | None, timeout: float
) -> dict[str, Worker]:
    """Start a worker for each arm, all at once."""

    def start(setup: Setup) -> Worker:
        return stack.enter_context(Worker(setup, storage_dir=storage_dir, timeout=timeout))

    with ThreadPoolExecutor(len(setups)) as pool:
        return dict(zip(setups, pool.map(start, setups.values()), strict=True))


def _timed(worker: Worker, operation: str, keys: int) -> dict[str, Any]:
    row = worker.call(operation, keys)
    if row.pages_ok != keys:
        raise WorkerError(f"{operation} of {keys} keys: {row.pages_ok} pages are right; log: {row.log}")
    return {name: getattr(row, name) for name in MEASURED}


def _check_limit(arms: Sequence[str], setups: Sequence[Setup], repeats: int) -> None:
    """Refuse a comparison that would reach the limit where an arm keeps every descriptor."""
    if not {"leaky", f"{PREFIX}0.5.11"} & set(arms):
        return
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for setup in setups:
        kept = 2 * files_per_key(setup.layout, setup.mla) * setup.pages * (repeats + WARM_UP)
        if kept > limit - 64:
            raise ConfigError(
                f"repeats={repeats} with {setup.pages} keys keeps {kept} descriptors open in a leaky arm, "
                f"and the hard limit is {limit}: use fewer repeats or keys"
            )


def _check_space(
    arms: Sequence[str], setups: Sequence[Setup], repeats: int, storage_dir: str | os.PathLike[str] | None
) -> None:
    """Refuse a comparison whose pages would fill the disk."""
    folder = storage_dir or tempfile.gettempdir()
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # the worker reports a folder that does not exist
    for setup in setups:
        needed = len(arms) * (repeats + WARM_UP) * setup.pages * max(setup.page_bytes, SMALLEST)
        if needed > free * USABLE:
            raise ConfigError(
                f"repeats={repeats} with {setup.pages} keys of {setup.page_bytes} bytes stores "
                f"{needed / 2**30:.1f} GiB before anything is removed, and {folder} has {free / 2**30:.1f} GiB free: "
                "use fewer repeats, fewer keys or smaller pages"
            )
