"""NIXL agents that move pieces between host memory and segments, both of which are registered once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch

from ...config import NixlBackendConfig
from ...errors import RegistrationError, TransferError
from ...transport.agent import make_backend
from ...transport.registration import NixlRegistration, growing_pause
from .pieces import Pieces

logger = logging.getLogger(__name__)

MOST_PIECES = 1 << 12  # of one transfer: on libaio each has a queue of as many, out of ``fs.aio-max-nr``

Range = tuple[int, int]  # start and end of memory


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
        self._ranges: dict[str, list[Range]] = {"": list(map(range_of, own))}  # of them, by host pool
        self._files: dict[int, Any] = {}  # registrations by descriptor
        self._changing = threading.Lock()
        self._one_at_a_time: AbstractContextManager[Any] = (
            threading.Lock() if backend.keeps_failed_io else nullcontext()
        )
        try:
            self._register(self._ranges[""])
        except BaseException:
            self.close()
            raise

    def register_memory(self, memory: Sequence[torch.Tensor], pool: str) -> None:
        """Register the memory of a host pool, in place of what was registered of it before."""
        with self._one_at_a_time, self._changing:
            before = self._ranges.pop(pool, [])
            others = set(chain(*self._ranges.values()))  # two pools may be views of the same memory
            for unneeded in (self._memory.keys() & before) - others:
                self.registration.deregister(self._memory.pop(unneeded))
            self._ranges[pool] = list(map(range_of, memory))
            self._register([needed for needed in self._ranges[pool] if needed not in self._memory])

    def _register(self, ranges: Sequence[Range]) -> None:
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
        pieces.stored[:, 2] = fd
        with self._one_at_a_time:  # registrations too: they end with an agent that is replaced
            if fd not in self._files:
                self._register_file(fd, file_size)
            try:
                with self._registered(pieces):
                    for first in range(0, len(pieces.host), MOST_PIECES):
                        part = slice(first, first + MOST_PIECES)
                        self._transfer(direction, pieces.host[part], pieces.stored[part])
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
        if self._holds(pieces):
            return nullcontext()
        return self.registration.registered_buffers(list(map(tuple, pieces.host[:, :2].tolist())))

    def _holds(self, pieces: Pieces) -> bool:
        ranges = list(self._memory)
        if any(first <= pieces.start and pieces.end <= last for first, last in ranges):
            return True
        starts, ends = pieces.host[:, 0], pieces.host[:, 0] + pieces.host[:, 1]
        inside = [
            (starts >= first) & (ends <= last) for first, last in ranges
        ]  # a page may be in several tensors
        return bool(np.logical_or.reduce(inside).all())

    def _after_failure(self) -> None:
        """Replace an agent that fails for ever after one failure; files are registered again when needed.

        Errors are only logged, since the caller raises that of the transfer.
        """
        if not self.registration.keeps_failed_io:
            return
        try:
            self.registration.attach(make_backend(self._config))
            ranges, self._memory, self._files = list(self._memory), {}, {}
        except Exception as error:  # the next transfer fails, too, and tries it again
            logger.error("after a failed transfer the agent cannot be replaced: %s", error)
            return
        try:
            self._register(ranges)
        except RegistrationError as error:
            logger.error("after a failed transfer each call registers its buffers: %s", error)

    def close(self) -> None:
        """Drop the agent, which ends its registrations.  May be called twice."""
        self.registration.close()


def range_of(tensor: torch.Tensor) -> Range:
    """Return the start and the end of the memory of a tensor."""
    start = tensor.data_ptr()
    return start, start + tensor.numel() * tensor.element_size()
