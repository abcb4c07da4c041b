"""What runs in a Dask worker: it tells which machine it is on, and watches the process of each point."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ... import __version__
from .child import INTERRUPTED

MACHINE = "HICACHE_NIXL_MACHINE"  # names the machine of a worker, in place of its host name and boot id
RESOURCE = "hicache-nixl"  # of Dask: a share of a machine, of which a measurement takes all
DIED, FAILED = "died", "failed"
LOOKS = 0.2  # seconds between two looks at the process of a point
PATIENCE = 60.0  # seconds for the kernels of a point to end
BEGUN = ("executing", "long-running", "memory", "error")  # states of Dask's tasks in a worker
LAST = 300  # letters of what a process has printed before it ended

_ended: set[str] = set()  # keys of the tasks that are asked to end
_asking = threading.Lock()


def identity() -> dict[str, str]:
    """Return the machine of this worker, and the version of this package.

    Containers of one machine have the same boot id, and share its disks.
    """
    host, machine = platform.node(), platform.node()
    with suppress(OSError):  # a sandbox may hide it
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if named := os.environ.get(MACHINE):
        host = machine = named
    return {"machine": machine, "host": host, "version": __version__}


async def offer(shares: int, dask_worker: Any = None) -> None:
    """Give this worker the resource that points ask for."""
    await dask_worker.set_resources(**{RESOURCE: shares})


def end(keys: list[str], dask_worker: Any = None) -> list[str]:
    """Ask tasks of this worker to end, as Ctrl-C does; return those that have begun."""
    begun = [key for key in keys if _state(dask_worker, key) in BEGUN]
    with _asking:
        _ended.update(begun)
    return begun


def work(request: dict[str, Any]) -> bytes:
    """Run a point, or find the facts of this host, in a process; return its answer.

    The process ends with this worker, with the client that wants the answer, and when it is asked to.
    """
    from distributed import get_worker

    worker = get_worker()
    key = str(worker.get_current_task())
    with (
        tempfile.TemporaryFile() as answer,
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryDirectory(prefix="hicache-nixl-") as folder,  # goes also when the process is killed
    ):
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hicache_nixl.lab.sweep.child"],
            env={**os.environ, "TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=printed,
            start_new_session=True,  # Ctrl-C of the terminal reaches the sweep only, which ends its points
        )
        assert process.stdin is not None  # it is a pipe
        try:
            with suppress(BrokenPipeError):  # of a process that has ended already, which its code tells
                whole = {**request, "folder": folder, "lock": str(_lock_of_machine())}
                process.stdin.write(json.dumps(whole).encode() + b"\n")
                process.stdin.flush()
            _watch(process, lambda: key in _ended or not _wanted(worker, key))
        finally:
            _kill(process)
        return _answer(process.returncode, key, answer, printed)


def _lock_of_machine() -> Path:
    """Return the file that a measurement locks; folders for temporary files may be shared by machines."""
    machine = re.sub(r"[^\w.-]", "-", identity()["machine"])
    return Path(tempfile.gettempdir(), f"hicache-nixl-{os.getuid()}-{machine}.lock")


def _watch(process: subprocess.Popen[bytes], unwanted: Any) -> None:
    """Wait for the end of a process; end it where nobody wants its answer."""
    while process.poll() is None:
        try:
            process.wait(LOOKS)
        except subprocess.TimeoutExpired:
            if unwanted():
                break
    assert process.stdin is not None  # it is a pipe
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):  # it is killed then
        process.wait(PATIENCE)


def _wanted(worker: Any, key: str) -> bool:
    """Return whether the scheduler still waits for a task; it does not when the client is gone."""
    return _state(worker, key) in ("executing", "long-running")


def _state(worker: Any, key: str) -> str | None:
    task = worker.state.tasks.get(key)
    return None if task is None else task.state


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answer(code: int, key: str, answer: IO[bytes], printed: IO[bytes]) -> bytes:
    interrupted = key in _ended
    with _asking:
        _ended.discard(key)
    answer.seek(0)
    told = answer.read()
    if code == 0 and told:
        return told
    if interrupted:
        return json.dumps({"state": INTERRUPTED}).encode() + b"\n"
    printed.seek(0)
    lines = printed.read().decode(errors="replace").strip().splitlines()
    last = lines[-1][:LAST] if lines else "it printed nothing"
    if code < 0:
        told_as = {"state": DIED, "reason": f"its process was ended by {signal.Signals(-code).name}"}
    else:
        told_as = {"state": FAILED, "reason": f"its process ended with {code}: {last}"}
    return json.dumps(told_as).encode() + b"\n"
