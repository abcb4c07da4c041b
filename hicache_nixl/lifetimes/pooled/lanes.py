"""NIXL agents that move pieces between host memory and segments.

Pieces that are neighbours in memory and in the file become one I/O.  The segments and the host memory are registered
once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from ...config import NixlBackendConfig
from ...errors import RegistrationError, TransferError
from ...transport.agent import make_backend
from ...transport.registration import NixlRegistration, growing_pause

MOST_BYTES = 1 << 20  # of one I/O: larger ones are neither faster nor fair to others in the queue
MOST_PIECES = 1 << 12  # of one transfer: on libaio each has a queue of as many, out of ``fs.aio-max-nr``

Range = tuple[int, int]  # start and end of memory


class Pieces(NamedTuple):
    """Address, place in the file, and bytes of each piece: int64, (n,)."""

    memory: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


class Lane:
    """One NIXL agent, with what is registered in it.

    Parameters
    ----------
    config : NixlBackendConfig
    own : sequence of torch.Tensor
        Host memory that stays registered.
    """

    def __init__(self, config: NixlBackendConfig, own: Sequence[torch.Tensor] = ()):
        self._config = config
        backend = make_backend(config)
        self.registration = NixlRegistration(backend)
        self._memory: dict[Range, Any] = {}  # registrations
        self._pools: list[Range] = []  # those of them that are replaced
        self._files: dict[int, Any] = {}  # registrations by descriptor
        self._changing = threading.Lock()
        self._one_at_a_time: AbstractContextManager[Any] = (
            threading.Lock() if backend.keeps_failed_io else nullcontext()
        )
        try:
            self._register(map(_range_of, own))
        except BaseException:
            self.close()
            raise

    def register_memory(self, memory: Sequence[torch.Tensor]) -> None:
        """Register host memory, in place of what was registered before."""
        with self._one_at_a_time, self._changing:
            while self._pools:
                if held := self._memory.pop(self._pools.pop(), None):
                    self.registration.deregister(held)
            self._pools = list(map(_range_of, memory))
            self._register(self._pools)

    def _register(self, ranges: Any) -> None:
        for start, end in ranges:
            self._memory[start, end] = self.registration.register([(start, end - start, 0, "")], "DRAM")

    def _register_file(self, fd: int, size: int) -> None:
        with self._changing:
            if fd not in self._files:
                self._files[fd] = self.registration.register([(0, size, fd, "")], "FILE")

    def forget_files(self) -> None:
        """Deregister all files, whose descriptors may be those of other files later."""
        with self._one_at_a_time, self._changing:
            while self._files:
                self.registration.deregister(self._files.popitem()[1])

    def move(self, direction: str, fd: int, file_size: int, pieces: Pieces) -> None:
        """Move pieces between host memory and one file, and wait for the end.

        Parameters
        ----------
        direction : str
            ``"WRITE"`` to the file, ``"READ"`` from it.
        fd, file_size : int
            The file; it stays registered.
        pieces : Pieces

        Raises
        ------
        RegistrationError, TransferError
        """
        for first in range(0, len(pieces.sizes), MOST_PIECES):
            part = slice(first, first + MOST_PIECES)
            self._move(direction, fd, file_size, Pieces(*(numbers[part] for numbers in pieces)))

    def _move(self, direction: str, fd: int, file_size: int, pieces: Pieces) -> None:
        host, stored = np.zeros((2, len(pieces.sizes), 3), np.uint64)
        host[:, 0], host[:, 1] = pieces.memory, pieces.sizes
        stored[:, 0], stored[:, 1], stored[:, 2] = pieces.offsets, pieces.sizes, fd
        with self._one_at_a_time:  # registrations too: they end with an agent that is replaced
            if fd not in self._files:
                self._register_file(fd, file_size)
            try:
                with self._registered(pieces):
                    self._transfer(direction, host, stored)
            except TransferError:
                self._after_failure()
                raise

    def _transfer(self, direction: str, host: np.ndarray, stored: np.ndarray) -> None:
        agent = self.registration.agent
        try:
            lists = agent.get_xfer_descs(host, "DRAM"), agent.get_xfer_descs(stored, "FILE")
        except Exception as error:
            raise RegistrationError(f"no descriptor list could be made of these buffers: {error}") from error
        self.registration.run(self.registration.initialize(direction, *lists), growing_pause)

    def _registered(self, pieces: Pieces) -> AbstractContextManager[Any]:
        """Hold buffers registered for this call, unless they lie in the memory that is."""
        memory, sizes = pieces.memory, pieces.sizes
        start, end = int(memory.min()), int((memory + sizes).max())
        if any(first <= start and end <= last for first, last in list(self._memory)):
            return nullcontext()
        return self.registration.registered_buffers(list(zip(memory.tolist(), sizes.tolist(), strict=True)))

    def _after_failure(self) -> None:
        """Replace an agent that fails for ever after one failure; files are registered again when needed."""
        if not self.registration.keeps_failed_io:
            return
        ranges, self._memory, self._files = list(self._memory), {}, {}
        self.registration.attach(make_backend(self._config))
        self._register(ranges)

    def close(self) -> None:
        """Drop the agent, which ends its registrations.  May be called twice."""
        self.registration.close()


def _range_of(tensor: torch.Tensor) -> Range:
    start = tensor.data_ptr()
    return start, start + tensor.numel() * tensor.element_size()


def merged(pieces: Pieces) -> Pieces:
    """Return the pieces with neighbours in memory and file merged, up to ``MOST_BYTES`` each.

    Examples
    --------
    >>> [a.tolist() for a in merged(Pieces(np.array([0, 8, 32]), np.array([64, 72, 80]), np.array([8, 8, 8])))]
    [[0, 32], [64, 80], [16, 8]]
    """
    memory, offsets, sizes = pieces
    joined = memory[1:] == memory[:-1] + sizes[:-1]
    joined &= offsets[1:] == offsets[:-1] + sizes[:-1]
    if joined.all() and (whole := int(sizes.sum())) <= MOST_BYTES:
        return Pieces(memory[:1], offsets[:1], np.array([whole]))
    first = np.append(0, np.flatnonzero(~joined) + 1)
    if len(first) == len(sizes):
        return pieces
    ends = sizes.cumsum()
    before = ends - sizes
    lengths = np.diff(before[first], append=ends[-1])
    if lengths.max() > MOST_BYTES:
        first = _cut(first, before)
        lengths = np.diff(before[first], append=ends[-1])
    return Pieces(memory[first], offsets[first], lengths)


def _cut(first: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the first piece of each I/O, given that of each run and the bytes before each piece."""
    run = np.zeros(len(before), np.int64)
    run[first[1:]] = 1
    run = run.cumsum()
    part = (before - before[first][run]) // MOST_BYTES
    return np.flatnonzero(np.append(True, (run[1:] != run[:-1]) | (part[1:] != part[:-1])))
