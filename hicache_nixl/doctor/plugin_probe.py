"""Create every plugin of one build of NIXL, each in its own process, and print what each of them printed as JSON.

``python -P plugin_probe.py nixl_cu13 SECONDS``; without arguments it prints the build that ``import nixl`` loads.
It is a script, because a process can load only one build and the package around it takes seconds to import.
A plugin that crashes or hangs while it is created ends its fork only.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

LONGEST = 4.0  # seconds for one plugin; UCX takes half a second
HANGS = "hangs"
# OBJ cannot be created without a bucket, and without keys it would look for some.  No store is contacted.
SETTINGS = {
    "OBJ": {
        "bucket": "not-asked",
        "endpoint_override": "127.0.0.1:9",
        "scheme": "http",
        "region": "none",
        "access_key": "none",
        "secret_key": "none",
        "use_virtual_addressing": "false",
    }
}


def in_a_fork(work: Callable[[], Any], seconds: float) -> tuple[int | str, str]:
    """Run something in a fork; return its exit code, negative for a signal, or ``HANGS``, and what it printed."""
    log = os.memfd_create("log")
    pid = os.fork()
    if pid == 0:
        _be_the_fork(work, log)
    ended: int | str
    pidfd = os.pidfd_open(pid)
    if select.select([pidfd], [], [], max(0.0, seconds))[0]:
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ended = HANGS
    os.close(pidfd)
    with os.fdopen(log, "rb") as printed:
        printed.seek(0)
        return ended, printed.read().decode(errors="replace")


def _be_the_fork(work: Callable[[], Any], log: int) -> None:
    code = 1
    try:
        for fd in (1, 2):
            os.dup2(log, fd)
        work()
        code = 0
    except BaseException:  # log it, whatever it was; the fork must not continue as its parent
        sys.excepthook(*sys.exc_info())  # prints it
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def make_agent(api: Any) -> Any:
    """Create an agent without a plugin."""
    return api.nixl_agent("doctor", api.nixl_agent_config(backends=[]))


def create_plugin(api: Any, plugin: str) -> None:
    """Create a plugin with an agent of its own."""
    make_agent(api).create_backend(plugin, SETTINGS.get(plugin, {}))


def main(build: str, seconds: float) -> None:
    """Write a list of ``{"plugin", "ended", "log"}`` to stdout."""
    deadline = time.monotonic() + seconds
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # NIXL prints to stdout as well
    api = importlib.import_module(f"{build}._api")
    rows = []
    for plugin in make_agent(api).get_plugin_list():
        create = partial(create_plugin, api, plugin)
        ended, log = in_a_fork(create, min(LONGEST, deadline - time.monotonic()))
        rows.append({"plugin": plugin, "ended": ended, "log": log})
    json.dump(rows, answer)
    answer.close()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.stdout.write("\n" + importlib.import_module("nixl._api").__name__.partition(".")[0])
    else:
        main(sys.argv[1], float(sys.argv[2]))
