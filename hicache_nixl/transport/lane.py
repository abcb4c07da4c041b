"""Memory that the requests of one call to an object store move bytes from and to."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import AwayError, StoreError
from ..host.pools import aligned_tensor
from .registration import NixlRegistration

LANE_BYTES = 32 << 20  # of the requests of a call at a time, or of its largest one


@dataclass(frozen=True)
class Part:
    """A request: some bytes of a lane, and where they are in an object.

    Attributes
    ----------
    name : str
    at, size : int
        In the lane.
    offset : int
        In the object; 0 to write, which is always a whole object.
    """

    name: str
    at: int
    size: int
    offset: int = 0


class Lane:
    """Registered memory for the requests of one call."""

    def __init__(self, registration: NixlRegistration):
        self._registration = registration
        self._held = ExitStack()
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.running: dict[
            int, Any
        ] = {}  # handles of requests that are not answered, by their place in the call
        self.ends = ExitStack()  # what their call has registered

    @property
    def start(self) -> int:
        """Its address."""
        return self._memory.data_ptr()

    def grow(self, size: int) -> None:
        """Have at least this many bytes."""
        if size > len(self._memory):
            self.close()
            memory = aligned_tensor((size,), torch.uint8)
            self._held.enter_context(self._registration.registered_buffers([(memory.data_ptr(), size)]))
            self._memory = memory

    def fill(self, at: int, pieces: Sequence[tuple[int, int]]) -> None:
        """Copy pieces, pairs of address and bytes, into the lane, one behind the other."""
        to = self.start + at
        for address, size in pieces:
            ctypes.memmove(to, address, size)
            to += size

    def copy_to(self, at: int, pieces: Sequence[tuple[int, int]]) -> None:
        """Copy bytes of the lane to pieces, one behind the other."""
        source = self.start + at
        for address, size in pieces:
            ctypes.memmove(address, source, size)
            source += size

    def bytes_at(self, at: int, size: int) -> bytes:
        """Return bytes of the lane."""
        return ctypes.string_at(self.start + at, size)

    def write(self, at: int, content: bytes) -> None:
        """Put bytes into the lane."""
        ctypes.memmove(self.start + at, content, len(content))

    def settle(self) -> dict[int, Exception | None]:
        """Release the handles of requests that are answered; return the error of each, None for a good answer."""
        agent, answered = self._registration.agent, dict[int, Exception | None]()
        for which, handle in list(self.running.items()):
            error = None
            try:
                if (state := agent.check_xfer_state(handle)) == "PROC":
                    continue
                if state != "DONE":
                    error = StoreError(f"the request failed in NIXL: state {state}")
            except Exception as failure:
                error = StoreError(f"the request failed in NIXL: {failure}")
            del self.running[which]
            agent.release_xfer_handle(handle)
            answered[which] = error
        return answered

    def close(self) -> None:
        """End the registration of its memory."""
        try:
            self._held.close()
        finally:  # memory that is not registered is of no use
            self._memory = torch.empty(0, dtype=torch.uint8)


class Lanes:
    """The lanes of one agent: those that are free, and those with requests that are not answered."""

    def __init__(self, registration: NixlRegistration):
        self._registration = registration
        self._lock = threading.Lock()
        self._free: list[Lane] = []
        self._late: list[Lane] = []

    def check(self) -> None:
        """Raise ``AwayError`` while a request of an earlier call is not answered."""
        with self._lock:
            for lane in list(self._late):
                lane.settle()
                if not lane.running:
                    self._late.remove(lane)
                    self._free.append(lane)
                    lane.ends.close()
            late = sum(len(lane.running) for lane in self._late)
        if late:
            raise AwayError(
                f"the object store has not answered {late} requests yet; until then, none is made"
            )

    @contextmanager
    def lend(self, size: int) -> Iterator[Lane]:
        """Lend memory for one call; raise ``AwayError`` at once while the store does not answer."""
        self.check()
        with self._lock:
            lane = self._free.pop() if self._free else Lane(self._registration)
        try:
            lane.grow(size)
            yield lane
        finally:
            with self._lock:
                (self._late if lane.running else self._free).append(lane)

    def close(self) -> None:
        """End all registrations and the agent, which must have answered all requests."""
        with ExitStack() as stack:
            stack.callback(self._registration.close)
            while self._free:
                stack.callback(self._free.pop().close)


def windows(sizes: Sequence[int], most: int = LANE_BYTES) -> Iterator[tuple[int, int]]:
    """Yield ranges that are moved at a time: of at most so many bytes, or a single one.

    Examples
    --------
    >>> list(windows([4, 4, 4, 20, 4], 8))
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    first = total = 0
    for which, size in enumerate(sizes):
        if which > first and total + size > most:
            yield first, which
            first, total = which, 0
        total += size
    if sizes:
        yield first, len(sizes)


def starts_of(sizes: Sequence[int]) -> list[int]:
    """Return where things of these sizes start, one behind the other.

    Examples
    --------
    >>> starts_of([4, 8, 2])
    [0, 4, 12]
    """
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += size
    return starts
