"""A lifetime that keeps pages in a dict.  It needs neither NIXL nor a folder, and proves the interface."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hicache_nixl.config import NixlBackendConfig
from hicache_nixl.errors import ConfigError, FileError, RegistrationError
from hicache_nixl.lifetimes.outcome import MOVED, Outcome
from hicache_nixl.names import KV, Named, PageNames
from hicache_nixl.transport.registration import Buffer, buffer_addresses, buffer_sizes

STORES: dict[str, dict[str, bytes]] = {}  # by storage folder, which several connectors may share


class Lifetime:
    """Pages are copied into a dict and out of it."""

    as_released = stages_copies = even_pieces = direct = False

    def __init__(self, config: NixlBackendConfig, storage_dir: str):
        self.pieces = STORES.setdefault(storage_dir, {})

    def check_pages(self, *calls: tuple[Sequence[int], int]) -> None:
        pass

    def register_pool(self, memory: Sequence[torch.Tensor], pool: str = KV) -> None:
        pass

    def store(self, pages: Named, buffers: Sequence[Buffer]) -> Sequence[Outcome]:
        pieces = [ctypes.string_at(*place) for place in places(buffers)]
        self.pieces.update(zip(pages.names, pieces, strict=True))
        return [MOVED] * len(pages.keys)

    def load(self, pages: Named, buffers: Sequence[Buffer]) -> Sequence[Outcome]:
        loaded = [self._load(name, *place) for name, place in zip(pages.names, places(buffers), strict=True)]
        by_page = zip(*[iter(loaded)] * len(pages.endings), strict=True)
        return [next((piece for piece in page if not piece.moved), MOVED) for page in by_page]

    def _load(self, name: str, address: int, size: int) -> Outcome:
        piece = self.pieces.get(name)
        if piece is None:
            return Outcome.not_touched(FileError(errno.ENOENT, os.strerror(errno.ENOENT), name))
        if len(piece) != size:
            return Outcome.not_touched(FileError(errno.EIO, f"holds {len(piece)} of {size} bytes", name))
        ctypes.memmove(address, piece, size)
        return MOVED

    def present(self, pages: Named, sizes: Sequence[int] | None) -> Iterator[bool]:
        held = [len(self.pieces.get(name, b"")) for name in pages.names]
        for page in zip(*[iter(held)] * len(pages.endings), strict=True):
            yield list(page) == list(sizes) if sizes else all(page)

    def clear(self, names: PageNames) -> int:
        own = [name for name in self.pieces if names.is_own(name)]
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
