"""Pages in an object store of this machine: what stays open and registered, how fast it is, and what it costs.

NIXL's OBJ plugin loads only in a process that has loaded no other build of NIXL, so each arm has a worker of its own.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any

import pandas as pd

from ...errors import HiCacheNixlError
from ...lifetimes import RELEASED
from ...transport.agent import OBJ_THREADS
from ...transport.bucket import AT_A_TIME
from ..connectors import available, expected
from ..object_store import ObjectStore
from ..progress import tqdm
from ..runs.record import AVAILABLE
from ..worker.call import CallRow
from ..worker.client import Worker, WorkerError
from ..worker.descriptors import count_kinds
from ..worker.releases import PREFIX
from ..worker.schedule import Schedule
from ..worker.setup import Setup
from .alternating import alternating, counted

STORE = "SeaweedFS"  # among the connectors of the table ``released``
OBJ, FILE = "OBJ", "FILE"  # where the pages of an arm are
PATIENCE = 3600  # seconds for all requests to a worker, more than a cell of a notebook has
COUNTS = ["connector", "kept", "call", "operation", "keys", "pages_ok", "open_fds"]
COUNTS += ["storage_files", "sockets", "other", "registrations"]
TURNS = ["page_bytes", "keys", "pair", "arm", "operation", "seconds", "bytes"]
TURNS += ["client_cpu", "store_cpu", "requests"]


def object_stores() -> pd.DataFrame:
    """Try an object store of this machine with NIXL's OBJ plugin, for the table ``released`` of a notebook.

    Returns
    -------
    pandas.DataFrame
        ``connector``, here the name of the store, and ``status``: ``"available"``, or the reason why it cannot be used.
    """
    status = AVAILABLE
    try:
        with object_store() as store, Worker(on_objects(store, Setup("scoped", pages=1))) as worker:
            checked(worker.call("set", 1), 1)
    except HiCacheNixlError as error:
        status = str(error).partition("\n")[0]
    return pd.DataFrame([(STORE, status)], columns=["connector", "status"])


@contextmanager
def object_store(
    volumes: int = 1, *, copies: int = 1, storage_dir: str | os.PathLike[str] | None = None
) -> Iterator[ObjectStore]:
    """Start a store whose data are in a new folder of the disk to measure, and remove them at the end."""
    with (
        tempfile.TemporaryDirectory(dir=storage_dir, prefix="hicache-nixl-") as folder,
        ObjectStore(volumes, replication=f"00{copies - 1}", folder=folder) as store,
    ):
        yield store


def on_objects(store: ObjectStore, setup: Setup, **fields: Any) -> Setup:
    """Return a setup with its pages in a store."""
    return dataclasses.replace(setup, plugin_params=store.endpoint.extra_config(), **fields)


def _kept(store: ObjectStore, setup: Setup, where: str) -> Setup:
    return on_objects(store, setup) if where == OBJ else setup


def checked(row: CallRow, keys: int) -> CallRow:
    """Return the row of a call, or raise ``WorkerError`` if a page is not right."""
    if row.pages_ok != keys:
        raise WorkerError(f"{row.operation} of {keys} keys: {row.pages_ok} pages are right; log: {row.log}")
    return row


# -- what stays ----------------------------------------------------------------------------------------


def object_counts(
    released: pd.DataFrame,
    connectors: Sequence[str],
    setup: Setup,
    *,
    beside: Sequence[str] = ("leaky",),
    storage_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Count descriptors by kind, and registrations, after each call of the schedule of PR #24671.

    All arms run at the same time, since nothing is timed.

    Parameters
    ----------
    released : pandas.DataFrame
        From ``object_stores``; without a store, the table is empty.
    connectors, beside : sequence of str
        With their pages in objects, and in files.

    Returns
    -------
    pandas.DataFrame
        A row per arm and call, the first with call 0 before all of them: ``connector``; ``kept``, where its pages are
        (``"OBJ"`` or ``"FILE"``); ``open_fds`` and, of these, ``storage_files``, ``sockets`` and ``other``.

    Raises
    ------
    WorkerError
    """
    if not available(released):
        return pd.DataFrame(columns=COUNTS)
    schedule = Schedule.pr24671()
    setup = dataclasses.replace(setup, pages=schedule.largest, room=schedule.total("set"))
    arms = [(name, OBJ) for name in connectors] + [(name, FILE) for name in beside]
    with object_store(storage_dir=storage_dir) as store, ThreadPoolExecutor(len(arms)) as pool:
        bar = tqdm(total=len(arms) * len(schedule), desc="schedules", unit="call", leave=False)

        def run(arm: tuple[str, str]) -> list[tuple[Any, ...]]:
            own = _kept(store, setup.for_connector(arm[0]), arm[1])
            with Worker(own, storage_dir=storage_dir, timeout=PATIENCE) as worker:
                rows = [(*arm, 0, "", 0, 0, *_kinds(worker), 0)]
                for number, call in enumerate(schedule, 1):
                    row = worker.call(call.operation, call.keys)
                    counts = (call.operation, call.keys, row.pages_ok, *_kinds(worker), row.registrations)
                    rows.append((*arm, number, *counts))
                    bar.update()
                return rows

        with bar:
            rows = [row for rows in pool.map(run, arms) for row in rows]
    return pd.DataFrame(rows, columns=COUNTS)


def _kinds(worker: Worker) -> tuple[int, ...]:
    """Count all descriptors of a worker, and of these storage files, sockets and others."""
    kinds = count_kinds(worker.pid, f"{worker.folder}/").kinds
    storage, sockets = kinds["storage file"], kinds["socket"]
    return kinds.total(), storage, sockets, kinds.total() - storage - sockets


def pages_by_role(counts: pd.DataFrame) -> pd.DataFrame:
    """Return how many pages the calls of released connectors asked for, and how many were right, by their role.

    Examples
    --------
    >>> rows = [("sglang==0.5.23", 2, 2), ("scoped", 2, 2), ("sglang==0.5.23", 2, 1)]
    >>> by_role = pages_by_role(pd.DataFrame(rows, columns=["connector", "keys", "pages_ok"]))
    >>> by_role.asked.to_dict()["newest"], by_role.right.to_dict()["newest"], by_role.right.to_dict()["before"]
    (4, 3, 0)
    """
    known = expected().role
    released = counts[counts.connector.str.startswith(PREFIX)]
    sums = released.groupby(released.connector.map(known).rename("role"))[["keys", "pages_ok"]].sum()
    every = sums.reindex(known.unique(), fill_value=0).astype(int).rename_axis("role")
    return every.rename(columns={"keys": "asked", "pages_ok": "right"})


def most_sockets(lifetime: str) -> int:
    """Return how many connections a lifetime may have to a store: one for each thread of NIXL, and for each lookup at a time.

    The released connectors, and the lifetimes that follow the PR, leave both to NIXL, which has half as many threads as there are processors.

    Examples
    --------
    >>> most_sockets("scoped"), most_sockets("pooled")
    (16, 16)
    """
    if lifetime in RELEASED or lifetime.startswith(PREFIX):
        return max(1, (os.cpu_count() or 1) // 2)
    return int(OBJ_THREADS) + AT_A_TIME


# -- how fast ------------------------------------------------------------------------------------------


def object_turns(
    released: pd.DataFrame,
    setup: Setup,
    page_sweep: Sequence[int],
    keys_sweep: Sequence[int],
    *,
    repeats: int,
    arms: Sequence[tuple[str, str]] = (("pooled", OBJ), ("scoped", OBJ), ("scoped", FILE)),
    storage_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Time a set and the get of the same pages for each arm in turn, and count what they cost.

    Parameters
    ----------
    page_sweep, keys_sweep : sequence of int
        Bytes of a page, and pages of a call: every combination is a point.
    arms : sequence of tuple
        A connector, and where its pages are.  The files and the data of the store are on one disk, and both are in the
        page cache.

    Returns
    -------
    pandas.DataFrame
        A row per call: ``page_bytes``, ``keys``, ``pair``, ``arm`` (such as ``"pooled, OBJ"``), ``operation``,
        ``seconds``, ``bytes``; ``client_cpu``, seconds of the client's threads on a core; and with objects
        ``store_cpu``, seconds of all processes of the store, and ``requests``.

    Raises
    ------
    WorkerError
        When a call did not store or read back every page.
    """
    if not available(released):
        return pd.DataFrame(columns=TURNS)
    rows: list[dict[str, Any]] = []
    with ExitStack() as ends:
        store = ends.enter_context(object_store(storage_dir=storage_dir))
        setups = {f"{name}, {kept}": _kept(store, setup.for_connector(name), kept) for name, kept in arms}
        workers = {
            arm: ends.enter_context(Worker(own, storage_dir=storage_dir, timeout=PATIENCE))
            for arm, own in setups.items()
        }
        for point, (size, keys) in enumerate(product(page_sweep, keys_sweep)):
            for place, (arm, worker) in enumerate(workers.items()):  # pages of different keys
                seed, room = point * len(workers) + place, keys * (repeats + 2)
                own = dataclasses.replace(setups[arm], page_bytes=size, pages=keys, seed=seed, room=room)
                worker.open(own)
            turns = alternating(list(workers), repeats, label=f"{keys} pages of {size} bytes")
            for pair, arm in turns:
                counting = store if arm.endswith(OBJ) else None
                for operation in ("set", "get"):
                    measured = _turn(workers[arm], operation, keys, counting)
                    values = (size, keys, pair, arm, operation, *measured)
                    rows.append(dict(zip(TURNS, values, strict=True)))
    return counted(rows)


def _turn(worker: Worker, operation: str, keys: int, store: ObjectStore | None) -> tuple[float | None, ...]:
    """Make a call and nothing else; return its seconds, bytes, CPU of client and store, and requests."""
    if store is None:
        row = checked(worker.call(operation, keys, look_up=False), keys)
        return row.seconds, row.bytes, row.process_seconds, None, None
    before, used = sum(store.requests().values()), sum(store.cpu_seconds().values())
    row = checked(worker.call(operation, keys, look_up=False), keys)
    used = sum(store.cpu_seconds().values()) - used
    return row.seconds, row.bytes, row.process_seconds, used, sum(store.requests().values()) - before


def requests_per_page(turns: pd.DataFrame) -> pd.DataFrame:
    """Return how many requests a page takes: ``arm``, ``page_bytes``, ``keys``, and the requests of a ``set`` and ``get``.

    Examples
    --------
    >>> calls = [("pooled, OBJ", 4096, 8, "set", 1), ("pooled, OBJ", 4096, 8, "get", 2)]
    >>> turns = pd.DataFrame(calls, columns=["arm", "page_bytes", "keys", "operation", "requests"])
    >>> print(requests_per_page(turns).to_string(index=False))
            arm  page_bytes  keys   set  get
    pooled, OBJ        4096     8 0.125 0.25
    """
    point, operations = ["arm", "page_bytes", "keys"], ["set", "get"]
    calls = turns.dropna(subset="requests")
    each = calls.assign(of_a_page=calls.requests / calls["keys"]).astype({"of_a_page": float})
    means = each.pivot_table(index=point, columns="operation", values="of_a_page", sort=False)
    return means.reindex(columns=operations).rename_axis(columns=None).reset_index()
