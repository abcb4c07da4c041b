"""A process that has imported what a worker needs, and forks workers.

To import torch takes two seconds, longer than most replays.  The nursery does it once.  A worker is a fork of it
and begins as a fresh interpreter would: no descriptors but its own, a single thread, no nixl yet, and the
environment of its moment.  ``python -m hicache_nixl.lab.worker.forkserver FD`` is the nursery itself.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

LONGEST_REQUEST = 2**18  # bytes; most of it is the environment
# A pool of threads that is started by an import would be missing after a fork.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Forked:
    """A worker process, as its owner sees it; the nursery tells its end through a pipe."""

    def __init__(self, status: int):
        self._status = os.fdopen(status, "rb")
        self.returncode: int | None = None
        self.pid = int(self._status.readline() or 0)
        if not self.pid:
            self._status.close()
            raise OSError("the nursery of the workers has ended before it forked one")

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the exit code, negative for a signal, as ``subprocess`` has it."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
            self.returncode = int(self._status.readline() or -signal.SIGKILL)  # without the nursery: unknown
            self._status.close()
        return self.returncode

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self.returncode is None and not select.select([self._status], [], [], 0)[0]:
            os.kill(self.pid, signal.SIGKILL)


class Nursery:
    """The nursery of this process, started by its first worker and ended with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, folder: str, connection: int, output: int, environment: dict[str, str]) -> Forked:
        """Fork a worker for a storage folder, with its socket and the file for what it prints."""
        request = {"folder": folder, "environment": environment, "cwd": os.getcwd()}
        ours, theirs = os.pipe()
        try:
            with self._lock:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                socket.send_fds(self._control, [json.dumps(request).encode()], [connection, output, theirs])
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return Forked(ours)

    def _start(self) -> None:
        self.end()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,  # Ctrl-C reaches this process only, which then ends its workers
            )

    def end(self) -> None:
        """Let the nursery go; a worker that still runs ends when this process hangs up."""
        if self._process is not None:
            self._control.close()
            self._process.terminate()  # it may still be importing, which nobody waits for any more
            self._process.wait()
            self._process = None


NURSERY = Nursery()
atexit.register(NURSERY.end)


def main() -> None:
    """Fork workers as they are asked for, and tell when each ends, until the parent hangs up."""
    from . import server  # before the first fork: this is what takes the time

    control = socket.socket(fileno=int(sys.argv[1]))
    with selectors.DefaultSelector() as events:
        events.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fileobj is not control:
                    events.unregister(key.fileobj)
                    _tell_end(key.fileobj, *key.data)
                    continue
                request, fds, _, _ = socket.recv_fds(control, LONGEST_REQUEST, 3)
                if not request:
                    return
                connection, output, status = fds
                pid = os.fork()
                if pid == 0:
                    _be_a_worker(server.main, json.loads(request), connection, output)
                for fd in (connection, output):
                    os.close(fd)
                with suppress(BrokenPipeError):  # who asked is gone; the worker notices, and ends by itself
                    os.write(status, f"{pid}\n".encode())
                events.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _tell_end(pidfd: Any, pid: int, status: int) -> None:
    os.close(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.write(status, f"{code}\n".encode())
    except BrokenPipeError:
        pass  # nobody waits for it any more
    finally:
        os.close(status)


def _be_a_worker(run: Any, request: dict[str, Any], connection: int, output: int) -> None:
    """Become a process of its own, run, and end as Python does; never returns."""
    code = 1
    try:
        os.setsid()
        for fd in (1, 2):
            os.dup2(output, fd)
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if fd > 2 and fd != connection:
                try:
                    os.close(fd)
                except OSError:
                    continue  # the listing's own
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        run(Connection(connection), request["folder"])
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
