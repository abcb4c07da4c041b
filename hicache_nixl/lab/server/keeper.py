"""Run a server and end all of its processes: when its parent says so, and when the parent has gone.

The parent writes a line of JSON to stdin, the arguments of ``keep``, and closes it when the server is to end; the kernel
closes it for a parent that is killed.  A process of the server whose own parent ends becomes a child of this one, so that
none is overlooked.
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
from collections.abc import Mapping, Sequence

import psutil

SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # of <linux/prctl.h>
PATIENCE = 10.0  # seconds for processes to end by themselves
_prctl = ctypes.CDLL(None).prctl


def keep(command: Sequence[str], environ: Mapping[str, str], folder: str, nofile: int) -> int:
    """Run a command until it ends or stdin is closed; end what it has started; return its exit code.

    Parameters
    ----------
    folder : str
        Removed at the end.
    nofile : int
        The limit of open descriptors; 0 for the one that is set.
    """
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes of a terminal; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if nofile:
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

    try:
        server = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare
        )
        ended = os.pidfd_open(server.pid)
        select.select([sys.stdin, ended], [], [])
        return server.poll() or 0
    finally:
        _end_all()
        shutil.rmtree(folder, ignore_errors=True)


def _end_all() -> None:
    """End every process below this one: by SIGTERM, and by SIGKILL where that was not enough."""
    me, deadline = psutil.Process(), time.monotonic() + PATIENCE
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


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit(keep(**json.loads(sys.stdin.readline())))
