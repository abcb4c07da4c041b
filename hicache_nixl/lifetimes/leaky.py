"""Nothing releases what a call opens and registers: SGLang up to 0.5.11.

Every call opens each of its files, registers them and the host buffers, and keeps no reference to either.
The process ends with ``[Errno 24] Too many open files``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import RegistrationError
from ..names import KV
from ..transport.registration import Buffer, buffer_sizes
from .file_per_piece import FilePerPiece
from .outcome import MOVED, Outcome


class Lifetime(FilePerPiece):
    """Descriptors stay open, and registrations stay, until the process ends."""

    as_released = True

    def register_pool(self, memory: Sequence[torch.Tensor], pool: str = KV) -> None:
        """Do nothing: every call registers the buffers that it uses."""

    def register_files(self, paths: Sequence[str]) -> Any:
        """Open and register files.  Nothing closes them (third remark in the review of PR #24671)."""
        tuples = self.file_manager.files_to_nixl_tuples(paths)
        return self.registration.register(tuples, "FILE")

    def _execute_transfer(
        self, buffers: Sequence[Buffer], keys: Sequence[str], direction: str
    ) -> list[Outcome]:
        """Move bytes between buffers and files or objects: all of them, or raise."""
        if self.registration.mem_type == "FILE":
            tuples = self.file_manager.files_to_nixl_tuples(keys)
        else:
            tuples = self.registration.objects_to_nixl_tuples(keys, buffer_sizes(buffers))
        self.registration.register(tuples, self.registration.mem_type)
        self.registration.register_buffers(buffers)
        host_descs, storage_descs = self.registration.xfer_descs(buffers, tuples)
        try:
            handle = self.registration.initialize(direction, host_descs, storage_descs)
        except RegistrationError:  # as SGLang does: the buffers may not have been registered
            self.registration.register_buffers(buffers)
            handle = self.registration.initialize(direction, host_descs, storage_descs)
        self.registration.run(handle)
        return [MOVED] * len(keys)

    def close(self) -> None:
        """Drop the agent.  Descriptors stay open, because they are not recorded."""
        self.registration.close()
