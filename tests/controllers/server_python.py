"""Processes with the packages of a real server, which the tests of the controllers call."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hicache_nixl.config import STORAGE_DIR_VARIABLE
from hicache_nixl.lab.server import Environment, environ_of

OLD, NEW = "0.5.11", "0.5.23"
CONTROLLERS = ((OLD, "HiCacheController"), (NEW, "HiCacheController"), (NEW, "HybridCacheController"))
SERVE = Path(__file__).parent / "inside/serve.py"
SMALL_STORE = {"capacity_gb": 0.2, "segment_mb": 4, "min_free_gb": 0}  # of pooled
PATIENCE = 100.0  # seconds for an answer; the first includes the import of SGLang
LAST_LINES = 30


class Process:
    """A process with SGLang; ``call`` and the methods that it names are those of ``inside/caches.py``."""

    def __init__(self, connection: Connection, log: Any):
        self._connection, self._log = connection, log

    def send(self, method: str, **arguments: Any) -> None:
        """Start a call; ``answer`` ends it."""
        self._connection.send((method, arguments))

    def answer(self) -> Any:
        """Return the answer to the last call.

        Raises
        ------
        AssertionError
            When the call raised, or there is no answer; the message has what the process printed.
        """
        try:
            if not self._connection.poll(PATIENCE):
                raise AssertionError(f"no answer after {PATIENCE:g} s:\n{self.printed()}")
            answer, error = self._connection.recv()
        except (EOFError, ConnectionResetError) as ended:
            raise AssertionError(f"the process has ended:\n{self.printed()}") from ended
        assert error is None, f"{error}\n{self.printed()}"
        return answer

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method and return its answer."""
        self.send(method, **arguments)
        return self.answer()

    def printed(self) -> str:
        """Return the last lines that processes of this release printed."""
        size = os.fstat(self._log.fileno()).st_size
        lines = os.pread(self._log.fileno(), size, 0).decode(errors="replace").splitlines()
        return "\n".join(lines[-LAST_LINES:])

    @contextmanager
    def cache(self, folder: Path, lifetime: str = "scoped", **arguments: Any) -> Iterator[Process]:
        """Have a cache, whose storage is in a folder, until the end of the block."""
        self.call("open", **cache_arguments(folder, lifetime, **arguments))
        try:
            yield self
        finally:
            self.call("close")


class ServerPython:
    """The interpreter of a server, which has imported SGLang and forks processes; ``close`` ends them."""

    def __init__(self, environment: Environment, folder: Path):
        self.version, self._folder, self._meetings = environment.version, folder, 0
        with ExitStack() as ends:
            self._log = ends.enter_context(tempfile.TemporaryFile())
            self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ends.enter_context(self._control)
            environ = environ_of(environment, folder, folder / "storage", {"NIXL_LOG_LEVEL": "ERROR"})
            del environ[STORAGE_DIR_VARIABLE]  # each cache has its own folder
            with other:
                started = subprocess.Popen(
                    [os.fspath(environment.python), os.fspath(SERVE)],
                    env=environ,
                    stdin=other,
                    stdout=self._log,
                    stderr=self._log,
                )
            ends.callback(started.wait)
            ends.callback(self._control.shutdown, socket.SHUT_RDWR)
            self._ends = ends.pop_all()

    def close(self) -> None:
        """End the interpreter; a process ends with its connection."""
        self._ends.close()

    @contextmanager
    def processes(self, ranks: int = 1, variables: dict[str, str] | None = None) -> Iterator[list[Process]]:
        """Fork the processes of a tensor-parallel server."""
        self._meetings += 1
        meeting = self._folder / f"meeting-{self._meetings}"
        with ExitStack() as ends:
            connections = [
                ends.enter_context(self._fork(rank, ranks, meeting, variables)) for rank in range(ranks)
            ]
            yield [Process(connection, self._log) for connection in connections]

    @contextmanager
    def process(self, **variables: str) -> Iterator[Process]:
        """Fork a process that is a server of its own."""
        with self.processes(variables=variables) as (process,):
            yield process

    def _fork(self, rank: int, ranks: int, meeting: Path, variables: dict[str, str] | None) -> Connection:
        ours, theirs = socket.socketpair()
        place = {"rank": rank, "ranks": ranks, "meeting": os.fspath(meeting), "variables": variables or {}}
        with theirs:
            socket.send_fds(self._control, [json.dumps(place).encode()], [theirs.fileno()])
        return Connection(ours.detach())


def together(processes: Sequence[Process], method: str, **arguments: Any) -> list[Any]:
    """Call a method in all processes at once; ranks wait for each other."""
    for process in processes:
        process.send(method, **arguments)
    return [process.answer() for process in processes]


def lasting(held: dict[str, Any]) -> dict[str, Any]:
    """Leave out what pooled opens as it fills: segments, at most capacity / segment of them, and a larger index."""
    names = [
        re.sub(r"/index\.\d+$", "/index", name) for name in held["descriptors"] if "/segment-" not in name
    ]
    return {**held, "descriptors": sorted(names)}


def cache_arguments(
    folder: Path,
    lifetime: str = "scoped",
    controller: str = "HiCacheController",
    kind: str = "multi_head",
    layout: str = "page_first",
    pages: int = 160,
    dtype: str = "bfloat16",
    side_pools: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Return the arguments of a cache whose storage is in a folder."""
    store = SMALL_STORE if lifetime == "pooled" else {}
    options = {"file_storage_path": os.fspath(folder), "lifetime": lifetime, **store, **options}
    return {
        "controller": controller,
        "kind": kind,
        "layout": layout,
        "pages": pages,
        "dtype": dtype,
        "options": options,
        "side_pools": list(side_pools),
    }
