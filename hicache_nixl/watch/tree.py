"""Finding processes to watch: the schedulers of SGLang on this machine, and the children of a process."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

SCHEDULER = "sglang::scheduler"  # the title of the process; a rank may follow, as in sglang::scheduler_TP0


def schedulers() -> list[int]:
    """Return the process ids of every SGLang scheduler that can be seen, in their order."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(SCHEDULER):
                found.append(process.pid)
    return sorted(found)


def family(pid: int) -> list[int]:
    """Return a process and all its descendants that have not ended, itself first and this process not among them."""
    with suppress(psutil.Error):
        children = psutil.Process(pid).children(recursive=True)
        return [pid, *sorted(child.pid for child in children if _lives(child) and child.pid != os.getpid())]
    return [pid]


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
