"""Two connectors timed against each other, alternating."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ...config import QUEUES
from ...errors import ConfigError
from ..progress import tqdm
from ..statistics import ratio_table
from ..worker.client import Worker, WorkerError
from ..worker.releases import PREFIX
from ..worker.schedule import files_per_key
from ..worker.setup import Setup, queue_params

MEASURED = (
    "operation",
    "seconds",
    "bytes",
    "open_fds",
    "registrations",
    "registration_seconds",
    "rss_bytes",
)
WARM_UP = 1  # pairs that run first and are not counted


@dataclass(frozen=True)
class Cell:
    """What one comparison holds fixed."""

    keys: int = 128
    page_bytes: int = 65536
    queue: str = "libaio"
    layout: str = "page_first"
    mla: bool = False
    direct: bool = False

    def setup(self, arm: str) -> Setup:
        """Return what a worker of one arm is asked to set up."""
        return Setup(
            connector=arm,
            plugin_params=queue_params(self.queue),
            page_bytes=self.page_bytes,
            pages=self.keys,
            layout=self.layout,
            mla=self.mla,
            direct=self.direct,
        )

    def as_columns(self) -> dict[str, Any]:
        """Return the cell as columns of a table."""
        return {name: getattr(self, name) for name in self.__annotations__}


def compare(
    arms: Sequence[str],
    cells: Sequence[Cell],
    *,
    repeats: int,
    storage_dir: str | os.PathLike[str] | None = None,
    timeout: float = 1800,
) -> pd.DataFrame:
    """Time one set and one get per arm and repeat, in the order A B, B A, A B, ...

    Every arm has a worker of its own; both stay alive through all cells, and each cell begins with a new
    connector in them.  A set stores new pages into files that did not exist; the get right after it reads
    them, so it measures the page cache, unless the cell is ``direct``.  Every page that came back is compared bit for
    bit, outside the measured time.

    Returns
    -------
    pandas.DataFrame
        A row per measured call: the columns of ``Cell``, ``pair``, ``arm``, and those of a replay that are in
        ``MEASURED``.

    Raises
    ------
    ConfigError
        When the descriptors that a leaky arm keeps would pass the hard limit.
    WorkerError
        When a call did not bring back every page.
    """
    _check_limit(arms, cells, repeats)
    rows = []
    with ExitStack() as stack:
        workers = _started(stack, {arm: cells[0].setup(arm) for arm in arms}, storage_dir, timeout)
        progress = tqdm(
            total=len(cells) * (repeats + WARM_UP), desc=" | ".join(arms), unit="pair", leave=False
        )
        stack.callback(progress.close)
        for cell in cells:
            for arm, worker in workers.items():
                worker.open(cell.setup(arm))
            for pair in range(-WARM_UP, repeats):
                for arm in arms if pair % 2 == 0 else tuple(reversed(arms)):
                    measured = [_timed(workers[arm], operation, cell.keys) for operation in ("set", "get")]
                    rows += [{**cell.as_columns(), "pair": pair, "arm": arm, **row} for row in measured]
                progress.update()
    table = pd.DataFrame(rows)
    return table[table.pair >= 0].reset_index(drop=True)


def benchmark(
    arms: tuple[str, str],
    cells: Sequence[Cell],
    *,
    repeats: int,
    looks: int = 3,
    storage_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Compare two arms at many points, and look again where the second one seems slower.

    Among many points of few pairs some intervals lie above 1 by chance.  Such a point is measured again, in new
    folders and with twice the pairs, up to ``looks`` times in all, and the last look counts.

    Returns
    -------
    pandas.DataFrame
        As ``ratio_table`` by operation and ``Cell``: time of the second arm over that of the first; and
        ``looks``.
    """
    by = ["operation", *Cell.__annotations__]
    latest, doubtful = pd.DataFrame(columns=[*by, "looks"]), list(cells)
    for look in range(1, looks + 1):
        pairs = repeats if look == 1 else 2 * repeats
        times = compare(arms, doubtful, repeats=pairs, storage_dir=storage_dir)
        ratios = ratio_table(times, by, *arms).assign(looks=look)
        latest = pd.concat([latest, ratios]) if len(latest) else ratios
        latest = latest.drop_duplicates(by, keep="last")
        slower = ratios[ratios.low > 1]
        doubtful = list(dict.fromkeys(Cell(*row) for row in slower[by[1:]].itertuples(index=False)))
        if not doubtful:
            break
    order = {cell: position for position, cell in enumerate(cells)}
    position = [order[Cell(*row)] for row in latest[by[1:]].itertuples(index=False)]
    return latest.assign(position=position).sort_values(["position", "operation"]).drop(columns="position")


def spread(
    cell: Cell, arm: str, *, workers: int = 4, storage_dir: str | os.PathLike[str] | None = None
) -> dict[str, float]:
    """Measure how much a connector differs from itself, in other processes and folders.

    Returns
    -------
    dict
        Per operation, the longest over the shortest of the median times of so many workers.
    """
    medians = []
    for _ in tqdm(range(workers), desc=f"{arm} against itself", unit="worker", leave=False):
        times = compare([arm], [cell], repeats=3, storage_dir=storage_dir)
        medians.append(times.groupby("operation").seconds.median())
    table = pd.DataFrame(medians)
    return (table.max() / table.min()).to_dict()


def left_per_key(times: pd.DataFrame) -> pd.DataFrame:
    """Return how many descriptors each call of ``compare`` left per key, next to what the law says.

    Returns
    -------
    pandas.DataFrame
        Per cell and arm: ``predicted`` files per key, and ``least`` and ``most`` that a call left.
    """
    columns = [*Cell.__annotations__, "arm"]
    rows = []
    for values, calls in times.groupby(columns, sort=False):
        cell = dict(zip(columns, values, strict=True))
        left = calls.open_fds.diff().dropna() / cell["keys"]
        predicted = files_per_key(cell["layout"], cell["mla"])
        rows.append({**cell, "predicted": predicted, "least": left.min(), "most": left.max()})
    return pd.DataFrame(rows)


def usable_queues(storage_dir: str | os.PathLike[str] | None = None, *, timeout: float = 60) -> pd.DataFrame:
    """Try the POSIX plugin's queues: ``queue``, ``works``, and the ``reason`` when one does not.

    io_uring is refused in many containers, libaio where its requests are used up; what cannot run is told
    instead of breaking a run.  Each queue is tried in a process of its own, for ``timeout`` seconds at most.
    """
    rows = []
    for queue in QUEUES:
        reason = ""
        try:
            setup = Setup(plugin_params=queue_params(queue), pages=1)
            with Worker(setup, storage_dir=storage_dir, timeout=timeout) as worker:
                moved = worker.call("set", 1)
                if not moved["pages_ok"]:
                    reason = "; ".join(moved["log"])
        except WorkerError as error:
            reason = str(error)
        rows.append({"queue": queue, "works": not reason, "reason": reason})
    return pd.DataFrame(rows)


def _started(
    stack: ExitStack, setups: Mapping[str, Setup], storage_dir: str | os.PathLike[str] | None, timeout: float
) -> dict[str, Worker]:
    """Start a worker per arm, all at once."""

    def start(setup: Setup) -> Worker:
        return stack.enter_context(Worker(setup, storage_dir=storage_dir, timeout=timeout))

    with ThreadPoolExecutor(len(setups)) as pool:
        return dict(zip(setups, pool.map(start, setups.values()), strict=True))


def _timed(worker: Worker, operation: str, keys: int) -> dict[str, Any]:
    row = worker.call(operation, keys)
    if row["pages_ok"] != keys:
        raise WorkerError(f"{operation} of {keys} keys: {row['pages_ok']} pages are right; log: {row['log']}")
    return {name: row[name] for name in MEASURED}


def _check_limit(arms: Sequence[str], cells: Sequence[Cell], repeats: int) -> None:
    """Refuse what would run into the limit half way, where an arm keeps every descriptor."""
    if not {"leaky", f"{PREFIX}0.5.11"} & set(arms):
        return
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for cell in cells:
        kept = 2 * files_per_key(cell.layout, cell.mla) * cell.keys * (repeats + WARM_UP)
        if kept > limit - 64:
            raise ConfigError(
                f"repeats={repeats} with {cell.keys} keys keeps {kept} descriptors open in a leaky arm, "
                f"and the hard limit is {limit}: take fewer repeats or keys"
            )
