"""The calls of a connector: which are running, so that ``close`` can wait for them, and how they fail.

This is the one place where an error becomes False and a line in the log: inside the package errors are
raised, while an exception that leaves the connector would end a thread of the server.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .config import HiCacheStorageConfig, NixlBackendConfig
from .errors import ClosedError, HiCacheNixlError, KeyRefusedError
from .interrupts import deferred
from .lifetimes.outcome import MOVED, Outcome

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

INTERRUPTED_AFTER = 0.1  # seconds that ``close`` waits for calls before an interrupt can end it


class Calls:
    """Counts running calls; ``close`` waits for them and refuses further ones.

    SGLang closes a backend at detach, while its backup and prefetch threads may still be in a transfer.
    Dropping the agent during a transfer is a use after free.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[int] = set()  # threads
        self._closed = False

    def run(self, action: Callable[..., Answer], *args: Any) -> Answer:
        """Run an action as a call; interrupts wait for its end.  ``ClosedError`` after ``close``."""
        return deferred(self._run, action, *args)

    def _run(self, action: Callable[..., Answer], *args: Any) -> Answer:
        this_thread = threading.get_ident()
        with self._changed:
            if self._closed:
                raise ClosedError("the connector is closed")
            self._running.add(this_thread)
        try:
            return action(*args)
        finally:
            with self._changed:
                self._running.discard(this_thread)
                self._changed.notify_all()

    def guarded(
        self, operation: str, keys: Sequence[Any], failure: Answer, action: Callable[..., Answer], *args: Any
    ) -> Answer:
        """Run an action as a call; on an error log one line and return ``failure``."""
        return deferred(self._guarded, operation, keys, failure, action, *args)

    def _guarded(
        self, operation: str, keys: Sequence[Any], failure: Answer, action: Callable[..., Answer], *args: Any
    ) -> Answer:
        return self.part(operation, keys, failure, self._run, action, *args)

    def part(
        self, operation: str, keys: Sequence[Any], failure: Answer, action: Callable[..., Answer], *args: Any
    ) -> Answer:
        """Run an action that is a part of a call; on an error log one line and return ``failure``."""
        try:
            if not is_list(keys):
                raise KeyRefusedError(f"expected a list of keys, got {type(keys).__name__}")
            return action(*args)
        except Exception as error:  # any error: the server's thread must go on
            self._failed(operation, keys, error)
        return failure

    def moved(
        self, operation: str, keys: Sequence[str], action: Callable[..., Sequence[Outcome]], *args: Any
    ) -> list[bool]:
        """Run a part of a call that moves pages; log each error once and return which pages were moved.

        Parameters
        ----------
        keys : sequence of str
            Length n, one per page.
        action : callable
            Returns n outcomes, or raises when all n failed.

        Returns
        -------
        list of bool
            Length n.
        """
        try:
            outcomes = action(*args)
        except Exception as error:
            self._failed(operation, keys, error)
            return [False] * len(keys)
        if outcomes.count(MOVED) == len(outcomes):
            return [True] * len(outcomes)
        failed: dict[int, list[str]] = {}  # keys by the identity of their error
        errors: dict[int, Exception] = {}
        for key, outcome in zip(keys, outcomes, strict=False):
            if outcome.error is not None:
                errors[id(outcome.error)] = outcome.error
                failed.setdefault(id(outcome.error), []).append(key)
        for which, cause in errors.items():
            self._failed(operation, failed[which], cause)
        return [outcome.moved for outcome in outcomes]

    def _failed(self, operation: str, keys: Sequence[Any], error: Exception) -> None:
        _log(operation, keys, error)

    def watch(self, lifetime: Any) -> None:
        """Do nothing: nothing is measured."""

    def stats(self) -> Any:
        """Return the transfers since the last call: None, since nothing is measured."""
        return None

    def close(self) -> None:
        """Refuse calls from now on and wait for running ones; may be called twice.

        An interrupt ends the wait.
        """
        while not deferred(self._drained):
            pass

    def _drained(self) -> bool:
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: not self._running, INTERRUPTED_AFTER)


def calls_of(config: HiCacheStorageConfig, backend: NixlBackendConfig, folder: str) -> Calls:
    """Return the calls of a connector, which are measured if the option ``metrics`` is on."""
    if not backend.metrics:
        return Calls()
    from .metrics import MeasuredCalls

    return MeasuredCalls(config, backend, folder)


def is_list(keys: Any) -> bool:
    """Return whether something is a list of keys: not None, not a generator, not a single key."""
    return isinstance(keys, Sequence) and not isinstance(keys, str | bytes)


def one_each(answer: Answer, keys: Any) -> list[Answer]:
    """Return an answer for each key; a single one for what is no list of keys, since ``all([])`` is True."""
    return [answer] * (len(keys) if is_list(keys) else 1)


def _log(operation: str, keys: Sequence[Any], error: Exception) -> None:
    """Log one line; with a traceback where the error is not one of ours."""
    listed = keys if is_list(keys) else [keys]
    of_keys = ""
    if listed:
        first = listed[0]
        shown = repr(first) if isinstance(first, str) else type(first).__name__
        of_keys = f" of {len(listed)}, first {shown}"
    if isinstance(error, HiCacheNixlError):
        logger.error("%s%s: %s", operation, of_keys, error)
    else:
        logger.error("%s%s: unexpected error", operation, of_keys, exc_info=error)
