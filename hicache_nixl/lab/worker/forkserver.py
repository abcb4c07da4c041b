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
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any

REPORT_SECONDS = 2  # for the fork server to report an exit code
LONGEST_REQUEST = 2**18  # bytes; most of it is the environment
# A pool of threads that is started by an import would be missing after a fork.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Forked:
    """A worker process.  Its end is seen without the fork server, which reports only the exit code.

    Parameters
    ----------
    status : int
        The end of a pipe, from which the process id and the exit code are read.
    timeout : float
        Seconds for the fork.

    Raises
    ------
    OSError
        When the fork server has ended, or does not answer in time.
    """

    def __init__(self, status: int, timeout: float):
        self.returncode: int | None = None
        with ExitStack() as ends:
            self._status = ends.enter_context(os.fdopen(status, "rb"))
            if not _readable(status, timeout):
                raise TimeoutError("the fork server did not fork it in time")
            self.pid = int(self._status.readline() or 0)
            if not self.pid:
                raise OSError("the fork server ended before it forked a worker")
            try:
                self._process = os.pidfd_open(self.pid)
            except ProcessLookupError:  # it has ended already
                self.returncode = self._reported()
                return
            ends.callback(os.close, self._process)
            self._ends = ends.pop_all()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, and return its exit code; negative for a signal, as in ``subprocess``."""
        if self.returncode is None:
            if not _readable(self._process, timeout):
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
            self.returncode = self._reported()
            self._ends.close()
        return self.returncode

    def _reported(self) -> int:
        """Return the exit code, or that of SIGKILL when the fork server has ended or was stopped."""
        known = _readable(self._status.fileno(), REPORT_SECONDS)
        return int((self._status.readline() if known else b"") or -signal.SIGKILL)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)


def _readable(fd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


class ForkServer:
    """The fork server of this process; started for its first worker, and ended when the process exits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def fork(
        self, folder: str, connection: int, output: int, environment: dict[str, str], timeout: float
    ) -> Forked:
        """Fork a worker.  A fork server that does not answer is ended, so that the next worker has another one.

        Parameters
        ----------
        folder : str
            Its storage folder.
        connection, output : int
            Descriptors of its socket, and of the file that it writes its output to.
        environment : dict
            Its environment variables.
        timeout : float
            Seconds for the fork.
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
        try:
            return Forked(ours, timeout)
        except TimeoutError:
            with self._lock:
                self.end()
            raise

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
            self._process.kill()  # it may still be importing, or be stopped; it holds nothing
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
