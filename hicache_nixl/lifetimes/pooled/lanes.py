"""Moving the bytes of pages between host memory and segments with NIXL.

Pieces that are neighbours in memory and in the file become one I/O.  The segments and the host pool are registered
once.  A second agent in a thread of its own moves the other half of large batches: on libaio the copy between page
cache and host memory takes place in the thread that submits it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from ...config import NixlBackendConfig
from ...errors import RegistrationError, TransferError
from ...host.pools import aligned_tensor
from ...transport.agent import make_backend
from ...transport.registration import NixlRegistration, growing_pause

MOST_BYTES = 1 << 20  # of one I/O: larger ones are neither faster nor fair to others in the queue
# Pieces up to this size that are not neighbours in memory are copied next to each other: that takes less time than an
# I/O for each, and a piece of less than 4 KiB would make the kernel read the rest of its block before it is written.
SMALL_PIECE = 16 << 10
STAGE_BYTES = 2 << 20


class Lane:
    """One NIXL agent, with what is registered in it.

    Parameters
    ----------
    config : NixlBackendConfig
    """

    def __init__(self, config: NixlBackendConfig):
        self._config = config
        backend = make_backend(config)
        self.registration = NixlRegistration(backend)
        self._memory: list[tuple[int, int]] = []  # start and end of what is registered
        self._tensors: list[torch.Tensor] = []  # what they belong to
        self._held: list[Any] = []
        self._files: dict[int, int] = {}  # size by descriptor
        self._changing = threading.Lock()
        self._stage: torch.Tensor | None = None  # registered when it is first used
        self._staging = threading.Lock()
        self._one_at_a_time: AbstractContextManager[Any] = (
            threading.Lock() if backend.keeps_failed_io else nullcontext()
        )

    def register_memory(self, memory: Sequence[torch.Tensor]) -> None:
        """Register host memory, in place of what was registered before."""
        with self._one_at_a_time, self._changing:
            self._memory, self._tensors = [], []
            while self._held:
                self.registration.deregister(self._held.pop())
            for tensor in memory:
                start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
                self._held.append(self.registration.register([(start, size, 0, "")], "DRAM"))
                self._memory.append((start, start + size))
                self._tensors.append(tensor)

    def _register_file(self, fd: int, size: int) -> None:
        with self._changing:
            if fd not in self._files:
                self.registration.register([(0, size, fd, "")], "FILE")
                self._files[fd] = size

    def move(
        self,
        direction: str,
        fd: int,
        file_size: int,
        memory: np.ndarray,
        offsets: np.ndarray,
        sizes: np.ndarray,
    ) -> None:
        """Move pieces between host memory and one file, and wait for the end.

        Parameters
        ----------
        direction : str
            ``"WRITE"`` to the file, ``"READ"`` from it.
        fd, file_size : int
            The file; it stays registered.
        memory, offsets, sizes : numpy.ndarray
            int64, (n,): address, place in the file and bytes of each piece.

        Raises
        ------
        RegistrationError, TransferError
        """
        if (rows := self._scattered(memory, sizes)) is not None and self._staging.acquire(blocking=False):
            try:
                self._move_staged(direction, fd, file_size, *rows, offsets)
            finally:
                self._staging.release()
        else:
            self._move(direction, fd, file_size, memory, offsets, sizes)

    def _scattered(self, memory: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the pool as rows of the size of a piece, and which rows pieces are, if copying them pays."""
        size, count = int(sizes[0]), len(sizes)
        few = count < 16 or np.count_nonzero(memory[1:] - memory[:-1] == size) > count // 2
        if few or size > SMALL_PIECE or size * count > STAGE_BYTES or (sizes != size).any():
            return None
        for (start, end), tensor in zip(self._memory, self._tensors, strict=False):
            places = memory - start
            if places.min() >= 0 and places.max() + size <= end - start and not (places % size).any():
                whole = (end - start) // size
                return tensor.view(torch.uint8).view(-1)[: whole * size].view(
                    whole, size
                ).numpy(), places // size
        return None

    def _move_staged(
        self, direction: str, fd: int, file_size: int, pool: np.ndarray, rows: np.ndarray, offsets: np.ndarray
    ) -> None:
        """Move pieces that are rows of the pool, through memory where they are next to each other."""
        count, size = len(rows), pool.shape[1]
        stage = self._staged_memory()
        copies = stage.numpy()[: count * size].reshape(count, size)
        if direction == "WRITE":
            np.take(pool, rows, axis=0, out=copies)
        memory = stage.data_ptr() + np.arange(count) * size
        self._move(direction, fd, file_size, memory, offsets, np.full(count, size))
        if direction == "READ":
            pool[rows] = copies

    def _staged_memory(self) -> torch.Tensor:
        if self._stage is None:
            self._stage = aligned_tensor((STAGE_BYTES,), torch.uint8)
            with self._one_at_a_time, self._changing:
                self.registration.register([(self._stage.data_ptr(), STAGE_BYTES, 0, "")], "DRAM")
        return self._stage

    def _move(
        self,
        direction: str,
        fd: int,
        file_size: int,
        memory: np.ndarray,
        offsets: np.ndarray,
        sizes: np.ndarray,
    ) -> None:
        memory, offsets, sizes = merged(memory, offsets, sizes)
        host, stored = np.zeros((2, len(memory), 3), np.uint64)
        host[:, 0], host[:, 1] = memory, sizes
        stored[:, 0], stored[:, 1], stored[:, 2] = offsets, sizes, fd
        with self._one_at_a_time:  # registrations too: they end with an agent that is replaced
            if fd not in self._files:
                self._register_file(fd, file_size)
            try:
                with self._registered(memory, sizes):
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

    def _registered(self, memory: np.ndarray, sizes: np.ndarray) -> AbstractContextManager[Any]:
        """Hold buffers registered for this call, unless they lie in the memory that is."""
        start, end = int(memory.min()), int((memory + sizes).max())
        known = [*self._memory]
        if self._stage is not None:
            known.append((self._stage.data_ptr(), self._stage.data_ptr() + STAGE_BYTES))
        if any(first <= start and end <= last for first, last in known):
            return nullcontext()
        return self.registration.registered_buffers(list(zip(memory.tolist(), sizes.tolist(), strict=True)))

    def _after_failure(self) -> None:
        """Replace an agent that fails for ever after one failure; files are registered again when needed."""
        if not self.registration.keeps_failed_io:
            return
        memory = self._memory
        self.registration.attach(make_backend(self._config))
        self._files, self._held, self._memory, self._stage = {}, [], [], None
        for start, end in memory:
            self._held.append(self.registration.register([(start, end - start, 0, "")], "DRAM"))
            self._memory.append((start, end))

    def close(self) -> None:
        """Drop the agent, which ends its registrations.  May be called twice."""
        self.registration.close()


def merged(memory: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the pieces with neighbours in memory and file merged, up to ``MOST_BYTES`` each.

    Examples
    --------
    >>> [a.tolist() for a in merged(np.array([0, 8, 32]), np.array([64, 72, 80]), np.array([8, 8, 8]))]
    [[0, 32], [64, 80], [16, 8]]
    """
    joined = memory[1:] == memory[:-1] + sizes[:-1]
    joined &= offsets[1:] == offsets[:-1] + sizes[:-1]
    first = np.append(0, np.flatnonzero(~joined) + 1)
    if len(first) == len(sizes):
        return memory, offsets, sizes
    ends = sizes.cumsum()
    before = ends - sizes
    lengths = np.diff(before[first], append=ends[-1])
    if lengths.max() > MOST_BYTES:
        first = _cut(first, before)
        lengths = np.diff(before[first], append=ends[-1])
    return memory[first], offsets[first], lengths


def _cut(first: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the first piece of each I/O, given that of each run and the bytes before each piece."""
    run = np.zeros(len(before), np.int64)
    run[first[1:]] = 1
    run = run.cumsum()
    part = (before - before[first][run]) // MOST_BYTES
    return np.flatnonzero(np.append(True, (run[1:] != run[:-1]) | (part[1:] != part[:-1])))
