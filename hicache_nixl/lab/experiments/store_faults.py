"""Calls of a connector on an object store while a part of it is killed, and started again.

OBJ is loaded in worker processes only: a process can load one build of NIXL, and OBJ needs that of CUDA 12.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ...errors import ConfigError
from ..object_store import Endpoint, ObjectStore
from ..progress import tqdm
from ..worker.call import CallRow
from ..worker.client import Worker
from ..worker.setup import Setup
from .objects import PATIENCE, object_store

VOLUME, S3 = "volume server", "S3"  # what can go away
NONE = "none away"  # the name of calls with all parts, in a summary
SERVERS = 3  # volume servers
READ = 4  # batches that a get asks for
PACE = 0.1  # seconds between batches
MOST_SETS = 60  # of a run, whose pages are all read at its end
READ_ALL = "read all"
OPERATIONS = ("set", "get")
FAULT_COLUMNS = [
    *("lifetime", "replication", "fault", "operation", "began", "seconds", "away", "event", "pages"),
    *("right", "failed", "wrong", "lines", "said", "open_fds", "registrations"),
]


def through_a_fault(
    lifetime: str,
    replication: str = "001",
    *,
    fault: str = VOLUME,
    batches: int = 6,
    pages: int = 32,
    page_bytes: int = 65536,
    timeout: float = 10.0,
    storage_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Set and get batches while a part of the store is killed in the middle of a call, and started again later.

    That is done twice: a part is killed in the middle of a set, then one in the middle of a get.

    Parameters
    ----------
    lifetime : str
    replication : {"001", "000"}
        Two copies of each object on three volume servers, or one.
    fault : {"volume server", "S3"}
        What is killed: a volume server, first the first and then the second one; or the S3 endpoint of a store with one
        volume server, whose ``replication`` is then ``"000"``.
    batches : int
        Sets, and gets of the last four of them, before each fault and during it.
    pages, page_bytes : int
        Of a set.
    timeout : float
        The connector's ``object_timeout``, in seconds.
    storage_dir : path, optional
        An existing folder, in which a new one for the objects is made.

    Returns
    -------
    pandas.DataFrame
        A row for each call, in order: ``lifetime``, ``replication``, ``fault``; ``operation`` (``"set"``, ``"get"``, or
        ``"read all"``: a get of every page that was acknowledged, at the end of each fault, and at the very end);
        ``began``, seconds since the start, and ``seconds`` in the connector; ``away``, which part was being killed and not
        back for at least a part of the call, empty for none; ``event``, ``"killed"`` or ``"back"``, of a part during the
        call, else empty; ``pages`` asked for; ``right``, those loaded bit for bit, or stored, as the connector says;
        ``failed``, those whose answer was False; ``wrong``, the others: loaded with other bytes, or, of a set, 1 where
        ``batch_exists`` does not find what was stored; ``lines`` logged by the connector, and the first of them in
        ``said``; ``open_fds`` and ``registrations`` after the call.
    """
    if fault not in (VOLUME, S3):
        raise ConfigError(f"fault: {fault!r} is unknown; expected {VOLUME!r} or {S3!r}")
    volumes, replication = (SERVERS, replication) if fault == VOLUME else (1, "000")
    with ExitStack() as ends:
        copies = int(replication) + 1
        store = ends.enter_context(object_store(volumes, copies=copies, storage_dir=storage_dir))
        setup = setup_on(
            store.endpoint, lifetime, timeout, pages=pages * MOST_SETS, page_bytes=page_bytes, seed=seed
        )
        worker = ends.enter_context(Worker(setup, storage_dir=storage_dir, timeout=PATIENCE))
        course = ends.enter_context(_Course(worker, pages))
        for number, operation in enumerate(
            tqdm(OPERATIONS, desc=f"{lifetime}, {replication}", leave=False), 1
        ):
            part = _Part.of(store, fault, number)
            course.batches(batches)
            course.during(operation, part.kill, part.name, "killed")
            course.batches(batches)
            course.read_all()
            course.during(OPERATIONS[number % 2], part.start, part.name, "back")
        course.batches(batches)
        course.read_all()
        return course.table(lifetime, replication, fault)


@dataclass(frozen=True)
class _Part:
    """A part of a store that can go away."""

    name: str
    kill: Callable[[], None]
    start: Callable[[], None]

    @classmethod
    def of(cls, store: ObjectStore, fault: str, number: int) -> _Part:
        if fault == S3:
            return cls(S3, store.stop, store.start)
        name = f"{VOLUME} {number}"
        return cls(name, lambda: store.stop_volume(number), lambda: store.start_volume(number))


class _Course:
    """Calls of one connector, one after the other, and what happened meanwhile."""

    def __init__(self, worker: Worker, pages: int):
        self._worker, self._pages = worker, pages
        self._sets, self._acknowledged = 0, 0
        self._began = time.monotonic()
        self._rows: list[tuple[str, float, float, CallRow]] = []
        self._events: list[tuple[str, str, float, float]] = []
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> _Course:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def _now(self) -> float:
        return time.monotonic() - self._began

    def call(self, operation: str, pages: int, name: str = "") -> None:
        """Make a call; nothing is asked for as long as nothing was acknowledged."""
        if not pages:
            return
        began = self._now()
        row = self._worker.call(operation, pages)
        self._rows.append((name or operation, began, self._now(), row))
        if operation == "set":
            self._sets += 1
            self._acknowledged += row.claimed

    def one(self, operation: str) -> None:
        """Set new pages, while there is room for them, or get those of the last sets."""
        if operation == "set" and self._sets < MOST_SETS:
            self.call("set", self._pages)
        else:
            self.call("get", min(READ * self._pages, self._acknowledged))
        time.sleep(PACE)

    def batches(self, count: int) -> None:
        """Set and get in turn, so many times."""
        for _ in range(count):
            for operation in OPERATIONS:
                self.one(operation)

    def read_all(self) -> None:
        """Get every page that was acknowledged."""
        self.call("get", self._acknowledged, READ_ALL)

    def during(self, operation: str, action: Callable[[], None], what: str, event: str) -> None:
        """Do something in the middle of a call, and go on until it is done."""
        shortest = pd.Series([end - begin for name, begin, end, _ in self._rows if name == operation]).min()
        acting = self._thread.submit(self._act, shortest / 2, action, what, event)
        self.one(operation)
        while not acting.done():
            self.batches(1)
        acting.result()

    def _act(self, delay: float, action: Callable[[], None], what: str, event: str) -> None:
        time.sleep(delay)
        since = self._now()
        action()
        self._events.append((what, event, since, self._now()))

    def table(self, lifetime: str, replication: str, fault: str) -> pd.DataFrame:
        """Return the columns of ``through_a_fault``."""
        rows = []
        for name, began, ended, row in self._rows:
            counts = (row.pages_ok, row.keys - row.claimed, row.claimed - row.pages_ok)
            said = row.log[0] if row.log else ""
            left = (row.open_fds, row.registrations)
            when = (began, row.seconds, self._away(began, ended), self._event(began, ended))
            rows.append(
                (lifetime, replication, fault, name, *when, row.keys, *counts, len(row.log), said, *left)
            )
        return pd.DataFrame(rows, columns=FAULT_COLUMNS)

    def _away(self, began: float, ended: float) -> str:
        away = ""
        for what, event, since, until in self._events:
            if event == "killed" and since <= ended:
                away = what
            elif event == "back" and until <= began:
                away = ""
        return away

    def _event(self, began: float, ended: float) -> str:
        """Return what happened during a call or in the pause before it."""
        pause = [end for _, _, end, _ in self._rows if end <= began]
        before = max(pause, default=0.0)
        return ", ".join(event for _, event, _, until in self._events if before < until <= ended)


def setup_on(endpoint: Endpoint, lifetime: str, timeout: float, **more: Any) -> Setup:
    """Return the setup of a worker whose pages are in an object store; ``timeout`` is in seconds."""
    return Setup(lifetime, plugin_params={**endpoint.extra_config(), "object_timeout": timeout}, **more)


def through_faults(table: pd.DataFrame) -> pd.DataFrame:
    """Sum up a run through a fault.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``through_a_fault``, or several of them together.

    Returns
    -------
    pandas.DataFrame
        A row for each lifetime, replication, fault and part, where ``part`` is ``"none away"`` for calls with all parts:
        ``calls``, ``failed`` pages of sets and gets, ``unread``, the pages of ``"read all"`` that failed,
        ``acknowledged``, those that were asked for; ``wrong``, as there; ``usual`` and ``longest``, seconds of a call;
        ``lines`` logged.
    """
    rows = []
    named = table.assign(away=table.away.replace("", NONE))
    for names, part in named.groupby(["lifetime", "replication", "fault", "away"], sort=False):
        whole = part.operation == READ_ALL
        failed, last = part.failed[~whole].sum(), part[whole].tail(1)
        rows.append(
            {
                **dict(zip(("lifetime", "replication", "fault", "part"), names, strict=True)),
                "calls": len(part),
                "failed": failed,
                "unread": last.failed.sum(),
                "acknowledged": last.pages.sum(),
                "wrong": part.wrong.sum(),
                "usual": part.seconds[~whole].median(),
                "longest": part.seconds.max(),
                "lines": part.lines.sum(),
            }
        )
    return pd.DataFrame(rows)
