"""Opening a store anew that was lost while it was in use: its state, its locks or its folder were removed or replaced.

Others who use the folder by then see other files than the calls of this process would, so these fail.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ...errors import ClosedError, DamagedError, HiCacheNixlError
from .opening import Store

logger = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two tries


class Owner(Protocol):
    """What owns a store, and can open it in place of the one that it has."""

    healing: Healing

    def open(self, storage_dir: str) -> Store:
        """Open the store, in place of one that is lost and that no call uses."""


Call = TypeVar("Call", bound=Callable[..., Any])


def healed(call: Call) -> Call:
    """Make a method of an ``Owner`` use a store that is not lost; a call that finds that it is fails."""

    @functools.wraps(call)
    def counted(owner: Owner, *args: Any) -> Any:
        healing = owner.healing
        healing.enter(owner)
        try:
            return call(owner, *args)
        except HiCacheNixlError as error:
            healing.examine(error)
            raise
        finally:
            healing.leave()

    return counted  # type: ignore[return-value]


class Healing:
    """Counts the calls that use a store; one that is lost is opened anew when there are none.

    Parameters
    ----------
    storage_dir : str
        The storage folder.
    store : Store
        The store in it.
    """

    def __init__(self, storage_dir: str, store: Store):
        self._folder, self._store = os.path.realpath(storage_dir), store
        self._changing = threading.Lock()
        self._calls = 0
        self._lost: str | None = None  # why; an error would keep arrays alive that map the files
        self._next = 0.0  # when it may be tried again, in seconds of the monotonic clock

    def enter(self, owner: Owner) -> None:
        """Begin a call; ``DamagedError`` if the store is lost, and cannot be opened now."""
        with self._changing:
            if self._lost is not None:
                if self._calls or time.monotonic() < self._next:
                    raise DamagedError(f"the store is lost: {self._lost}")
                self._open(owner, self._lost)
            self._calls += 1

    def _open(self, owner: Owner, lost: str) -> None:
        self._next = time.monotonic() + INTERVAL
        try:
            actual = os.path.realpath(self._folder)
            if actual != self._folder:  # a symbolic link may be there for an attack
                raise DamagedError(f"{lost}, and {self._folder} leads to {actual} now")
            self._store = owner.open(self._folder)
        except HiCacheNixlError as error:
            self._lost = str(error)
            raise
        self._lost = None
        found = "it is new and empty" if self._store.state.is_new else "its pages are there"
        logger.warning("opened the store in %s again, %s: %s", self._store.path, found, lost)

    def examine(self, error: HiCacheNixlError) -> None:
        """Find out whether a call failed because the store is lost."""
        lost = str(error) if isinstance(error, DamagedError) else self._damage()
        if lost:
            with self._changing:
                self._lost = lost

    def _damage(self) -> str:
        """Say what is wrong with the state, if anything is."""
        try:
            self._store.state.check()
            self._store.state.check_format()
        except ClosedError:
            pass
        except DamagedError as damage:
            return str(damage)
        return ""

    def leave(self) -> None:
        """End a call."""
        with self._changing:
            self._calls -= 1
