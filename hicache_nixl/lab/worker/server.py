"""The process in which a connector is measured, forked by ``forkserver``.

Like a new interpreter, it has no descriptors of a notebook's kernel, its own limit and its own nixl.  It answers
requests, one JSON message each, on the socket that it is given, and ends when the other side closes it.  Its output
goes to a file of the parent.  The parent counts its descriptors, from outside, so that counting also works at the
limit.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ...config import OBJ_PLUGINS, NixlBackendConfig
from ...connector import HiCacheNixl
from ...errors import HiCacheNixlError
from ...lifetimes import scoped
from ...lifetimes.pooled import folder as pooled_folder
from ...transport.agent import load_nixl
from ...transport.registration import growing_pause, steady_pause
from ..bench.arms import OPERATIONS as ALL
from ..bench.arms import Arm, Asked
from . import descriptors, faults, releases
from .call import CallRow
from .observers import LogTail, RegistrationCounter
from .pages import Batch, CheckedPages
from .schedule import OPERATIONS, files_per_key
from .setup import Setup
from .stored import stored_by

ERRNO = re.compile(r"\[Errno (\d+)\]")
Check = Callable[[], tuple[int, list[str]]]  # pages that are right, and a line for each error


class Host:
    """One connector after the other, and the pages that it stores and loads."""

    def __init__(self, storage_dir: str):
        self.own_folder = self.storage_dir = storage_dir
        self.log = LogTail()
        logging.getLogger().addHandler(self.log)
        self.registrations = RegistrationCounter()
        self.connector: Any = None
        self.padding: list[int] = []
        self.traces = ExitStack()
        self.opened: dict[int, descriptors.Opened] = {}
        self.arm: Arm | None = None

    def open(
        self, setup: dict[str, Any], wheel: str | None = None, folder: str | None = None
    ) -> dict[str, Any]:
        """Close the connector, and make another one: ours, or that of a wheel or a folder."""
        self.end_connector()
        self.storage_dir = folder or self.own_folder
        self.setup = Setup(**setup)
        plugin = NixlBackendConfig(self.setup.params).plugin
        if plugin in OBJ_PLUGINS:
            releases.load_nixl_with_objects()
        self.agent_class = load_nixl(plugin).nixl_agent
        self.registrations.count(self.agent_class)
        self.pages = CheckedPages(self.setup, stored_by(self.setup, Path(self.storage_dir)))
        self.wheel = wheel
        self._new_connector()
        return {}

    def _new_connector(self) -> None:
        self.connector = self._make_connector(self.wheel)
        self.log.take()
        self.registrations.take_seconds()

    def _make_connector(self, wheel: str | None) -> Any:
        config = self.setup.storage_config()
        if wheel is None:
            connector = HiCacheNixl(config, self.storage_dir)
            connector.register_mem_pool_host(self.pages.pool)
            if self.setup.connector == "pooled" and not self.setup.on_objects:
                # opens the segment that it keeps, before anything is counted
                connector.batch_set_v1(["opens the segment"], torch.arange(self.pages.pool.page_size))
            return connector
        released, storage_config = releases.connector_class(wheel)
        try:
            connector = released(storage_config(**vars(config)), self.storage_dir)
            connector.register_mem_pool_host(self.pages.pool)
        except Exception as error:
            raise HiCacheNixlError(
                f"its connector could not be created: {type(error).__name__}: {error}"
            ) from error
        return connector

    def end_connector(self) -> None:
        """Close the connector and every storage file that it leaked, and remove its pages from the worker's folder."""
        if self.connector is None:
            return
        if self.storage_dir == self.own_folder:
            self.connector.clear()
        self._close_connector()
        if self.storage_dir == self.own_folder:  # the next one may need a store of another size
            shutil.rmtree(os.path.join(self.own_folder, pooled_folder.NAME), ignore_errors=True)

    def _close_connector(self) -> None:
        if hasattr(self.connector, "close"):  # 0.5.11 and 0.5.12 have none
            self.connector.close()
        self.connector = None
        self.registrations.alive = 0
        table = descriptors.fd_table(storage_dir=self.storage_dir)
        for fd in table[table.kind == "storage file"].fd:
            os.close(fd)

    def store_before(self, keys: int) -> dict[str, Any]:
        """Store pages with a connector of their own, which is closed then, so that nothing of it is counted."""
        with _highest_limit():
            row = self.call("set", keys)
            self._close_connector()
        if row["pages_ok"] < keys:
            told = "; ".join(row["log"]) or row["raised"] or "nothing was logged"
            raise HiCacheNixlError(
                f"only {row['pages_ok']} of {keys} pages could be stored beforehand: {told}"
            )
        self._new_connector()
        return {}

    def limits(self, baseline_fds: int | None, nofile_limit: int | None) -> dict[str, Any]:
        """Pad this process with open descriptors up to a number, and set its limit."""
        now = descriptors.count_fds(os.getpid()) - 1  # the listing has one of its own
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if baseline_fds is not None:
            if not now <= baseline_fds < hard:
                raise HiCacheNixlError(
                    f"baseline_fds is {baseline_fds}; expected {now}, which the worker itself has open, to {hard - 1}"
                )
            self.padding += [os.open(os.devnull, os.O_RDONLY) for _ in range(baseline_fds - now)]
            now = baseline_fds
        if nofile_limit is not None:
            if not now < nofile_limit <= hard:
                raise HiCacheNixlError(
                    f"nofile_limit is {nofile_limit}; expected {now + 1} to {hard}, the hard limit (ulimit -Hn)"
                )
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile_limit, hard))
        return {}

    def trace(self) -> dict[str, Any]:
        """Record from now on which line opens each descriptor."""
        self.opened = self.traces.enter_context(descriptors.trace_opens())
        return {}

    def opened_by(self) -> dict[str, Any]:
        """Return which line opened each storage file that is open now."""
        return {"descriptors": descriptors.opened_by(self.opened, self.storage_dir)}

    def call(
        self,
        operation: str,
        keys: int,
        fault: list[Any] | None = None,
        watch: bool = False,
        look_up: bool = True,
    ) -> dict[str, Any]:
        """Make one batch call and check what it did; a ``CallRow`` as plain data.

        Parameters
        ----------
        fault : list, optional
            Step, number and kind of what is to fail.
        watch : bool
            Add what the call did, step by step; always with a fault.
        look_up : bool
            Ask for pages of a set after it, which checks ``batch_exists``; in an object store that takes requests.
        """
        if operation not in OPERATIONS:
            raise HiCacheNixlError(
                f"operation {operation!r} is unknown; expected one of {', '.join(OPERATIONS)}"
            )
        run = {"set": self._set, "get": self._get, "exists": self._exists}[operation]
        raised, watched, check = None, {}, _nothing_to_check
        self.seconds = self.core_seconds = self.process_seconds = 0.0
        self.claimed, self.look_up = 0, look_up
        with ExitStack() as during:
            if fault or watch:
                made = faults.Fault(*fault) if fault else None
                seen = during.enter_context(faults.watched(self.agent_class, self.storage_dir, made))
            try:
                check = run(keys)
            except BaseException as error:  # an injected KeyboardInterrupt is reported, not obeyed
                raised = type(error).__name__
        if fault or watch:
            watched = seen.as_columns()
        lines, registrations = self.log.take(), self.registrations.alive
        registration_seconds = self.registrations.take_seconds()
        with _highest_limit():  # the checks open files, also where the call has used up the limit
            try:
                pages_ok, wrong = check()
            except (TypeError, ValueError) as error:
                pages_ok, wrong = 0, [f"the answer is not one per page: {error}"]
        self.registrations.take_seconds()
        found = ERRNO.search("\n".join(lines))
        row = CallRow(
            operation=operation,
            keys=keys,
            files=keys * files_per_key(self.setup.layout, self.setup.mla),
            bytes=0 if operation == "exists" else pages_ok * self.setup.page_bytes,
            registrations=registrations,
            registration_seconds=registration_seconds,
            pages_ok=pages_ok,
            errno=int(found[1]) if found else 0,
            claimed=self.claimed,
            log=[*lines, *self.log.take(), *wrong],
            raised=raised,
            seconds=self.seconds,
            core_seconds=self.core_seconds,
            process_seconds=self.process_seconds,
            **watched,
        )
        return dataclasses.asdict(row)

    def pause(self, name: str) -> dict[str, Any]:
        """Choose how ``scoped`` waits from now on: one of ``PAUSES``."""
        if name not in PAUSES:
            raise HiCacheNixlError(f"pause {name!r} is unknown; expected one of {', '.join(PAUSES)}")
        if self.setup.connector != "scoped":
            raise HiCacheNixlError(f"pause: {self.setup.connector} has no such option; expected scoped")
        scoped.growing_pause = PAUSES[name]  # type: ignore[attr-defined]  # the name that scoped imported
        return {}

    def register_files(self, calls: int) -> dict[str, Any]:
        """Call the connector's ``register_files`` with one file, and close the owner where it returns one.

        ``offered`` in the answer is whether it can do that: SGLang from 0.5.13 on has no such method, and ``pooled``
        opens its files itself.
        """
        if not hasattr(self.connector, "register_files") or self.setup.connector == "pooled":
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

    def open_arm(self, **asked: Any) -> dict[str, Any]:
        """Open an arm of the benchmark: see ``bench.arms.Asked``."""
        self.arm = Arm(Asked(**asked), self.log)
        return {}

    def close_arm(self) -> dict[str, Any]:
        """Close it, and all its files."""
        if self.arm is not None:
            self.arm.close()
        self.arm = None
        return {}

    def turn(self, calls: int, operations: Sequence[str] = ALL) -> dict[str, Any]:
        """Time sets, lookups and gets of the arm."""
        return {"rows": self._arm().turn(calls, operations)}

    def fill(self, calls: int) -> dict[str, Any]:
        """Make sets that are not timed."""
        self._arm().fill(calls)
        return {}

    def reopen(self) -> dict[str, Any]:
        """Close the store of the arm, and return the seconds that opening it takes."""
        return {"seconds": self._arm().reopen()}

    def _arm(self) -> Arm:
        if self.arm is None:
            raise HiCacheNixlError("no arm is open")
        return self.arm

    def _set(self, count: int) -> Check:
        batch = self.pages.to_set(count)
        with self._timed():
            results = self.connector.batch_set_v1(batch.keys, batch.indices)
        self.claimed = sum(map(bool, results))

        def check() -> tuple[int, list[str]]:
            wrong = self.pages.was_set(batch, results)
            if self.look_up:
                wrong += self._wrong_exists(batch, results)
            return max(sum(results) - len(wrong), 0), wrong

        return check

    def _get(self, count: int) -> Check:
        batch = self.pages.to_get(count)
        with self._timed():
            results = self.connector.batch_get_v1(batch.keys, batch.indices)
        self.claimed = sum(map(bool, results))

        def check() -> tuple[int, list[str]]:
            good, wrong = self.pages.was_get(batch, results)
            return max(good - len(wrong), 0), wrong

        return check

    def _exists(self, count: int) -> Check:
        keys = self.pages.latest_keys(count)
        with self._timed():
            found = self.connector.batch_exists(keys)
        self.claimed = found
        return lambda: (found, [])

    def _wrong_exists(self, batch: Batch, results: Sequence[bool]) -> list[str]:
        """Ask for pages of a set and for one that is absent; a line when the answer is wrong.

        SGLang's releases up to 0.5.12 are known to count files, or to halve the pages of MLA: see ``release_facts``.  An
        installed SGLang may be one of them.
        """
        release = releases.known_releases().get(self.setup.version or "")
        if not self.setup.is_ours and (release is None or release.stands_for):
            return []
        keys, leading = self.pages.present_and_absent(batch, results)
        found = self.connector.batch_exists(keys)
        return [] if found == leading else [f"batch_exists finds {found} leading pages, expected {leading}"]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Measure the connector alone: seconds on the clock, and of this thread and of all threads on a core."""
        process, core, clock = time.process_time(), time.thread_time(), time.perf_counter()
        try:
            yield
        finally:
            self.seconds, self.core_seconds = time.perf_counter() - clock, time.thread_time() - core
            self.process_seconds = time.process_time() - process


def _nothing_to_check() -> tuple[int, list[str]]:
    return 0, []


@contextmanager
def _highest_limit() -> Iterator[None]:
    """Allow as many open files as the kernel does."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


PAUSES = {"none": lambda running: None, "growing": growing_pause, "steady": steady_pause}
REQUESTS = (
    *("open", "limits", "trace", "opened_by", "call", "store_before", "pause", "register_files"),
    *("open_arm", "close_arm", "turn", "fill", "reopen"),
)


def serve(connection: Connection, storage_dir: str) -> None:
    """Answer requests until the other side closes the connection; then remove the storage folder."""
    host = None
    try:
        while True:
            request = json.loads(connection.recv_bytes())
            name = request.pop("request")
            try:
                host = host or Host(storage_dir)
                if name not in REQUESTS:
                    raise HiCacheNixlError(
                        f"request {name!r} is unknown; expected one of {', '.join(REQUESTS)}"
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
