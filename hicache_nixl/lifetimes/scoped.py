"""What a call opens and registers is released when it ends: what the review of PR #24671 asked for.

The difference to ``try_finally.py`` answers its remarks: one context manager for each resource, each as wide
as its resource, and none for files where there are none (second); ``register_files`` returns an owner
(third).  The first, ``import traceback`` inside the function, does not apply: no module needs it.  Beyond the
remarks, nothing stays registered, host memory is registered once for each pool, and a file that cannot be
opened affects no other.

Each piece of a page is a file, so two processes that store different bytes under one key at the same time can
leave pieces of both.  After a power cut a file may hold other bytes than were stored, unless ``sync`` is set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from typing import Any

import torch

from ..config import NixlBackendConfig
from ..interrupts import deferred
from ..names import KV
from ..transport.files import READ, WRITE
from ..transport.folder import NOT_OPEN
from ..transport.registration import (
    Buffer,
    RegisteredPools,
    StorageTuple,
    buffer_addresses,
    buffer_sizes,
    growing_pause,
)
from .file_per_piece import FilePerPiece
from .outcome import MOVED, Outcome


class RegisteredFiles(ExitStack):
    """Files that stay open and registered until ``close()``, or the end of a ``with``.

    Attributes
    ----------
    registration
        NIXL's list of them.
    """

    registration: Any = None

    def __exit__(self, *exc_info: Any) -> bool | None:
        return deferred(super().__exit__, *exc_info)


class Lifetime(FilePerPiece):
    """Descriptors and registrations of storage end with the call, those of host memory with the pool."""

    def __init__(self, config: NixlBackendConfig, storage_dir: str):
        super().__init__(config, storage_dir)
        self._pools = RegisteredPools(self.registration)
        self._owners: set[RegisteredFiles] = set()

    def register_pool(self, memory: Sequence[torch.Tensor], pool: str = KV) -> None:
        """Register the memory of a host pool, in place of what was registered of it before."""
        self._pools.replace(pool, memory)
        self.memory = {**self.memory, pool: memory}

    def register_files(self, paths: Sequence[str]) -> RegisteredFiles:
        """Open and register files; the owner that is returned closes them, and so does ``close()``."""
        names = [self.file_manager.get_file_name(path) for path in paths]
        with RegisteredFiles() as stack:
            fds, faults = stack.enter_context(self.file_manager.opened(names, os.O_RDWR))
            for fault in faults.values():
                raise fault
            tuples = [(0, 0, fd, path) for fd, path in zip(fds, paths, strict=True)]
            registration = stack.enter_context(self.registration.registered(tuples, "FILE"))
            owner = stack.pop_all()
        owner.registration = registration
        self._owners.add(owner)
        owner.callback(self._owners.discard, owner)
        return owner

    def _execute_transfer(
        self, buffers: Sequence[Buffer], keys: Sequence[str], direction: str
    ) -> list[Outcome]:
        """Move bytes between buffers and files: all that can be opened, or raise."""
        sizes = buffer_sizes(buffers)
        flags, wanted = (WRITE, None) if direction == "WRITE" else (READ, sizes)
        flags |= self.file_manager.direct_flag(buffer_addresses(buffers), sizes)
        with self.file_manager.opened(keys, flags, wanted) as (fds, faults):
            if faults:
                buffers = [buffer for buffer, fd in zip(buffers, fds, strict=True) if fd != NOT_OPEN]
            tuples = [(0, size, fd, "") for size, fd in zip(sizes, fds, strict=True) if fd != NOT_OPEN]
            if tuples:
                self._transfer(buffers, tuples, direction)
                if direction == "WRITE":
                    self.file_manager.publish(fds, keys)
        return [Outcome.not_touched(faults[i]) if i in faults else MOVED for i in range(len(keys))]

    def _transfer(self, buffers: Sequence[Buffer], tuples: Sequence[StorageTuple], direction: str) -> None:
        with self.registration.registered(tuples, self.registration.mem_type), self._registered(buffers):
            host_descs, storage_descs = self.registration.xfer_descs(buffers, tuples)
            handle = self.registration.initialize(direction, host_descs, storage_descs)
            self.registration.run(handle, growing_pause)

    def _registered(self, buffers: Sequence[Buffer]) -> AbstractContextManager[Any]:
        """Hold buffers registered for this call, unless they lie in the memory of a pool."""
        if isinstance(buffers[0], tuple) and self._pools.contain(buffers):
            return nullcontext()
        return self.registration.registered_buffers(buffers)

    def close(self) -> None:
        """Close what ``register_files`` opened and the folder, deregister the pool, and drop the agent."""
        agent = self.registration if self._objects is None else self._objects
        with closing(agent), closing(self._pools), ExitStack() as files:
            if self._files is not None:
                files.callback(self._files.close)
            for owner in list(self._owners):
                files.callback(owner.close)
