"""What is timed: a connector for NIXL, SGLang's file backend, and plain reads and writes of one file.

Each prepares a call, which is not timed, and returns a function that makes it, which is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from ..worker.pages import Batch

Call = Callable[[], Sequence[bool]]


class Timed(Protocol):
    """A store whose calls are timed."""

    def setting(self, batch: Batch) -> Call:
        """Prepare a set."""

    def getting(self, batch: Batch) -> Call:
        """Prepare a get of the pages of one set."""

    def asking(self, keys: Sequence[str]) -> Callable[[], int]:
        """Prepare a lookup, which returns how many leading pages are stored."""

    def close(self) -> None:
        """Close all files."""


class NixlStore:
    """A connector with zero-copy calls: ours or one of SGLang's, for NIXL or for S3.

    Parameters
    ----------
    connector : object
    another : object, optional
        Looks pages up and loads them instead of it.
    """

    def __init__(self, connector: Any, another: Any = None):
        self._connector, self._reader = connector, another or connector

    def setting(self, batch: Batch) -> Call:
        """Prepare a set."""
        return partial(self._connector.batch_set_v1, batch.keys, batch.indices)

    def getting(self, batch: Batch) -> Call:
        """Prepare a get."""
        return partial(self._reader.batch_get_v1, batch.keys, batch.indices)

    def asking(self, keys: Sequence[str]) -> Callable[[], int]:
        """Prepare a lookup."""
        return partial(self._reader.batch_exists, list(keys))

    def close(self) -> None:
        """Close the connectors; SGLang's releases up to 0.5.12, and its backend for S3, cannot be closed."""
        for connector in dict.fromkeys([self._connector, self._reader]):
            if hasattr(connector, "close"):
                connector.close()


class FileBackend:
    """SGLang's ``HiCacheFile``, called as SGLang's cache controller calls a backend without zero-copy.

    A set passes a copy of each page, and a get reads each into a new tensor that is copied into the pool
    (``_generic_page_set`` and ``_generic_page_get`` of SGLang 0.5.23).
    """

    def __init__(self, backend: Any, pool: Any):
        self._backend, self._pool = backend, pool

    def setting(self, batch: Batch) -> Call:
        """Prepare a set."""
        starts = batch.indices[:: self._pool.page_size]

        def call() -> Sequence[bool]:
            pages = [self._pool.get_data_page(start) for start in starts]
            return [self._backend.batch_set(batch.keys, pages)] * len(pages)

        return call

    def getting(self, batch: Batch) -> Call:
        """Prepare a get."""
        starts = batch.indices[:: self._pool.page_size]

        def call() -> Sequence[bool]:
            empty = [self._pool.get_dummy_flat_data_page() for _ in batch.keys]
            pages = self._backend.batch_get(batch.keys, empty)
            for start, page in zip(starts, pages, strict=True):
                if page is not None:
                    self._pool.set_from_flat_data_page(start, page)
            return [page is not None for page in pages]

        return call

    def asking(self, keys: Sequence[str]) -> Callable[[], int]:
        """Prepare a lookup."""
        return partial(self._backend.batch_exists, list(keys))

    def close(self) -> None:
        """Do nothing: it keeps no file open."""


class Ceiling:
    """Plain writes and reads of one open file: ``pwrite`` per piece for a set, one ``preadv`` for a get.

    The pieces of a call are next to each other in the file, first all keys, then all values, and each call writes
    behind the one before it.  The file is preallocated, and not written yet, as a new segment of ``pooled``.

    Parameters
    ----------
    pool : HostKVPool
    path : str
        Of the new file.
    size : int
        Bytes of all calls.
    direct : bool
        Whether to open the file with O_DIRECT.
    """

    def __init__(self, pool: Any, path: str, size: int, direct: bool):
        self._memory: np.ndarray = pool.kv_buffer.flatten().view(torch.uint8).numpy()
        if self._memory.ctypes.data != pool.kv_buffer.data_ptr():
            raise ValueError("the memory of the pool is not contiguous")
        self._pool, self._at = pool, 0
        self._places: dict[int, int] = {}  # of a call, by its first page
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        self._fd = os.open(path, flags, 0o600)
        os.posix_fallocate(self._fd, 0, size)

    def setting(self, batch: Batch) -> Call:
        """Prepare a set."""
        pieces = self._pieces(batch)
        size = len(pieces[0])
        places = range(self._at, self._at + len(pieces) * size, size)
        self._places[batch.ids[0]], self._at = self._at, self._at + len(pieces) * size

        def call() -> Sequence[bool]:
            written = [os.pwrite(self._fd, *piece) for piece in zip(pieces, places, strict=True)]
            return [set(written) == {size}] * len(batch.keys)

        return call

    def getting(self, batch: Batch) -> Call:
        """Prepare a get."""
        pieces, place = self._pieces(batch), self._places[batch.ids[0]]

        def call() -> Sequence[bool]:
            read = os.preadv(self._fd, pieces, place)
            return [read == len(pieces) * len(pieces[0])] * len(batch.keys)

        return call

    def asking(self, keys: Sequence[str]) -> Callable[[], int]:
        """Raise: a file has no lookup, and the plan asks for none."""
        raise TypeError("the ceiling is plain reads and writes: it has no lookup")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _pieces(self, batch: Batch) -> list[memoryview]:
        addresses, sizes = self._pool.get_page_buffer_meta(batch.indices)
        starts = np.array(addresses) - self._memory.ctypes.data
        in_order = starts.reshape(len(batch.keys), -1).T.ravel()
        return [memoryview(self._memory[start : start + sizes[0]]) for start in in_order.tolist()]  # type: ignore[arg-type]
