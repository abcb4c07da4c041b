"""Python's signal handlers wait until a call has released what it holds.

A handler that raises, as that of Ctrl-C does, may raise between any two steps: after NIXL freed a transfer handle
and before its Python API noted that, so that the handle is freed twice and the process crashes; or inside a
``finally``, whose rest is then skipped.  No order of statements prevents this.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # its functions take no 40 us for converting to enums
import inspect
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

Answer = TypeVar("Answer")

_SIGNALS = tuple(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))


def deferred(action: Callable[..., Answer], *args: Any) -> Answer:
    """Run an action; the handlers of signals that arrive meanwhile run when it has ended, and may then raise.

    Python runs them in the main thread, so an action in another thread just runs.  An exception that
    ``PyThreadState_SetAsyncExc`` raises in a thread is not deferred.

    Examples
    --------
    >>> done = []
    >>> try:
    ...     deferred(lambda: (signal.raise_signal(signal.SIGINT), done.append("all of it")))
    ... except KeyboardInterrupt:
    ...     done
    ['all of it']
    """
    if threading.current_thread() is not threading.main_thread():
        return action(*args)
    deferral = _Deferral()
    try:
        deferral.begin()
        return action(*args)
    finally:
        deferral.end()


class _Deferral:
    """A signal handler that notes signals, and passes them on once it is not ``holding`` any more.

    So it does no harm where an interrupt keeps it from being replaced by the handler that it stands for.
    """

    def __init__(self) -> None:
        self.holding = True
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._arrived: dict[int, None] = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.holding:
            self._arrived[number] = None
        else:
            self._handlers[number](number, frame)

    def begin(self) -> None:
        for number, handler in zip(_SIGNALS, map(_signal.getsignal, _SIGNALS), strict=True):
            if callable(handler):
                left = isinstance(handler, _Deferral) and not handler.holding
                self._handlers[number] = handler._handlers[number] if left else handler
                _signal.signal(number, self)

    def end(self) -> None:
        self.holding = False
        try:
            for number, handler in self._handlers.items():
                if _signal.getsignal(number) is self:
                    _signal.signal(number, handler)
        finally:
            self._deliver(inspect.currentframe())

    def _deliver(self, frame: FrameType | None) -> None:
        if self._arrived:
            number, _ = self._arrived.popitem()
            try:
                self._handlers[number](number, frame)
            finally:  # the handlers of other signals that arrived
                self._deliver(frame)
