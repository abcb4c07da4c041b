"""Making one step of a transfer fail, on the real agent and the real files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import FileError, HiCacheNixlError


@dataclass(frozen=True)
class Fault:
    """A way out of ``_execute_transfer``.

    Attributes
    ----------
    target : str
        ``"agent"`` or ``"file_manager"``.
    method : str
        Which of its methods fails.
    call : int
        On which call of that method, from 1.
    repeats : int
        How many calls of it fail from there on.
    outcome : callable
        Raises, or returns what the method answers.
    """

    title: str
    target: str
    method: str
    outcome: Callable[[], Any]
    call: int = 1
    repeats: int = 1


def _raising(error: BaseException) -> Callable[[], Any]:
    def outcome() -> Any:
        raise error

    return outcome


_NO_DESCRIPTOR = FileError(errno.EMFILE, os.strerror(errno.EMFILE), "(injected)")
_IN_NIXL = RuntimeError("injected in place of NIXL's answer")

# A multi-head page of two files is the smallest transfer: the second open is half way.
FAULTS = {
    "open": Fault("an open fails half way", "file_manager", "open_file", _raising(_NO_DESCRIPTOR), call=2),
    "register": Fault("registering the files fails", "agent", "register_memory", _raising(_IN_NIXL)),
    "register buffers": Fault(
        "registering the buffers fails", "agent", "register_memory", _raising(_IN_NIXL), call=2
    ),
    "descriptor list": Fault("a descriptor list is refused", "agent", "get_xfer_descs", lambda: None),
    "initialize": Fault(
        "initialization fails, and again", "agent", "initialize_xfer", _raising(_IN_NIXL), repeats=2
    ),
    "post": Fault("the post fails", "agent", "transfer", _raising(_IN_NIXL)),
    "poll": Fault("a poll answers ERR", "agent", "check_xfer_state", lambda: "ERR"),
    "exception": Fault(
        "an exception in the poll", "agent", "check_xfer_state", _raising(ZeroDivisionError("injected"))
    ),
    "interrupt": Fault("KeyboardInterrupt", "agent", "check_xfer_state", _raising(KeyboardInterrupt())),
}


def arm(connector: Any, step: str) -> None:
    """Make a step of the next transfer fail; ``disarm`` puts everything back."""
    if step not in FAULTS:
        raise HiCacheNixlError(f"fault {step!r} is unknown; it takes one of {', '.join(FAULTS)}")
    fault = FAULTS[step]
    target = _target(connector, fault)
    original = getattr(target, fault.method)
    calls = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if fault.call <= calls < fault.call + fault.repeats:
            if fault.method == "check_xfer_state":  # NIXL answers ERR only when nothing is in flight
                while original(*args) == "PROC":
                    continue
            return fault.outcome()
        return original(*args, **kwargs)

    setattr(target, fault.method, failing)


def disarm(connector: Any) -> None:
    """Take back every fault of this connector."""
    for fault in FAULTS.values():
        vars(_target(connector, fault)).pop(fault.method, None)


def _target(connector: Any, fault: Fault) -> Any:
    return connector.registration.agent if fault.target == "agent" else connector.file_manager
