"""Make the k-th step of a call fail, on the real agent and the real files, and record what the call does.

It patches NIXL's agent class and ``os`` for the time of one call, so that it works alike for our lifetimes and
for the released connectors.  A fault replaces a step: a signal between a step and the assignment of its result is not
tried.  Files that NIXL opens itself (path mode) cannot be made to fail.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from ...errors import HiCacheNixlError

# What a step is made of: methods of NIXL's agent; "open" is os.open below the storage folder.
STEPS: dict[str, tuple[str, ...]] = {
    "open": (),
    "register": ("register_memory",),
    "descriptor list": ("get_reg_descs", "get_xfer_descs"),
    "initialize": ("initialize_xfer",),
    "post": ("transfer",),
    "poll": ("check_xfer_state",),
}
KINDS = ("error", "exception", "interrupt")


@dataclass(frozen=True)
class Fault:
    """The ``nth`` time of a step (from 1) fails; all later ones too for ``initialize``, which SGLang tries twice.

    ``kind`` is the step's own ``"error"`` (EMFILE, NIXL's exception, a refused list, the state ERR), an unexpected
    ``"exception"`` (ZeroDivisionError), or an ``"interrupt"`` (KeyboardInterrupt).
    """

    step: str
    nth: int
    kind: str

    def __post_init__(self) -> None:
        if self.step not in STEPS:
            raise HiCacheNixlError(f"step {self.step!r} is unknown; expected one of {', '.join(STEPS)}")
        if self.kind not in KINDS:
            raise HiCacheNixlError(f"kind {self.kind!r} is unknown; expected one of {', '.join(KINDS)}")

    def strikes(self, step: str, count: int) -> bool:
        """Tell whether the ``count``-th time of a step is to fail."""
        return step == self.step and (count == self.nth or (step == "initialize" and count > self.nth))

    def outcome(self) -> Any:
        """Raise, or return what the step returns when it fails."""
        if self.kind == "interrupt":
            raise KeyboardInterrupt
        if self.kind == "exception":
            raise ZeroDivisionError("injected")
        if self.step == "open":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "(injected)")
        if self.step in ("descriptor list", "poll"):
            return None if self.step == "descriptor list" else "ERR"
        raise RuntimeError("injected in place of NIXL's answer")


@dataclass
class Seen:
    """What a call did.

    Attributes
    ----------
    steps : Counter
        How often each step was reached.
    handles : int
        Transfer handles made and not released by the connector; NIXL 1.5 releases one when Python drops it.
    closes : Counter
        By how often it was closed: descriptors below the storage folder.
    fired : bool
        Whether the fault struck.
    """

    steps: Counter[str] = field(default_factory=Counter)
    handles: int = 0
    closes: Counter[int] = field(default_factory=Counter)
    fired: bool = False

    def as_columns(self) -> dict[str, Any]:
        """Return it as columns of a call's row."""
        return {
            "steps": dict(self.steps),
            "handles_left": self.handles,
            "most_closes": max(self.closes, default=0),
            "fired": self.fired,
        }


@contextmanager
def watched(agent_class: type, storage_dir: str, fault: Fault | None = None) -> Iterator[Seen]:
    """Record the steps of one call, and make one of them fail."""
    seen = Seen()
    with ExitStack() as patches:
        for step, methods in STEPS.items():
            for method in methods:
                patches.enter_context(_patched(agent_class, method, _step(seen, step, fault)))
        patches.enter_context(_patched(agent_class, "initialize_xfer", _counting(seen, 1)))
        patches.enter_context(_patched(agent_class, "release_xfer_handle", _counting(seen, -1)))
        patches.enter_context(_descriptors(seen, storage_dir, fault))
        yield seen


def _patched(target: Any, name: str, around: Callable[..., Any]) -> Any:
    """Replace a method or function by ``around(original, ...)``."""
    original = getattr(target, name)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    return patch.object(target, name, replacement)


def _step(seen: Seen, step: str, fault: Fault | None) -> Callable[..., Any]:
    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen.steps[step] += 1
        if fault is None or not fault.strikes(step, seen.steps[step]):
            return original(*args, **kwargs)
        seen.fired = True
        if step == "poll":  # NIXL answers ERR only when nothing is in flight
            while original(*args, **kwargs) == "PROC":
                continue
        return fault.outcome()

    return around


def _unwatched(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs)


def _counting(seen: Seen, change: int) -> Callable[..., Any]:
    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        seen.handles += change
        return result

    return around


def _is_folder(dir_fd: int | None, folder: str) -> bool:
    """Tell whether an open is relative to a folder."""
    return dir_fd is not None and os.readlink(f"/proc/self/fd/{dir_fd}") == os.path.realpath(folder)


@contextmanager
def _descriptors(seen: Seen, storage_dir: str, fault: Fault | None) -> Iterator[None]:
    """Record ``os.open`` and ``os.close`` of the files below the storage folder."""
    closes: dict[int, int] = {}  # of the latest file that a descriptor stood for
    step = _step(seen, "open", fault)

    def opening(original: Callable[..., int], path: Any, *args: Any, **kwargs: Any) -> int:
        ours = str(path).startswith(f"{storage_dir}/") or _is_folder(kwargs.get("dir_fd"), storage_dir)
        fd = (step if ours else _unwatched)(original, path, *args, **kwargs)
        if fd in closes:  # the number stands for something else now
            seen.closes[closes.pop(fd)] += 1
        if ours:
            closes[fd] = 0
        return fd

    def closing(original: Callable[[int], None], fd: int) -> None:
        if fd in closes:
            closes[fd] += 1
        original(fd)

    with _patched(os, "open", opening), _patched(os, "close", closing):
        yield
    seen.closes.update(closes.values())
