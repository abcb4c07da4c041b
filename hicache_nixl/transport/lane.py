"""Memory that the requests of one call to an object store move bytes from and to."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

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

    def close(self) -> None:
        """End the registration of its memory."""
        self._held.close()
        self._memory = torch.empty(0, dtype=torch.uint8)


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
