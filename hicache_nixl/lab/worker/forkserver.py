"""A fork server: a process that has imported what a worker needs, and forks workers.

Importing torch takes two seconds, longer than most replays; the fork server does it once.  A worker is a fork of it
and begins as a fresh interpreter would: with no descriptors but its own, a single thread, without nixl, and with the
environment and working directory that its parent has at that moment.

``multiprocessing``'s fork server is not used: its child runs the parent's main module again, so that a script which
calls ``replay`` without ``if __name__ == "__main__"`` fails; its children get the environment of its start; and it is
shared with whatever else the program uses it for, so that its threads and imports are not known.

``python -m hicache_nixl.lab.worker.forkserver FD`` runs the fork server on a socket.
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
    """A worker process; the fork server reports its exit code through a pipe."""

    def __init__(self, status: int):
        self._status = os.fdopen(status, "rb")
        self.returncode: int | None = None
        self.pid = int(self._status.readline() or 0)
        if not self.pid:
            self._status.close()
            raise OSError("the fork server ended before it forked a worker")

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, and return its exit code; negative for a signal, as in ``subprocess``."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
            # unknown when the fork server has ended
            self.returncode = int(self._status.readline() or -signal.SIGKILL)
            self._status.close()
        return self.returncode

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self.returncode is None and not select.select([self._status], [], [], 0)[0]:
            os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """The fork server of this process; started for its first worker, and ended when the process exits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, folder: str, connection: int, output: int, environment: dict[str, str]) -> Forked:
        """Fork a worker.

        Parameters
        ----------
        folder : str
            Its storage folder.
        connection, output : int
            Descriptors of its socket, and of the file that it writes its output to.
        environment : dict
            Its environment variables.
        """
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
                start_new_session=True,  # Ctrl-C reaches only this process, which then ends its workers
            )

    def end(self) -> None:
        """End the fork server; a worker that still runs ends when this process closes its connection."""
        if self._process is not None:
            self._control.close()
            self._process.terminate()  # it may still be importing
            self._process.wait()
            self._process = None


FORK_SERVER = ForkServer()
atexit.register(FORK_SERVER.end)


def main() -> None:
    """Fork a worker for each request, and report their exit codes, until the parent closes the socket."""
    from . import server  # before the first fork: this is what takes the time

    control = socket.socket(fileno=int(sys.argv[1]))
    with selectors.DefaultSelector() as events:
        events.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fileobj is not control:
                    events.unregister(key.fileobj)
                    _report_end(key.fileobj, *key.data)
                    continue
                request, fds, _, _ = socket.recv_fds(control, LONGEST_REQUEST, 3)
                if not request:
                    return
                connection, output, status = fds
                pid = os.fork()
                if pid == 0:
                    _run_worker(server.main, json.loads(request), connection, output)
                for fd in (connection, output):
                    os.close(fd)
                with suppress(
                    BrokenPipeError
                ):  # the parent has ended; the worker notices, and ends by itself
                    os.write(status, f"{pid}\n".encode())
                events.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _report_end(pidfd: Any, pid: int, status: int) -> None:
    os.close(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(BrokenPipeError):  # the parent has ended
        os.write(status, f"{code}\n".encode())
    os.close(status)


def _run_worker(run: Any, request: dict[str, Any], connection: int, output: int) -> None:
    """Turn this fork into a worker and exit when it is done; never returns."""
    code = 1
    try:
        os.setsid()
        for fd in (1, 2):
            os.dup2(output, fd)
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if fd > 2 and fd != connection:
                with suppress(OSError):  # one of them was that of the listing
                    os.close(fd)
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
