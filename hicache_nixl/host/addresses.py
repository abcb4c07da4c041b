"""Buffers of many pages as arrays, without a Python object for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError, RegistrationError
from ..transport.registration import Buffer, buffer_addresses, buffer_sizes

Numbers = npt.NDArray[np.int64]


class Addresses(Sequence[Buffer]):
    """Buffers of n pages of k pieces; as a sequence, n * k pairs of (address, bytes), page by page.

    Parameters
    ----------
    starts : numpy.ndarray
        int64, (n, k): the address of each piece.
    sizes : numpy.ndarray
        int64, (k,) if all pages are alike, otherwise (n, k): bytes of each piece.

    Attributes
    ----------
    alike : bool
        Whether ``sizes`` is of shape (k,).
    """

    def __init__(self, starts: Numbers, sizes: Numbers):
        self.starts, self.sizes, self.alike = starts, sizes, sizes.ndim == 1

    @classmethod
    def of(cls, buffers: Sequence[Buffer], pieces: int) -> Addresses:
        """Return any buffers as arrays, ``pieces`` of them for each page.

        Raises
        ------
        RegistrationError
            When a tensor is not contiguous, so that its bytes are not those from its address on, or a buffer
            has no bytes.
        """
        if isinstance(buffers, cls):
            return buffers
        if not all(buffer.is_contiguous() for buffer in buffers if isinstance(buffer, torch.Tensor)):
            raise RegistrationError("a tensor is not contiguous")
        shape = (len(buffers) // pieces, pieces)
        starts = np.array(buffer_addresses(buffers), np.int64).reshape(shape)
        sizes = np.array(buffer_sizes(buffers), np.int64).reshape(shape)
        if (sizes <= 0).any():
            raise RegistrationError(f"a buffer of {sizes.min()} bytes")
        return cls(starts, sizes[0] if len(sizes) and (sizes == sizes[0]).all() else sizes)

    def each(self) -> Iterator[Addresses]:
        """Yield the buffers of each page alone."""
        for page, start in enumerate(self.starts):
            yield Addresses(start[None], self.sizes if self.alike else self.sizes[page])

    @cached_property
    def _listed(self) -> list[tuple[int, int]]:
        sizes = np.broadcast_to(self.sizes, self.starts.shape)
        return list(zip(self.starts.ravel().tolist(), sizes.ravel().tolist(), strict=True))

    def __len__(self) -> int:
        return self.starts.size

    def __getitem__(self, item: Any) -> Any:
        return self._listed[item]

    def __iter__(self) -> Iterator[Buffer]:
        return iter(self._listed)


class PoolMap:
    """Where the pages of a host pool are: at equal distances, as in every pool of SGLang.

    Parameters
    ----------
    pool
        Has ``get_page_buffer_meta``, ``page_size`` and ``size``; asked for its first, second and last page only.

    Raises
    ------
    ConfigError
        When the pages are not at equal distances.

    Attributes
    ----------
    sizes : numpy.ndarray
        int64, (k,): bytes of each piece.
    memory : list of torch.Tensor
        Where they are: ``kv_buffer`` if all are in it, otherwise what ``get_hybrid_pool_buffer`` returns, which pools
        of SGLang 0.5.23 have.
    """

    def __init__(self, pool: Any):
        pages = pool.size // pool.page_size
        asked = sorted({0, min(1, pages - 1), pages - 1})
        tokens = torch.cat([torch.arange(pool.page_size) + page * pool.page_size for page in asked])
        addresses, sizes = (np.array(given, np.int64) for given in pool.get_page_buffer_meta(tokens))
        starts = addresses.reshape(len(asked), -1)
        self._page_size, self._first = pool.page_size, starts[0]
        self._distance = starts[1] - starts[0] if pages > 1 else np.zeros_like(starts[0])
        self.sizes = sizes[: starts.shape[1]]
        expected = starts[0] + np.array(asked)[:, None] * self._distance
        if (starts != expected).any() or (sizes.reshape(starts.shape) != self.sizes).any():
            raise ConfigError(f"mem_pool_host: pages of a {type(pool).__name__} are not at equal distances")
        self.memory = _memory_of(pool, int(starts.min()), int((starts + self.sizes).max()))

    def of(self, starts: Numbers) -> Addresses:
        """Return the buffers of pages, given the first token index of each, int64 of shape (n,)."""
        pages = starts // self._page_size
        return Addresses(self._first + pages[:, None] * self._distance, self.sizes)


def _memory_of(pool: Any, start: int, end: int) -> list[torch.Tensor]:
    buffer = getattr(pool, "kv_buffer", None)
    if (
        isinstance(buffer, torch.Tensor)
        and buffer.data_ptr() <= start
        and end <= buffer.data_ptr() + buffer.nbytes
    ):
        return [buffer]
    tensors = pool.get_hybrid_pool_buffer() if hasattr(pool, "get_hybrid_pool_buffer") else []
    return [tensor for tensor in tensors if tensor.numel()]
