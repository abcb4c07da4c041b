"""Which calls are running, so that a connector is not closed under them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ClosedError


class Calls:
    """Counts running calls; ``close`` waits for them and lets no further one begin.

    SGLang closes a backend at detach, while its backup and prefetch threads may still be in a transfer.  To
    drop the agent under them is a use after free.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False
        self._this_thread = threading.local()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be a running call, or a part of one; raises ``ClosedError`` for one that begins after ``close``."""
        if getattr(self._this_thread, "inside", False):
            yield
            return
        with self._changed:
            if self._closed:
                raise ClosedError("the connector is closed")
            self._running += 1
        self._this_thread.inside = True
        try:
            yield
        finally:
            self._this_thread.inside = False
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse calls from now on and wait for those that run; may be called twice."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._running)
