"""Run by the interpreter of a server: import SGLang once, then be the parent of the processes that use it.

Stdin is a socket.  A message on it is a JSON object, the place of a new process, with one end of a connection.  The new
process answers the calls that arrive there: the name of a method of ``Caches`` and its arguments.  It is a fork, made
before there is any thread, pool or agent.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import traceback
from multiprocessing.connection import Connection
from typing import NoReturn

import releases
from caches import Caches

MESSAGE = 4096  # bytes, at most


def main() -> NoReturn:
    """Fork processes until the other end of stdin is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then reaps
    gc.freeze()  # collections in the processes then leave out what SGLang has made
    control = socket.socket(fileno=os.dup(0))
    while True:
        message, fds, _, _ = socket.recv_fds(control, MESSAGE, 1)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            serve(Connection(fds[0]), **json.loads(message))
            os._exit(0)  # nothing of the parent is to be ended here
        os.close(fds[0])


def serve(calls: Connection, variables: dict[str, str], **place: object) -> None:
    """Answer calls, one after the other, until the connection is closed."""
    os.environ.update(variables)
    releases.take_place(**place)
    caches = Caches()
    while True:
        try:
            method, arguments = calls.recv()
        except EOFError:
            return
        try:
            answer = (getattr(caches, method)(**arguments), None)
        except BaseException:
            answer = (None, traceback.format_exc())
        calls.send(answer)


if __name__ == "__main__":
    main()
