"""Finding the worker processes of a test or of a process that it started, and waiting for their end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

PATIENCE = 30.0  # seconds to wait for what should come much sooner


def fork_servers_of(pid: int | None = None) -> list[psutil.Process]:
    """Return the fork server of a process, this one when left out; none before its first worker."""
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.Error):
            if "hicache_nixl.lab.worker.forkserver" in child.cmdline():
                found.append(child)
    return found


def workers_of(pid: int | None = None) -> list[psutil.Process]:
    """Return the workers of a process: what its fork server has forked."""
    found = []
    for server in fork_servers_of(pid):
        with suppress(psutil.Error):
            found += server.children()
    return found


def have_ended(processes: list[psutil.Process]) -> bool:
    """Tell whether all of these are gone, or wait for nothing but to be reaped."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@contextmanager
def sleeping_child(*inherited: int) -> Iterator[int]:
    """Another process, with the given descriptors besides its three standard ones."""
    code = "import sys, time; sys.stdout.write('.'); sys.stdout.flush(); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=inherited,
    ) as child:
        try:
            assert child.stdout.read(1) == b"."  # the interpreter is up, its own files are closed again
            yield child.pid
        finally:
            child.kill()
