"""A lifetime that keeps pages in a dict.  It needs neither NIXL nor a folder, and proves the interface."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from hicache_nixl.config import NixlBackendConfig
from hicache_nixl.errors import ConfigError, FileError, RegistrationError
from hicache_nixl.lifetimes.outcome import MOVED, Outcome
from hicache_nixl.transport.registration import Buffer, buffer_addresses, buffer_sizes

STORES: dict[str, dict[str, bytes]] = {}  # by storage folder, which several connectors may share


class Lifetime:
    """Pages are copied into a dict and out of it."""

    as_released = stages_copies = direct = False

    def __init__(self, config: NixlBackendConfig, storage_dir: str):
        self.pieces = STORES.setdefault(storage_dir, {})

    def register_pool(self, memory: Sequence[torch.Tensor]) -> None:
        pass

    def store(
        self, names: Sequence[str], buffers: Sequence[Buffer], pieces_per_page: int
    ) -> Sequence[Outcome]:
        self.pieces.update(zip(names, [ctypes.string_at(*place) for place in places(buffers)], strict=True))
        return [MOVED] * len(names)

    def load(self, names: Sequence[str], buffers: Sequence[Buffer]) -> Sequence[Outcome]:
        return [self._load(name, *place) for name, place in zip(names, places(buffers), strict=True)]

    def _load(self, name: str, address: int, size: int) -> Outcome:
        piece = self.pieces.get(name)
        if piece is None:
            return Outcome.not_touched(FileError(errno.ENOENT, os.strerror(errno.ENOENT), name))
        if len(piece) != size:
            return Outcome.not_touched(FileError(errno.EIO, f"holds {len(piece)} of {size} bytes", name))
        ctypes.memmove(address, piece, size)
        return MOVED

    def present(self, names: Sequence[str], sizes: Sequence[int | None]) -> Iterator[bool]:
        for name, size in zip(names, sizes, strict=True):
            held = len(self.pieces.get(name, b""))
            yield held == size if size else held > 0

    def clear(self, is_own: Callable[[str], bool]) -> int:
        own = [name for name in self.pieces if is_own(name)]
        for name in own:
            del self.pieces[name]
        return len(own)

    def register_files(self, *regions: Any) -> Any:
        raise ConfigError("pages in a dict are not registered")

    register_buffers = register_objects = register_files

    def close(self) -> None:
        pass


def places(buffers: Sequence[Buffer]) -> list[tuple[int, int]]:
    """Return address and bytes of each buffer."""
    if any(isinstance(buffer, torch.Tensor) and not buffer.is_contiguous() for buffer in buffers):
        raise RegistrationError("a tensor is not contiguous")
    return list(zip(buffer_addresses(buffers), buffer_sizes(buffers), strict=True))
