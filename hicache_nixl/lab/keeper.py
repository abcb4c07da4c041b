"""Run a command and end all of its processes: when the parent says so, and when the parent has gone.

``kept`` starts this file as a process.  The parent writes a line of JSON to its stdin, the arguments of ``keep``, and closes
it when the command is to end; the kernel closes it for a parent that is killed.  A process whose own parent ends becomes a
child of the keeper, so that none is overlooked.  What they leave in shared memory is removed.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # of <linux/prctl.h>
PATIENCE = 10.0  # seconds for processes to end by themselves
KILLED = (
    128  # a command that a signal has ended has this exit code and the number of the signal, as in a shell
)
SHARED_MEMORY = Path("/dev/shm")
SHARED_NAMES = (
    "sem.",
    "psm_",
    "torch_",
    "sglang_",
)  # of semaphores and blocks, not of files that a user puts there
_prctl = ctypes.CDLL(None).prctl


@contextmanager
def kept(
    command: Sequence[str | os.PathLike[str]],
    environ: Mapping[str, str],
    folder: Path,
    output: IO[Any],
    nofile: int = 0,
    patience: float = PATIENCE,
    shared: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """Yield a keeper that runs a command, see ``keep``; at the end, every process of the command has ended."""
    what = {
        "command": [os.fspath(part) for part in command],
        "environ": dict(environ),
        "folder": os.fspath(folder),
        "nofile": nofile,
        "patience": patience,
        "shared": shared,
    }
    keeper = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert keeper.stdin is not None
    try:
        with keeper.stdin:
            keeper.stdin.write(f"{json.dumps(what)}\n")
            keeper.stdin.flush()
            yield keeper
    finally:
        keeper.wait()


def keep(
    command: Sequence[str],
    environ: Mapping[str, str],
    folder: str,
    nofile: int,
    patience: float,
    shared: bool,
) -> int:
    """Run a command until it ends or stdin is closed; end what it has started; return its exit code.

    Parameters
    ----------
    folder : str
        Removed at the end.
    nofile : int
        The limit of open descriptors; 0 for the one that is set.
    patience : float
        Seconds between SIGTERM and SIGKILL.
    shared : bool
        Whether other commands use the folder: it then stays when this one ends by itself.
    """
    # Ctrl-C reaches all processes of a terminal; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if nofile:
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

    there, by_itself = _shared_files(), False
    try:
        server = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare
        )
        ended = os.pidfd_open(server.pid)
        by_itself = ended in select.select([sys.stdin, ended], [], [])[0]
        code = server.poll() or 0
        return code if code >= 0 else KILLED - code
    finally:
        left = _shared_of(psutil.Process().children(recursive=True)) - there.keys()
        _end_all(patience)
        _remove_shared(left)
        if not (shared and by_itself):
            shutil.rmtree(folder, ignore_errors=True)


def _end_all(patience: float) -> None:
    """End every process below this one: by SIGTERM, and by SIGKILL where that was not enough."""
    me, deadline = psutil.Process(), time.monotonic() + patience
    _signal(me.children(recursive=True), signal.SIGTERM)
    while alive := me.children(recursive=True):
        _reap()
        if time.monotonic() > deadline:
            _signal(alive, signal.SIGKILL)
        time.sleep(0.05)


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _shared_files() -> dict[int, Path]:
    """Return semaphores and blocks of shared memory, by inode."""
    with suppress(OSError), os.scandir(SHARED_MEMORY) as files:
        return {file.inode(): Path(file.path) for file in files if file.name.startswith(SHARED_NAMES)}
    return {}


def _shared_of(processes: Iterable[psutil.Process]) -> set[int]:
    """Return the inodes of what processes have mapped or open in shared memory.

    /proc names a semaphore by the temporary name that glibc has made it under, so a name does not suffice.
    """
    found: set[int] = set()
    beginning = f"{SHARED_MEMORY}/"
    for process in processes:
        folder = Path("/proc", str(process.pid))
        with suppress(OSError):  # it has ended, or is that of another user
            maps = (folder / "maps").read_text(errors="replace").splitlines()
            found.update(int(line.split()[4]) for line in maps if beginning in line)
            files = [file for file in (folder / "fd").iterdir() if os.readlink(file).startswith(beginning)]
            found.update(file.stat().st_ino for file in files)
    return found


def _remove_shared(inodes: set[int]) -> None:
    """Remove what is left in shared memory and no other process uses."""
    files = _shared_files()
    if left := inodes & files.keys():
        for inode in left - _shared_of(psutil.process_iter()):
            files[inode].unlink(missing_ok=True)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit(keep(**json.loads(sys.stdin.readline())))
