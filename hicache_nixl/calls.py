"""The calls of a connector: which are running, so that ``close`` can wait for them, and how they fail.

This is the one place where an error becomes False and a line in the log: inside the package errors are
raised, while an exception that leaves the connector would end a thread of the server.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from .errors import ClosedError, HiCacheNixlError
from .lifetimes.outcome import Outcome

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Calls:
    """Counts running calls; ``close`` waits for them and refuses further ones.

    SGLang closes a backend at detach, while its backup and prefetch threads may still be in a transfer.
    Dropping the agent during a transfer is a use after free.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False
        self._this_thread = threading.local()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count as a running call, or as a part of one; raise ``ClosedError`` after ``close``."""
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
        """Run an action; on an error log one line and return ``failure``."""
        try:
            with self.running():
                return action(*args)
        except Exception as error:  # any error: the server's thread must go on
            _log(operation, keys, error)
        return failure

    def moved(
        self, operation: str, names: Sequence[str], action: Callable[..., Sequence[Outcome]], *args: Any
    ) -> list[bool]:
        """Run an action that moves pieces; log each error once and return which pieces were moved.

        Parameters
        ----------
        names : sequence of str
            Length n, one per piece.
        action : callable
            Returns n outcomes, or raises when all n failed.

        Returns
        -------
        list of bool
            Length n.
        """
        nothing: Sequence[Outcome] = ()
        outcomes = self.guarded(operation, names, nothing, action, *args)
        failed: dict[int, list[str]] = {}  # names by the identity of their error
        errors: dict[int, Exception] = {}
        for name, outcome in zip(names, outcomes, strict=False):
            if outcome.error is not None:
                errors[id(outcome.error)] = outcome.error
                failed.setdefault(id(outcome.error), []).append(name)
        for key, error in errors.items():
            _log(operation, failed[key], error)
        return [outcome.moved for outcome in outcomes] or [False] * len(names)

    def close(self) -> None:
        """Refuse calls from now on and wait for running ones; may be called twice."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._running)


def _log(operation: str, keys: Sequence[Any], error: Exception) -> None:
    """Log one line; with a traceback where the error is not one of ours."""
    first = keys[0] if len(keys) else "(none)"
    shown = repr(first) if isinstance(first, str) else type(first).__name__
    if isinstance(error, HiCacheNixlError):
        logger.error("%s of %d, first %s: %s", operation, len(keys), shown, error)
    else:
        logger.error("%s of %d, first %s: unexpected error", operation, len(keys), shown, exc_info=error)
