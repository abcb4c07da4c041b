"""The parent's side of a worker: start it, send it requests, count its descriptors, end it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from ...config import STORAGE_DIR_VARIABLE
from ...errors import ConfigError, HiCacheNixlError
from .call import CallRow
from .descriptors import ProcessGoneError, count_storage_fds, fd_table
from .forkserver import FORK_SERVER, Forked
from .releases import ReleaseError, source_of
from .setup import Setup

LAST_LINES = 12
PATIENCE = 30  # seconds for a worker to finish its call and clean up


class WorkerError(HiCacheNixlError, RuntimeError):
    """The worker process died, did not answer, or refused; the message ends with its last lines of output."""


class RefusedError(WorkerError):
    """The worker refused a request and still runs."""


class Worker:
    """A process with one connector, measured from outside.

    ``close()`` ends its process and removes its storage folder, whatever happened.  If this process is killed, the
    worker notices that and removes the folder itself.

    Parameters
    ----------
    setup : Setup
    storage_dir : path, optional
        An existing folder on the disk to measure; the worker creates its own folder in it.  By default the folder
        for temporary files.
    baseline_fds, nofile_limit : int, optional
        As in ``replay``.
    timeout : float
        Seconds for all requests together.

    Raises
    ------
    ConfigError, WorkerError
    """

    def __init__(
        self,
        setup: Setup,
        *,
        storage_dir: str | os.PathLike[str] | None = None,
        baseline_fds: int | None = None,
        nofile_limit: int | None = None,
        timeout: float = 600,
    ):
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        with ExitStack() as ends:  # last in, first out: the process ends before its folder is removed
            self._folder = _own_folder(storage_dir)
            ends.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._output = ends.enter_context(tempfile.TemporaryFile())
            self._connection, theirs = Pipe()
            with theirs:
                ends.callback(self._connection.close)
                self._process = self._start(theirs.fileno())
            ends.callback(self._end_process)
            try:
                self.open(setup)
                if baseline_fds is not None or nofile_limit is not None:
                    self._limit(baseline_fds, nofile_limit)
            except BaseException:
                self._process.kill()
                raise
            self._ends = ends.pop_all()

    def _limit(self, baseline_fds: int | None, nofile_limit: int | None) -> None:
        try:
            self.request("limits", baseline_fds=baseline_fds, nofile_limit=nofile_limit)
        except RefusedError as error:
            raise ConfigError(str(error)) from error

    def _start(self, socket: int) -> Forked:
        environment = {
            name: value for name, value in os.environ.items() if name != STORAGE_DIR_VARIABLE
        }  # a replay must never clear the folder of a server
        environment.setdefault("NIXL_LOG_LEVEL", "ERROR")
        try:
            left = max(0.0, self._deadline - time.monotonic())
            return FORK_SERVER.fork(str(self._folder), socket, self._output.fileno(), environment, left)
        except TimeoutError as error:
            raise WorkerError(
                f"the worker did not answer within {self._timeout:g} s: {error}; the first one of a program takes some "
                "seconds to start, so raise the timeout (--timeout)"
            ) from error
        except OSError as error:
            raise WorkerError(f"no worker could be forked: {error}") from error

    def _end_process(self) -> None:
        """Close the connection and wait until the worker ends; kill it when it does not."""
        self._connection.close()
        try:
            self._process.wait(timeout=PATIENCE)
        except BaseException as error:
            self._process.kill()
            self._process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise

    @property
    def folder(self) -> Path:
        """The storage folder that it created."""
        return self._folder

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def open(self, setup: Setup, *, folder: str | os.PathLike[str] | None = None) -> None:
        """Close the connector, and create another one.

        Parameters
        ----------
        folder : path, optional
            Where the connector stores pages; its creator removes them.  By default the worker's own folder, whose
            pages are removed when the next connector is opened.

        Raises
        ------
        ReleaseError
            A released connector is not available, or does not load.
        """
        wheel = source_of(setup.connector)
        try:
            self.request("open", setup=setup.as_message(), wheel=wheel, folder=folder and os.fspath(folder))
        except RefusedError as error:
            if setup.version is None:
                raise
            raise ReleaseError(setup.version, f"cannot be used: {error}") from error
        self._in_use = Path(folder or self._folder)

    def call(self, operation: str, keys: int, **more: Any) -> CallRow:
        """Make one batch call; ``fault``, ``watch`` and ``look_up`` are those of the server's ``call``."""
        row = CallRow(**self.request("call", operation=operation, keys=keys, **more))
        try:
            return row.counted(self.pid, self._in_use)
        except (ProcessGoneError, psutil.Error) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1)
                raise self._ended(f"call {operation} {keys}") from None
            raise WorkerError(f"the worker's descriptors cannot be counted: {error}") from error

    def storage_fds(self) -> int:
        """Count the files of the storage folder that the worker has open now."""
        return count_storage_fds(self.pid, self._in_use)

    def fds(self) -> pd.DataFrame:
        """Name every descriptor that the worker has open now."""
        return fd_table(self.pid, self._in_use)

    def trace(self) -> None:
        """Record from now on which line opens each descriptor."""
        self.request("trace")

    def opened_by(self) -> pd.DataFrame:
        """Name the storage files that are open now, with the line that opened each: see ``descriptors.opened_by``."""
        rows = self.request("opened_by")["descriptors"]
        return pd.DataFrame(rows, columns=["fd", "target", "opened_by"])

    def request(self, request: str, **fields: Any) -> dict[str, Any]:
        """Send the worker a request and wait for the answer."""
        asked = " ".join(
            [request, *(f"{value}" for value in fields.values() if isinstance(value, str | int))]
        )
        try:
            self._connection.send_bytes(json.dumps({"request": request, **fields}).encode())
            if not self._connection.poll(max(0.0, self._deadline - time.monotonic())):
                raise WorkerError(
                    f"the worker did not answer within {self._timeout} s, at: {asked}\n{self._last_lines()}"
                )
            answer = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise self._ended(asked) from None
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer

    def _ended(self, asked: str) -> WorkerError:
        try:
            code = self._process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return WorkerError(
                f"the worker closed its connection without ending, at: {asked}\n{self._last_lines()}"
            )
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return WorkerError(f"the worker died ({reason}) at: {asked}\n{self._last_lines()}")

    def _last_lines(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(["its last lines of output:", *(f"    {line}" for line in lines or ["(none)"])])

    def close(self, kill: bool = False) -> None:
        """End the process and remove the storage folder; may be called twice."""
        if kill:
            self._process.kill()
        self._ends.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self.close(kill=kind is not None)


def _own_folder(storage_dir: str | os.PathLike[str] | None) -> Path:
    """Create a folder in the one that was given."""
    try:
        return Path(tempfile.mkdtemp(prefix="hicache-nixl-", dir=storage_dir)).resolve()
    except OSError as error:
        raise ConfigError(
            f"storage_dir {storage_dir}: {error.strerror}; expected an existing, writable folder"
        ) from error
