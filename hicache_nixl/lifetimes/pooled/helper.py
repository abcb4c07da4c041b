"""A thread that moves a half of a batch, on another processor than the thread that moves the other half."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

Answer = TypeVar("Answer")

_current_processor = ctypes.CDLL(None).sched_getcpu


class Helper:
    """One thread, which ``close`` ends.

    Linux often wakes a thread on the processor of the thread that wakes it, which goes on there; on virtual machines it
    was seen to leave both there for 15 ms, with another one idle.  So before it is woken the thread is told to keep off
    that processor.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "hicache-nixl")
        self._process = os.getpid()
        try:
            self._number: int | None = self._thread.submit(threading.get_native_id).result()
        except BaseException:
            self.close()
            raise

    def start(self, action: Callable[..., Answer], *args: Any) -> Future[Answer]:
        """Run an action in the thread; the caller goes on with other work."""
        allowed = os.sched_getaffinity(0)
        others = allowed - {_current_processor()}
        if others and self._number is not None and self._process == os.getpid():  # not after a fork
            with suppress(OSError):  # it may be forbidden: then it takes longer
                os.sched_setaffinity(self._number, others)
                return self._thread.submit(_allowed_again, allowed, action, args)
        return self._thread.submit(action, *args)

    def close(self) -> None:
        """End the thread, after what it runs.  May be called twice."""
        self._number = None
        self._thread.shutdown()


def _allowed_again(allowed: set[int], action: Callable[..., Answer], args: tuple[Any, ...]) -> Answer:
    """Run an action where this thread was woken, with all processors for what it starts itself."""
    with suppress(OSError):
        os.sched_setaffinity(0, allowed)
    return action(*args)
