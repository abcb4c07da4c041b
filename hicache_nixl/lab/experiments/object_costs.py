"""What an object store costs as clients and servers are added, and what that comes to in a rack, on paper."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from ...errors import ConfigError
from ...host.geometries import model_geometry
from ...lifetimes.pooled_objects.lifetime import SEGMENT
from ..connectors import available
from ..object_store import ObjectStore
from ..progress import tqdm
from ..worker.client import Worker
from ..worker.setup import Setup
from .objects import PATIENCE, checked, object_store, on_objects

ROLES = ("client", "s3", "filer", "volume", "master")  # whose CPU is counted
GROWN = ["processors", "volumes", "clients", "operation", "pages", "seconds", "pages_per_second", "waiting"]
GROWN += [f"{role}_cpu" for role in ROLES]
MIB = 2**20
PAGE_TOKENS = 64
ROUNDS = 6
GETS = 4  # for each set, since a get is so much shorter, and the kernel counts CPU in steps of 10 ms
LIFTED = {
    "processors": "a store with less work for each byte, such as one that moves data by RDMA",
    "network": "a faster network, or fewer bytes: MLA, a smaller dtype, fewer copies",
    "disk": "more disks, or memory for the pages in use",
}


def object_growth(
    released: pd.DataFrame,
    setup: Setup,
    clients: Sequence[int],
    volumes: Sequence[int],
    *,
    keys: int,
    rounds: int = ROUNDS,
    storage_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Let several clients store, and then load, at the same time, with several volume servers.

    Everything runs on this machine, so the table says what more clients and servers cost, and not how they scale.

    Parameters
    ----------
    clients, volumes : sequence of int
        Processes with a connector, and servers that keep the objects: every combination.
    keys : int
        Pages of a call.
    rounds : int
        Sets of each client, and a quarter of its gets; one set before them is not counted.  Objects have one copy.

    Returns
    -------
    pandas.DataFrame
        A row per combination and operation: ``processors`` of this machine; ``pages`` moved, ``seconds`` on the clock,
        ``pages_per_second`` of all clients within their calls;
        ``waiting``, the share of the calls in which a client used no CPU; and the CPU seconds of each of ``ROLES``.
    """
    if not available(released):
        return pd.DataFrame(columns=GROWN)
    rows, here = [], {"processors": len(os.sched_getaffinity(0))}
    for servers in volumes:
        with object_store(servers, storage_dir=storage_dir) as store, ExitStack() as ends:
            started: list[Worker] = []
            for count in tqdm(clients, desc=f"clients, {servers} volume servers", leave=False):
                while len(started) < count:
                    own = on_objects(store, setup, pages=keys, seed=len(started))
                    worker = ends.enter_context(Worker(own, storage_dir=storage_dir, timeout=PATIENCE))
                    started.append(worker)
                _together(started[:count], "set", keys, 1)
                for operation, calls in (("set", rounds), ("get", GETS * rounds)):
                    measured = _phase(store, started[:count], operation, keys, calls)
                    rows.append({**here, "volumes": servers, "clients": count, **measured})
    return pd.DataFrame(rows, columns=GROWN)


def _phase(
    store: ObjectStore, workers: Sequence[Worker], operation: str, keys: int, rounds: int
) -> dict[str, Any]:
    used, start = store.cpu_seconds(), time.perf_counter()
    calls = _together(workers, operation, keys, rounds)
    seconds = time.perf_counter() - start
    busy = {role: value - used.get(role, 0) for role, value in store.cpu_seconds().items()}
    inside, own = (
        sum(row[place] for rows in calls for row in rows) for place in (0, 1)
    )  # seconds of all calls, and of the clients' CPU in them
    rates = [rounds * keys / sum(row[0] for row in rows) for rows in calls]
    cpu = {f"{role}_cpu": sum(v for name, v in busy.items() if name.startswith(role)) for role in ROLES[1:]}
    return {
        "operation": operation,
        "pages": len(workers) * rounds * keys,
        "seconds": seconds,
        "pages_per_second": sum(rates),
        "waiting": max(0.0, 1 - own / inside),
        "client_cpu": own,
        **cpu,
    }


def _together(
    workers: Sequence[Worker], operation: str, keys: int, rounds: int
) -> list[list[tuple[float, float]]]:
    """Let all workers make calls and nothing else at the same time; return seconds and CPU seconds of each call of each worker."""

    def run(worker: Worker) -> list[tuple[float, float]]:
        rows = [checked(worker.call(operation, keys, look_up=False), keys) for _ in range(rounds)]
        return [(row.seconds, row.process_seconds) for row in rows]

    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(run, workers))


def shares(grown: pd.DataFrame) -> pd.DataFrame:
    """Return pages per second, CPU per page and the store's share of it, for the table of a notebook."""
    store = grown[[f"{role}_cpu" for role in ROLES[1:]]].sum(axis=1)
    whole = store + grown.client_cpu
    named = {
        "pages_per_second": grown.pages_per_second.round(),
        "cpu_ms_per_page": 1e3 * whole / grown.pages,
        "store_share_of_cpu": store / whole,
        "client_waits_for": grown.waiting,
    }
    return grown[["volumes", "clients", "operation"]].assign(**named)


# -- on paper ------------------------------------------------------------------------------------------


def cpu_costs(turns: pd.DataFrame) -> pd.DataFrame:
    """Fit CPU seconds = a x requests + b x bytes to the calls of ``object_turns``, neither below zero.

    Returns
    -------
    pandas.DataFrame
        For each ``operation`` and ``side`` (client, store): ``ms_per_request``, ``ms_per_mib``, and
        ``explained``, the share of the variance between the points that the fit explains.

    Examples
    --------
    >>> calls = [("set", size, requests, requests * 0.001 + size * 2 / 2**20, 0.0)
    ...          for size in (2**20, 2**22) for requests in (1, 100)]
    >>> turns = pd.DataFrame(calls, columns=["operation", "bytes", "requests", "store_cpu", "client_cpu"])
    >>> store = cpu_costs(turns.assign(arm="scoped, OBJ", page_bytes=turns.bytes, keys=turns.requests)).iloc[1]
    >>> store.side, round(store.ms_per_request), round(store.ms_per_mib)
    ('store', 1, 2000)
    """
    rows = []
    for operation, calls in turns.dropna(subset="requests").groupby("operation", sort=False):
        points = calls.groupby(["arm", "page_bytes", "keys"])[
            ["requests", "bytes", "client_cpu", "store_cpu"]
        ].mean()
        for side in ("client", "store"):
            measured = points[f"{side}_cpu"].to_numpy(float)
            design = points[["requests", "bytes"]].to_numpy(float) / [1, MIB]
            found, left = nnls(design, measured)
            variance = float(np.square(measured - measured.mean()).sum())
            explained = 1 - left**2 / variance if variance else 1.0
            rows.append((operation, side, *(1e3 * found), explained))
    return pd.DataFrame(rows, columns=["operation", "side", "ms_per_request", "ms_per_mib", "explained"])


def rack(
    costs: pd.DataFrame,
    *,
    model: str,
    prompts_per_second: float,
    tokens_per_prompt: int,
    network_gbit: float,
    loaded_share: float = 0.5,
    cores: int = 32,
    disk_gbyte: float = 10.0,
) -> pd.DataFrame:
    """Work out how many clients and stores a rack needs, by each limit.

    Each page is of ``PAGE_TOKENS`` tokens and kept by ``pooled``: a request has as many pages as a segment.  Of
    each prompt, a share is loaded and the rest stored.  A byte that is stored or loaded goes once through the network
    of a client and once through that of a store, and through the disk of the store.

    Parameters
    ----------
    costs : pandas.DataFrame
        From ``cpu_costs``.
    model : str
        Of ``data/model_geometries.csv``.
    cores, network_gbit, disk_gbyte : float
        Of one machine: processors, Gbit/s, and GB/s of its disks.

    Returns
    -------
    pandas.DataFrame
        ``machine`` (client, store), ``limit``, ``needed`` and ``of_one`` in ``unit``, and ``machines``.  Empty where
        no cost was measured.

    Raises
    ------
    ConfigError
        For an unknown model, or a share that is none.
    """
    if not 0 <= loaded_share <= 1:
        raise ConfigError(f"loaded_share: {loaded_share} is not a share; expected 0 to 1")
    page_bytes = model_geometry(model).page_bytes(PAGE_TOKENS)
    pages = prompts_per_second * (tokens_per_prompt // PAGE_TOKENS)
    moved = {"set": pages * (1 - loaded_share), "get": pages * loaded_share}  # pages a second
    gbyte = pages * page_bytes / 1e9
    busy = {
        side: sum(moved[row.operation] * _page_seconds(row, page_bytes) for row in rows.itertuples())
        for side, rows in costs.groupby("side", sort=False)
    }
    rows = []
    for machine, seconds in busy.items():
        limits = [("processors", seconds, cores, "cores"), ("network", 8 * gbyte, network_gbit, "Gbit/s")]
        limits += [("disk", gbyte, disk_gbyte, "GB/s")] if machine == "store" else []
        rows += [(machine, what, need, one, unit, need / one) for what, need, one, unit in limits]
    return pd.DataFrame(rows, columns=["machine", "limit", "needed", "of_one", "unit", "machines"])


def _page_seconds(cost: Any, page_bytes: int) -> float:
    """Return the CPU seconds of a page, in segments of ``pooled``."""
    each = cost.ms_per_request / max(1, SEGMENT // page_bytes) + cost.ms_per_mib * page_bytes / MIB
    return each / 1e3


def first_limit(plan: pd.DataFrame) -> str:
    """Say in a sentence what a plan comes to, what it is fitted on, where its first limit is, and what would lift it.

    Examples
    --------
    >>> rows = [("client", "network", 80, 100, "Gbit/s", 0.8), ("store", "processors", 96, 32, "cores", 3.0)]
    >>> columns = ["machine", "limit", "needed", "of_one", "unit", "machines"]
    >>> first_limit(pd.DataFrame(rows, columns=columns)).partition(":")[0]
    'With costs fitted to the CPU times of this run on this machine, the rack needs 1 machine for clients and 3 for the store'
    """
    if plan.empty:
        return "Nothing was measured, so nothing is worked out."
    most = plan.groupby("machine").machines.max()
    clients, servers = (math.ceil(most[name]) for name in ("client", "store"))
    told = f"{clients} machine{'s' * (clients > 1)} for clients and {servers} for the store"
    stores = plan[plan.machine == "store"].sort_values("machines", ascending=False)
    worst, following = (stores.iloc[min(place, len(stores) - 1)] for place in (0, 1))
    reason = f"the first limit of a store is its {worst.limit} ({worst.needed:.3g} {worst.unit} are needed, one has {worst.of_one:g})"
    then = f", then its {following.limit}" if len(stores) > 1 else ""
    return (
        f"With costs fitted to the CPU times of this run on this machine, the rack needs {told}: {reason}{then}. "
        f"What would lift it: {LIFTED[worst.limit]}."
    )
