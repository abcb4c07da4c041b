"""The calls of a connector: which are running, so that it is not closed under them, and how they fail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from .errors import ClosedError, HiCacheNixlError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


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

    def guarded(
        self, operation: str, keys: Sequence[Any], failure: Answer, action: Callable[..., Answer], *args: Any
    ) -> Answer:
        """Run an action; on an error log one line and answer ``failure``.

        The connector's edge: inside errors are raised, outside SGLang's threads must go on.
        """
        try:
            with self.running():
                return action(*args)
        except HiCacheNixlError as error:
            logger.error("%s of %d, first %s: %s", operation, len(keys), _first(keys), error)
        except Exception:  # whatever it is, the server's thread must live
            logger.exception("%s of %d, first %s: unexpected error", operation, len(keys), _first(keys))
        return failure

    def close(self) -> None:
        """Refuse calls from now on and wait for those that run; may be called twice."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._running)


def _first(keys: Sequence[Any]) -> str:
    first = keys[0] if len(keys) else "(none)"
    return repr(first) if isinstance(first, str) else type(first).__name__
