"""Connectors and servers that share an object store: the ranks of a model with MLA, and two real SGLang servers."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pandas as pd

from ..connectors import available
from ..object_store import ObjectStore
from ..progress import tqdm
from ..server import Server
from ..server.process import PAGE
from ..server.server import pages_of
from ..worker.client import Worker
from .objects import STORE, object_store, object_stores
from .serving import FIRST, OUTPUT, prompt_of, servers, versions_of
from .store_faults import setup_on

RANKS = 8
TIMEOUT = 10.0  # seconds, as by default
RANK_COLUMNS = [
    *("lifetime", "turn", "rank", "operation", "pages", "right", "seconds", "objects"),
    *("put", "get", "list"),
]
SERVER_COLUMNS = [
    *("lifetime", "repeat", "server", "step", "tokens", "from_storage", "hit_rate", "first_token"),
    *("same_output", "fds_before", "open_fds", "objects"),
]


def one_writes_eight_read(
    lifetime: str,
    *,
    ranks: int = RANKS,
    pages: int = 32,
    page_bytes: int = 65536,
    storage_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Let rank 0 of a model with MLA store pages, and all ranks load them, each with a connector and a process of its own.

    Parameters
    ----------
    lifetime : str
    ranks, pages, page_bytes : int
    storage_dir : path, optional
        An existing folder, in which a new one for the objects is made.

    Returns
    -------
    pandas.DataFrame
        A row for each call: ``lifetime``, ``turn`` (``"alone"``: one rank after the other, ``"together"``: all at the
        same time), ``rank``, ``operation``, ``pages`` asked for, ``right``: loaded bit for bit, or stored, as the
        connector says, ``seconds``; ``objects`` in the store after the call; ``put``, ``get`` and ``list``: requests that S3 has counted for this
        call.  The requests of ranks that read together are counted together, and given as missing values.
    """
    with ExitStack() as ends:
        store = ends.enter_context(object_store(storage_dir=storage_dir))
        more = {"pages": pages, "page_bytes": page_bytes, "mla": True, "tp_size": ranks, "seed": seed}
        workers = []
        for rank in tqdm(range(ranks), desc="ranks", leave=False):
            setup = setup_on(store.endpoint, lifetime, TIMEOUT, tp_rank=rank, **more)
            workers.append(ends.enter_context(Worker(setup, storage_dir=storage_dir)))
        rows = [_alone(store, workers, 0, "set", pages)]
        rows += [_alone(store, workers, rank, "get", pages) for rank in range(ranks)]
        rows += _together(store, workers, pages)
    return pd.DataFrame([(lifetime, *row) for row in rows], columns=RANK_COLUMNS)


def _alone(
    store: ObjectStore, workers: Sequence[Worker], rank: int, operation: str, pages: int
) -> tuple[Any, ...]:
    before = Counter(store.requests())
    row = workers[rank].call(operation, pages, look_up=False)
    asked = Counter(store.requests()) - before
    counts = (_objects(store), *(asked[kind] for kind in ("PUT", "GET", "LIST")))
    return ("alone", rank, operation, pages, row.pages_ok, row.seconds, *counts)


def _together(store: ObjectStore, workers: Sequence[Worker], pages: int) -> list[tuple[Any, ...]]:
    with ThreadPoolExecutor(len(workers)) as threads:
        answers = list(threads.map(lambda worker: worker.call("get", pages), workers))
    objects = _objects(store)
    return [
        ("together", rank, "get", pages, row.pages_ok, row.seconds, objects, None, None, None)
        for rank, row in enumerate(answers)
    ]


def _objects(store: ObjectStore) -> int:
    return sum(len(some) for some in store.endpoint.client().list())


def servers_with_objects(role: str = "newest") -> pd.DataFrame:
    """Make the environment of a server, and try an object store, for the table ``released`` of a notebook."""
    return pd.concat([servers(role), object_stores()], ignore_index=True)


def two_servers(
    released: pd.DataFrame,
    role: str = "newest",
    lifetimes: Sequence[str] = ("pooled", "scoped"),
    *,
    prompts: int = 4,
    model: str = "larger",
    storage_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Let one real server store prompts in an object store, and another one load them.

    In each repeat the first server computes a new prompt and stores it (``"stored"``), and is sent it ``"again"``, when its
    pages are on the device; the second one computes a new prompt of its own (``"cold"``), and is then sent that of the first
    (``"shared"``).  The outputs of ``"again"`` and ``"shared"`` are compared: both continue the same pages by the same tokens.
    A cold run computes more tokens at once, and sums of bfloat16 depend on that.

    Parameters
    ----------
    released : pandas.DataFrame
        From ``servers_with_objects``; nothing is run where the release or the store is not available.
    role : str
        Of the release, as in ``expected()``.
    lifetimes : sequence of str
        Of this package; each has a store and two servers of its own.
    prompts : int
        Repeats; one more comes before them, in which a server still loads code, and is left out.
    model : {"small", "larger"}
        The larger one takes long enough to compute a prompt that its loading shows in the time to the first token.
    storage_dir : path, optional
        An existing folder, in which a new one for the objects is made.

    Returns
    -------
    pandas.DataFrame
        A row for each prompt that a server was sent: ``lifetime``, ``repeat`` from 1, ``server`` (1 or 2), ``step``;
        ``tokens`` of the whole pages of the prompt, ``from_storage``, how many of them were loaded, and ``hit_rate``, their
        share; ``first_token``, seconds; ``same_output`` of ``"shared"``, whether the output is that of ``"again"``;
        ``fds_before``, descriptors of the scheduler after its first repeat, and ``open_fds`` after the step;
        ``objects`` in the store after the step.
    """
    no_store = STORE in set(released.connector) - set(available(released))
    tables = [
        _shared(version, lifetime, prompts, model, storage_dir, seed)
        for version in ([] if no_store else versions_of(released[released.connector != STORE], [role]))
        for lifetime in lifetimes
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=SERVER_COLUMNS)


def two_first_tokens(table: pd.DataFrame) -> pd.DataFrame:
    """Return the times to the first token of the second of ``two_servers``, as ``first_tokens`` returns them.

    Examples
    --------
    >>> rows = [("pooled", 1, 2, "cold", 2048, 0, 1.2), ("pooled", 1, 2, "shared", 2048, 2048, 0.4)]
    >>> columns = ["lifetime", "repeat", "server", "step", "tokens", "from_storage", "first_token"]
    >>> print(two_first_tokens(pd.DataFrame(rows, columns=columns)).to_string(index=False))
       arm  repeat  origin  tokens  seconds
    pooled       1    cold    2048      1.2
    pooled       1 storage    2048      0.4
    """
    second = table[(table.server == 2) & table.step.isin(("cold", "shared"))]
    named = second.rename(columns={"lifetime": "arm", "step": "origin", "first_token": "seconds"})
    named = named.assign(origin=named.origin.replace("shared", "storage"))
    return named[["arm", "repeat", "origin", "tokens", "seconds"]].reset_index(drop=True)


def _shared(
    version: str,
    lifetime: str,
    prompts: int,
    model: str,
    storage_dir: str | os.PathLike[str] | None,
    seed: int,
) -> pd.DataFrame:
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    with ExitStack() as ends:
        store = ends.enter_context(object_store(storage_dir=storage_dir))
        what: dict[str, Any] = {"lifetime": lifetime, "objects": store.endpoint, "model": model}
        two = [ends.enter_context(Server(version, "hicache_nixl", **what)) for _ in range(2)]
        for server in two:
            server.ask(prompt_of(chance)[:FIRST], OUTPUT)
        for repeat in tqdm(range(prompts + 1), desc=f"two servers, {lifetime}", leave=False):
            for row in _repeat(two, prompt_of(chance), prompt_of(chance)):
                rows.append({"lifetime": lifetime, "repeat": repeat, **row, "objects": _objects(store)})
    table = pd.DataFrame(rows)
    first = table[table.repeat == 0].groupby("server").open_fds.last()
    table["fds_before"] = table.server.map(first)
    return table.loc[table.repeat > 0, SERVER_COLUMNS].reset_index(drop=True)


def _repeat(two: Sequence[Server], common: Sequence[int], own: Sequence[int]) -> list[dict[str, Any]]:
    """Send a new prompt to the first server, twice, another new one to the second, and then that of the first."""
    rows: list[dict[str, Any]] = []
    expected: tuple[int, ...] = ()
    for number, step, prompt in (
        (1, "stored", common),
        (1, "again", common),
        (2, "cold", own),
        (2, "shared", common),
    ):
        server, tokens, had = two[number - 1], PAGE * pages_of(prompt), two[0].stored()
        answer = server.ask(prompt, OUTPUT)
        server.settle(had + pages_of(prompt) if step in ("stored", "cold") else None)
        if step == "again":
            expected = answer.tokens
        rows.append(
            {
                "server": number,
                "step": step,
                "tokens": tokens,
                "from_storage": answer.storage,
                "hit_rate": answer.storage / tokens,
                "first_token": answer.first_token,
                "same_output": answer.tokens == expected if step == "shared" else None,
                "open_fds": len(server.fds()),
            }
        )
    return rows
