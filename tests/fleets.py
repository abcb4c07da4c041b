"""A Dask cluster of real processes: a scheduler, and workers that count as machines of their own."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from processes import PATIENCE, wait_until
from support import TESTS

from hicache_nixl.lab.sweep.remote import MACHINE

IO_URING = (425, 426, 427)  # setup, enter and register, on every architecture
ALLOW, REFUSE_WITH_EPERM = 0x7FFF0000, 0x00050001
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # of the classic BPF


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def refuse_io_uring() -> None:
    """Refuse the system calls of io_uring to this process and those that it starts, as many containers do."""
    steps = [(LOAD, 0, 0, 0)]
    steps += [(EQUAL, len(IO_URING) - place, 0, number) for place, number in enumerate(IO_URING)]
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE_WITH_EPERM)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.cast(code, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


@dataclass
class Cluster:
    """A scheduler and its workers, which end with it."""

    address: str
    folder: Path
    scheduler: subprocess.Popen[bytes]
    environment: dict[str, str]
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        *,
        prefix: Sequence[str] = (),
        before: Callable[[], None] | None = None,
        threads: int = 2,
        **environment: str,
    ) -> None:
        """Start a worker whose machine has its name; ``before`` is called in its process before it begins."""
        options = ["--nthreads", str(threads), "--no-nanny", "--no-dashboard", "--name", name]
        options += ["--local-directory", str(self.folder), "--memory-limit", "0", "--host", "127.0.0.1"]
        options += ["--death-timeout", "60", "--dashboard-address", "127.0.0.1:0"]
        with open(self.folder / f"{name}.log", "wb") as log:
            self.workers[name] = subprocess.Popen(
                [*prefix, sys.executable, "-P", "-m", "distributed.cli.dask_worker", self.address, *options],
                env={**self.environment, MACHINE: name, **environment},
                stdout=log,
                stderr=log,
                preexec_fn=before,
                start_new_session=True,
            )

    def told(self, name: str) -> str:
        """Return what a worker has logged."""
        return (self.folder / f"{name}.log").read_text()

    def wait(self) -> None:
        """Wait until the workers have joined."""
        for name in self.workers:
            wait_until(lambda name=name: "Registered to" in self.told(name), 90)

    def kill(self, name: str) -> None:
        """Kill a worker at once, as a machine that is lost."""
        os.killpg(self.workers[name].pid, signal.SIGKILL)
        self.workers[name].wait()


def _environment(temporary: str) -> dict[str, str]:
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return {**os.environ, "PYTHONPATH": paths, "TMPDIR": temporary}


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a scheduler at a free port of this machine.

    Its workers have their own folder for temporary files, in which clusters of other tests lock nothing.
    """
    with tempfile.TemporaryDirectory(prefix="fleet-", ignore_cleanup_errors=True) as temporary:
        yield from _cluster(folder, _environment(temporary))


def _cluster(folder: Path, environment: dict[str, str]) -> Iterator[Cluster]:
    log = folder / "scheduler.log"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    with open(log, "wb") as written:
        scheduler = subprocess.Popen(
            [sys.executable, "-P", "-m", "distributed.cli.dask_scheduler", *options],
            env=environment,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    made = None
    try:
        wait_until(lambda: re.search(r"Scheduler at: +(\S+)", log.read_text()), 90)
        found = re.search(r"Scheduler at: +(\S+)", log.read_text())
        assert found is not None
        made = Cluster(found[1], folder, scheduler, environment)
        yield made
    finally:
        for process in [*(made.workers.values() if made else ()), scheduler]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def points_of_workers(pid: int) -> list[psutil.Process]:
    """Return the processes of points that a worker has started."""
    return [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if "hicache_nixl.lab.sweep.child" in _command(child)
    ]


def _command(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):  # it may end just now
        return " ".join(process.cmdline())
    return ""


__all__ = ["PATIENCE", "Cluster", "cluster", "points_of_workers", "refuse_io_uring"]
