"""Faults in a live agent and in ``os.open``, and a record of what a store opens, registers and ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import keys_of

from hicache_nixl import HiCacheNixl
from hicache_nixl.host.pools import HostKVPool

PAGES = 2  # four files: <key>_k and <key>_v, twice
NAMES = sorted(f"{key}_org-model_0_1{ending}" for key in keys_of(PAGES) for ending in ("_k", "_v"))
ALWAYS = range(1, 1000)


def raising(error: BaseException) -> Callable[..., Any]:
    def outcome(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        raise error

    return outcome


def answering_nothing(original: Callable[..., Any], *args: Any) -> Any:
    return None


def err_once_it_is_over(original: Callable[..., Any], handle: Any) -> str:
    while original(handle) == "PROC":
        pass
    return "ERR"


def raising_at_first_sight(error: BaseException) -> Callable[..., Any]:
    """Raise at the first poll of each transfer, as NIXL does for one that is still under way."""
    seen: list[Any] = []

    def outcome(original: Callable[..., Any], handle: Any) -> Any:
        if any(handle is other for other in seen):
            return original(handle)
        seen.append(handle)
        raise error

    return outcome


@dataclass(frozen=True)
class Fault:
    """One method of the live agent fails, or the opening of a page file, on the given calls of it (from 1).

    Attributes
    ----------
    good : tuple of bool
        Which of the pages a lifetime can still move that does not fail them together.
    """

    method: str
    outcome: Callable[..., Any]
    calls: tuple[int, ...] | range = (1,)
    good: tuple[bool, ...] = (False,) * PAGES

    @property
    def all_open(self) -> bool:
        """Whether every file of the call is open when it strikes."""
        return self.method != "open"

    @property
    def in_transfer(self) -> bool:
        """Whether it fails a transfer, which is then tried again file by file where pages fail one by one."""
        return self.method in ("transfer", "check_xfer_state")


IN_NIXL = RuntimeError("made to fail in place of NIXL")
NO_DESCRIPTOR = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
FAULTS = {
    "open of the first file": Fault("open", raising(NO_DESCRIPTOR), good=(False, True)),
    "open of the second file": Fault("open", raising(NO_DESCRIPTOR), (2,), good=(False, True)),
    "open of the last file": Fault("open", raising(NO_DESCRIPTOR), (4,), good=(True, False)),
    "register files": Fault("register_memory", raising(IN_NIXL)),
    "host list None": Fault("get_xfer_descs", answering_nothing),
    "storage list None": Fault("get_xfer_descs", answering_nothing, (2,)),
    "list raises": Fault("get_xfer_descs", raising(IN_NIXL)),
    "initialize, also again": Fault("initialize_xfer", raising(IN_NIXL), ALWAYS),
    "post raises": Fault("transfer", raising(IN_NIXL), ALWAYS),
    "post ERR": Fault("transfer", lambda original, handle: "ERR", ALWAYS),
    "poll raises": Fault("check_xfer_state", raising_at_first_sight(IN_NIXL), ALWAYS),
    "poll ERR": Fault("check_xfer_state", err_once_it_is_over, ALWAYS),
    "unexpected exception": Fault(
        "check_xfer_state", raising_at_first_sight(ZeroDivisionError("made")), ALWAYS
    ),
}
INTERRUPTS = {
    "open": Fault("open", raising(KeyboardInterrupt()), (2,)),
    "register files": Fault("register_memory", raising(KeyboardInterrupt())),
    "list": Fault("get_xfer_descs", raising(KeyboardInterrupt()), (2,)),
    "initialize": Fault("initialize_xfer", raising(KeyboardInterrupt())),
    "post": Fault("transfer", raising(KeyboardInterrupt())),
    "poll": Fault("check_xfer_state", raising(KeyboardInterrupt())),
}


class Observed:
    """Records what a store opens, registers, posts and ends, on the real agent and the real files.

    Attributes
    ----------
    events : list of str
        ``open``, ``register FILE_SEG``, ``post``, ``release``, ``deregister FILE_SEG``, ``close``, in order.
    opened, closed : list of str
        Names of the page files, one per descriptor.
    refused : list of int
        What ``os.close`` was asked to close and was not open.
    """

    def __init__(
        self, store: HiCacheNixl, folder: Path, replace: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ):
        self.agent, self._replace, self._monkeypatch = store.lifetime.registration.agent, replace, monkeypatch
        self._root = f"{folder}/"
        self._poll = self.agent.check_xfer_state
        self._alive: dict[int, str] = {}
        self._regions: list[Any] = []
        self._ended: list[Any] = []
        self.events: list[str] = []
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.refused: list[int] = []
        self.posted: list[Any] = []
        self.released: list[Any] = []
        self.deregistered_twice = self.released_in_flight = False
        self._watch_os()
        self._watch("register_memory", self._register_memory)
        self._watch("deregister_memory", self._deregister_memory)
        self._watch("transfer", self._transfer)
        self._watch_release()

    @property
    def registered(self) -> int:
        """How many registrations are alive of those made since."""
        return len(self._regions)

    def arm(self, fault: Fault) -> Callable[[], None]:
        """Put a fault in place; return the function that takes it back."""
        calls: list[Any] = []
        original = os.open if fault.method == "open" else getattr(self.agent, fault.method)

        def failing(*args: Any, **kwargs: Any) -> Any:
            if fault.method == "open" and not self._is_page(*args, **kwargs):
                return original(*args, **kwargs)
            calls.append(args)
            if len(calls) in fault.calls:
                return fault.outcome(original, *args, **kwargs)
            return original(*args, **kwargs)

        def put(function: Callable[..., Any]) -> None:
            if fault.method == "open":
                self._monkeypatch.setattr(os, "open", function)
            else:
                self._replace(self.agent, fault.method, function)

        def disarm() -> None:
            assert len(calls) >= fault.calls[0], f"{fault.method} was never reached"
            put(original)

        put(failing)
        return disarm

    def _is_page(self, path: Any, flags: int, *args: Any, dir_fd: int | None = None) -> bool:
        """Whether an open is the one for a transfer; leaky and try_finally create files before, to write only."""
        inside = str(path).startswith(self._root) or dir_fd is not None
        return inside and flags & os.O_ACCMODE == os.O_RDWR

    def _watch_os(self) -> None:
        really_open, really_close = os.open, os.close

        def observed_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            fd = really_open(path, flags, *args, **kwargs)
            if self._is_page(path, flags, *args, **kwargs):
                self._alive[fd] = str(path).removeprefix(self._root)
                self.opened.append(self._alive[fd])
                self.events.append("open")
            return fd

        def observed_close(fd: int) -> None:
            try:
                really_close(fd)
            except OSError:
                self.refused.append(fd)
                raise
            if fd in self._alive:
                self.closed.append(self._alive.pop(fd))
                self.events.append("close")

        self._monkeypatch.setattr(os, "open", observed_open)
        self._monkeypatch.setattr(os, "close", observed_close)

    def _watch(self, method: str, note: Callable[..., None]) -> None:
        original = getattr(self.agent, method)

        def observed(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            note(result, *args)
            return result

        self._replace(self.agent, method, observed)

    def _register_memory(self, regions: Any, *args: Any) -> None:
        self._regions.append(regions)
        self.events.append(f"register {regions.getType().name}")

    def _deregister_memory(self, result: Any, regions: Any) -> None:
        self._regions = [other for other in self._regions if other is not regions]
        self.deregistered_twice |= any(other is regions for other in self._ended)
        self._ended.append(regions)
        self.events.append(f"deregister {regions.getType().name}")

    def _transfer(self, result: Any, handle: Any) -> None:
        self.posted.append(handle)
        self.events.append("post")

    def _watch_release(self) -> None:
        release = self.agent.release_xfer_handle

        def observed_release(handle: Any) -> Any:
            if handle in self.posted and self._poll(handle) == "PROC":
                self.released_in_flight = True
            self.released.append(handle)
            self.events.append("release")
            return release(handle)

        self._replace(self.agent, "release_xfer_handle", observed_release)


def set_pages(store: HiCacheNixl, pool: HostKVPool) -> list[bool]:
    return store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES))


def get_pages(store: HiCacheNixl, pool: HostKVPool) -> list[bool]:
    return store.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES))
