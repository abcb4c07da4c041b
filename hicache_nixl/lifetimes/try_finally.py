"""The descriptors of a call are closed when it ends: PR #24671, SGLang 0.5.12.

The difference to ``leaky.py`` is the patch.  It leaves every registration, and what ``register_files`` opens.
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
    """Descriptors are open for one call; registrations stay until the process ends."""

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
        file_fds: list[int] = []
        try:
            if self.registration.mem_type == "FILE":
                tuples = self.file_manager.files_to_nixl_tuples(keys)
                file_fds = [fd for _, _, fd, _ in tuples]
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
        finally:
            for fd in file_fds:
                self.file_manager.close_file(fd)

    def close(self) -> None:
        """Drop the agent.  Descriptors stay open, because they are not recorded."""
        self.registration.close()
