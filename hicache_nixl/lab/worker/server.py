"""The process in which a connector is measured, forked by ``lab.nursery``.

As fresh as a new interpreter: no descriptors of a notebook's kernel in the count, a limit of its own, a nixl of
its own.  It answers requests, one JSON message each, over the socket it is given, and ends when the other side
closes that.  What it prints goes to a file of the parent's.  It counts nothing about its descriptors: the
parent does, from outside, so that counting works at the limit too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from ...config import NixlBackendConfig
from ...connector import HiCacheNixl
from ...errors import HiCacheNixlError
from ...host.pools import pool_for_page_bytes
from ...lifetimes import scoped
from ...transport.agent import load_nixl
from ...transport.registration import growing_pause, steady_pause
from . import descriptors, faults, releases
from .schedule import OPERATIONS, files_per_key
from .setup import Setup, key_of

ERRNO = re.compile(r"\[Errno (\d+)\]")
MIX = 0x1E3779B97F4A7C15  # odd, so that every key's page differs in every number


class LogTail(logging.Handler):
    """Keeps what a call logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[str] = deque(maxlen=20)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's message."""
        self.lines.append(record.getMessage())

    def take(self) -> list[str]:
        """Return the lines since the last take."""
        lines = list(self.lines)
        self.lines.clear()
        return lines


class RegistrationCounter:
    """Counts the regions that are registered with NIXL, whoever registers them, and times that.

    Attributes
    ----------
    alive : int
        Regions registered now.
    seconds : float
        Spent on registering and deregistering since the last ``take_seconds``.
    """

    def __init__(self, agent_class: Any) -> None:
        self.alive = 0
        self.seconds = 0.0
        register, deregister = agent_class.register_memory, agent_class.deregister_memory

        def counting_register(agent: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            registration = register(agent, *args, **kwargs)
            self.seconds += time.perf_counter() - start
            self.alive += registration.descCount()
            return registration

        def counting_deregister(agent: Any, registration: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = deregister(agent, registration, *args, **kwargs)
            self.seconds += time.perf_counter() - start
            self.alive -= registration.descCount()
            return result

        agent_class.register_memory = counting_register
        agent_class.deregister_memory = counting_deregister

    def take_seconds(self) -> float:
        """Return the seconds since the last take."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Host:
    """One connector after the other, the pool it serves, and the pages that were stored."""

    def __init__(self, storage_dir: str):
        self.storage_dir = storage_dir
        self.log = LogTail()
        logging.getLogger().addHandler(self.log)
        self.registrations: RegistrationCounter | None = None
        self.connector: Any = None
        self.padding: list[int] = []
        self.traces = ExitStack()
        self.opened: dict[int, descriptors.Opened] = {}

    def open(self, setup: dict[str, Any], wheel: str | None = None) -> dict[str, Any]:
        """Make a connector, out of a wheel or a folder or our own, after the end of the one before it."""
        self.end_connector()
        self.setup = Setup(**setup)
        plugin = NixlBackendConfig(self.setup.params).plugin
        self.agent_class = load_nixl(plugin).nixl_agent
        self.registrations = self.registrations or RegistrationCounter(self.agent_class)
        self.pool = pool_for_page_bytes(
            self.setup.page_bytes, pages=self.setup.pages, layout=self.setup.layout, mla=self.setup.mla
        )
        self.connector = self._make_connector(wheel)
        generator = torch.Generator().manual_seed(self.setup.seed)
        self.base = torch.randint(-(2**62), 2**62, (self.setup.page_bytes // 8,), generator=generator)
        self.poison = torch.full_like(self.base, -1).view(self.pool.dtype)
        self.next_id = 0
        self.stored: deque[int] = deque(maxlen=self.setup.pages)  # no call asks for more
        self.log.take()
        self.registrations.take_seconds()
        return {}

    def _make_connector(self, wheel: str | None) -> Any:
        config = self.setup.storage_config()
        if wheel is None:
            connector = HiCacheNixl(config, self.storage_dir)
            connector.register_mem_pool_host(self.pool)
            return connector
        released, storage_config = releases.connector_class(wheel)
        try:
            connector = released(storage_config(**vars(config)), self.storage_dir)
            connector.register_mem_pool_host(self.pool)
        except Exception as error:
            raise HiCacheNixlError(
                f"its connector cannot be made: {type(error).__name__}: {error}"
            ) from error
        return connector

    def end_connector(self) -> None:
        """Close the connector and every storage file that it leaked, and remove its pages."""
        if self.connector is None:
            return
        self.connector.clear()
        if hasattr(self.connector, "close"):  # 0.5.11 and 0.5.12 have none
            self.connector.close()
        self.connector = None
        self.registrations.alive = 0
        table = descriptors.fd_table(storage_dir=self.storage_dir)
        for fd in table[table.kind == "storage file"].fd:
            os.close(fd)

    def limits(self, baseline_fds: int | None, nofile_limit: int | None) -> dict[str, Any]:
        """Pad this process with open descriptors up to a number, and set its limit."""
        now = descriptors.count_fds(os.getpid()) - 1  # the listing has one of its own
        if baseline_fds is not None:
            if baseline_fds < now:
                raise HiCacheNixlError(
                    f"baseline_fds is {baseline_fds}, and the worker itself has {now} open"
                )
            self.padding += [os.open(os.devnull, os.O_RDONLY) for _ in range(baseline_fds - now)]
            now = baseline_fds
        if nofile_limit is not None:
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            if not now < nofile_limit <= hard:
                raise HiCacheNixlError(f"nofile_limit is {nofile_limit}; it takes {now + 1} to {hard} here")
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile_limit, hard))
        return {}

    def trace(self) -> dict[str, Any]:
        """Note from now on which line opens each descriptor."""
        self.opened = self.traces.enter_context(descriptors.trace_opens())
        return {}

    def opened_by(self) -> dict[str, Any]:
        """Tell which line opened each storage file that is open now."""
        return {"descriptors": descriptors.opened_by(self.opened, self.storage_dir)}

    def call(
        self, operation: str, keys: int, fault: list[Any] | None = None, watch: bool = False
    ) -> dict[str, Any]:
        """Make one batch call and check every page that it brought back.

        Parameters
        ----------
        fault : list, optional
            Step, number and kind of what is to fail.
        watch : bool
            Add what the call did, step by step; always with a fault.
        """
        if operation not in OPERATIONS:
            raise HiCacheNixlError(
                f"operation {operation!r} is unknown; it takes one of {', '.join(OPERATIONS)}"
            )
        run = {"set": self._set, "get": self._get, "exists": self._exists}[operation]
        raised, watched, self.spent = None, {}, {"seconds": 0.0, "core_seconds": 0.0}
        with ExitStack() as during:
            if fault or watch:
                made = faults.Fault(*fault) if fault else None
                seen = during.enter_context(faults.watched(self.agent_class, self.storage_dir, made))
            try:
                pages_ok = run(keys)
            except (
                BaseException
            ) as error:  # a KeyboardInterrupt is injected here and must be told, not obeyed
                pages_ok, raised = 0, type(error).__name__
        if fault or watch:
            watched = seen.as_columns()
        lines = self.log.take()
        found = ERRNO.search("\n".join(lines))
        return {
            "operation": operation,
            "keys": keys,
            "files": keys * files_per_key(self.setup.layout, self.setup.mla),
            "bytes": 0 if operation == "exists" else pages_ok * self.setup.page_bytes,
            **self.spent,
            "registrations": self.registrations.alive,
            "registration_seconds": self.registrations.take_seconds(),
            "pages_ok": pages_ok,
            "errno": int(found[1]) if found else 0,
            "log": lines,
            "raised": raised,
            **watched,
        }

    def pause(self, name: str) -> dict[str, Any]:
        """Choose how ``scoped`` waits from now on: one of ``PAUSES``."""
        if name not in PAUSES:
            raise HiCacheNixlError(f"pause {name!r} is unknown; it takes one of {', '.join(PAUSES)}")
        if self.setup.connector != "scoped":
            raise HiCacheNixlError(
                f"pause: {self.setup.connector} waits in a way of its own; it takes scoped"
            )
        scoped.growing_pause = PAUSES[name]
        return {}

    def register_files(self, calls: int) -> dict[str, Any]:
        """Call the connector's ``register_files`` with one file, and close the owner where it returns one.

        ``offered`` in the answer tells whether it has that method: SGLang from 0.5.13 on has not.
        """
        if not hasattr(self.connector, "register_files"):
            return {"offered": False}
        path = os.path.join(self.storage_dir, "registered")
        open(path, "ab").close()
        for _ in range(calls):
            owner = self.connector.register_files([path])
            if owner is None:
                raise HiCacheNixlError(f"register_files failed: {'; '.join(self.log.take())}")
            if hasattr(owner, "close"):
                owner.close()
        return {"offered": True}

    def _set(self, count: int) -> int:
        ids = list(range(self.next_id, self.next_id + count))
        self.next_id += count
        for position, page_id in enumerate(ids):
            self.pool.set_from_flat_data_page(position * self.pool.page_size, self._page(page_id))
        keys, indices = self._keys(ids), self.pool.page_indices(0, count)
        with self._timed():
            results = self.connector.batch_set_v1(keys, indices)
        self.stored += [page_id for page_id, stored in zip(ids, results, strict=True) if stored]
        return sum(results)

    def _get(self, count: int) -> int:
        ids = self._latest(count)
        for position in range(count):
            self.pool.set_from_flat_data_page(position * self.pool.page_size, self.poison)
        keys, indices = self._keys(ids), self.pool.page_indices(0, count)
        with self._timed():
            results = self.connector.batch_get_v1(keys, indices)
        good = 0
        for position, (page_id, loaded) in enumerate(zip(ids, results, strict=True)):
            page = self.pool.get_data_page(position * self.pool.page_size)
            good += bool(loaded) and torch.equal(
                page.view(torch.int64), self._page(page_id).view(torch.int64)
            )
        return good

    def _exists(self, count: int) -> int:
        keys = self._keys(self._latest(count))
        with self._timed():
            return self.connector.batch_exists(keys)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Measure the connector alone: seconds on the clock, and of this thread on a core."""
        clock, core = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.spent = {"seconds": time.perf_counter() - clock, "core_seconds": time.thread_time() - core}

    def _latest(self, count: int) -> list[int]:
        stored = list(self.stored)
        if not stored:
            return list(range(count))  # none of them is there
        return stored[-count:] if count <= len(stored) else [stored[i % len(stored)] for i in range(count)]

    def _page(self, page_id: int) -> torch.Tensor:
        return (self.base + page_id * MIX % 2**62).view(self.pool.dtype)

    def _keys(self, ids: list[int]) -> list[str]:
        return [key_of(self.setup.seed, page_id) for page_id in ids]


PAUSES = {"none": lambda running: None, "growing": growing_pause, "steady": steady_pause}
REQUESTS = ("open", "limits", "trace", "opened_by", "call", "pause", "register_files")


def serve(connection: Connection, storage_dir: str) -> None:
    """Answer requests until the other side is gone; then remove the storage folder."""
    host = None
    try:
        while True:
            request = json.loads(connection.recv_bytes())
            name = request.pop("request")
            try:
                host = host or Host(storage_dir)
                if name not in REQUESTS:
                    raise HiCacheNixlError(
                        f"request {name!r} is unknown; it takes one of {', '.join(REQUESTS)}"
                    )
                answer = getattr(host, name)(**request)
            except HiCacheNixlError as error:
                answer = {"error": str(error)}
            connection.send_bytes(json.dumps(answer).encode())
    except (EOFError, ConnectionError):
        pass  # the parent closed its side, or has died
    finally:
        shutil.rmtree(storage_dir, ignore_errors=True)


def main(connection: Connection, storage_dir: str) -> None:
    """Run a worker on a socket and a storage folder."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    torch.set_num_threads(1)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    serve(connection, storage_dir)
