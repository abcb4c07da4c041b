"""Pages of a host pool as buffers that a lifetime can store and load.

A page that is contiguous in the pool needs no copy (``InPlace``).  Other pages (``layer_first``) are copied:
into a new tensor for each page of a call, as in SGLang up to 0.5.12 (``Copied``), or through memory that is
registered once and used by every call (``Staged``).  Those of a pool without memory are markers (``Anchor``).
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch

from ..config import ALIGNMENT, ZERO_COPY_LAYOUTS
from ..errors import ConfigError, PageIndexError
from ..names import Named, without_memory
from ..transport.registration import Buffer
from .addresses import Addresses, Numbers, PoolMap
from .pools import aligned_tensor

logger = logging.getLogger(__name__)

LARGEST_CALL = 128  # pages of one set or get of SGLang's controller
UNEVEN = 1.5
STAGED_BYTES = 2**28  # for each direction; limits the number of large pages


class Pages(ABC):
    """Base class.  ``starts`` is always the first token index of each page, int64 of shape (n,).

    Attributes
    ----------
    zero_copy : bool
        Whether buffers are the memory of the pool.
    batch : int or None
        The most pages of one transfer; None for no limit.
    memory : list of torch.Tensor
        The host memory that contains all buffers; empty when each call allocates its own.
    piece_sizes : list of int
        Bytes of each piece of a page.
    """

    zero_copy = False
    batch: int | None = None
    memory: list[torch.Tensor]
    piece_sizes: list[int]

    def __init__(self, pool: Any):
        self.pool = pool

    @property
    def most(self) -> int:
        """How many pages one transfer of SGLang's controller may have."""
        return self.batch or min(LARGEST_CALL, self.pool.size // self.pool.page_size)

    def starts(self, pages: int, indices: torch.Tensor) -> Numbers:
        """Return where pages start, given the token indices that the server passes, ``page_size`` for each.

        Raises
        ------
        PageIndexError
            Unless they are those of so many whole pages of the pool.
        """
        pool, tokens = self.pool, indices.numpy()
        if not pages or len(tokens) != pages * pool.page_size:
            raise PageIndexError(
                f"{pages} keys and {len(tokens)} host indices do not match: "
                f"a page has {pool.page_size} tokens"
            )
        starts: Numbers = tokens[:: pool.page_size].copy()  # next to each other: all of them are read
        first, last = starts.min(), starts.max()
        if first < 0 or last + pool.page_size > pool.size:
            raise PageIndexError(
                f"{pages} keys, {len(tokens)} host indices: token indices {first} to "
                f"{last + pool.page_size - 1} are outside the pool of {pool.size} tokens"
            )
        if (starts % pool.page_size).any():
            raise PageIndexError(f"a page of {pool.page_size} tokens cannot start inside a page")
        return starts

    def batches(self, pages: Named, starts: Numbers) -> Iterator[tuple[Named, Numbers]]:
        """Yield the pages of each transfer, and where they start."""
        batch = self.batch or len(pages.keys)
        for first, (_, part) in enumerate(pages.parts(batch)):
            yield part, starts[first * batch : (first + 1) * batch]

    @abstractmethod
    def leaving(self, starts: Numbers) -> AbstractContextManager[Sequence[Buffer]]:
        """Provide the buffers of pages to store, for the time of a ``with`` block."""

    @abstractmethod
    def arriving(self, starts: Numbers) -> AbstractContextManager[Sequence[Buffer]]:
        """Provide buffers for pages to load, for the time of a ``with`` block; ``land`` ends it."""

    @abstractmethod
    def land(self, starts: Numbers, buffers: Sequence[Buffer], loaded: Sequence[bool]) -> None:
        """Bring the pages that were loaded into the pool."""


class InPlace(Pages):
    """Pages in the memory of the pool: one piece per plane of a page."""

    zero_copy = True

    def __init__(self, pool: Any):
        super().__init__(pool)
        self._map = PoolMap(pool)
        self.memory = self._map.memory
        self.piece_sizes = self._map.sizes.tolist()

    @contextmanager
    def leaving(self, starts: Numbers) -> Iterator[Sequence[Buffer]]:
        """Provide the buffers of pages to store."""
        yield self._map.of(starts)

    def arriving(self, starts: Numbers) -> AbstractContextManager[Sequence[Buffer]]:
        """Provide the buffers of pages to load: the same."""
        return self.leaving(starts)

    def land(self, starts: Numbers, buffers: Sequence[Buffer], loaded: Sequence[bool]) -> None:
        """Do nothing: the pages were loaded into the pool."""


class Copied(Pages):
    """Pages in new tensors, one per page of a call."""

    def __init__(self, pool: Any):
        super().__init__(pool)
        self.memory = []
        self.piece_sizes = [pool.get_dummy_flat_data_page().nbytes]

    @contextmanager
    def leaving(self, starts: Numbers) -> Iterator[Sequence[Buffer]]:
        """Provide copies of pages to store."""
        pages = (self.pool.get_data_page(start, flat=False) for start in starts.tolist())
        yield [page.contiguous() for page in pages]

    @contextmanager
    def arriving(self, starts: Numbers) -> Iterator[Sequence[Buffer]]:
        """Provide buffers for pages to load; ``land`` copies them into the pool."""
        yield [self.pool.get_dummy_flat_data_page() for _ in starts]

    def land(self, starts: Numbers, buffers: Sequence[Any], loaded: Sequence[bool]) -> None:
        """Copy the pages that were loaded into the pool."""
        self._land(starts, buffers, loaded)

    def _land(self, starts: Numbers, pages: Iterable[Any], loaded: Sequence[bool]) -> None:
        for start, page, whole in zip(starts.tolist(), pages, loaded, strict=True):
            if whole:
                self.pool.set_from_flat_data_page(start, page)


class Staged(Copied):
    """Pages in slots of preallocated memory, separate for each direction: a set never waits for a get."""

    def __init__(self, pool: Any):
        super().__init__(pool)
        page = pool.get_dummy_flat_data_page()
        fitting = max(1, STAGED_BYTES // page.nbytes)
        self.batch = min(LARGEST_CALL, fitting, pool.size // pool.page_size)
        self._slots = [
            aligned_tensor((self.batch, page.numel()), page.dtype) for _ in ("leaving", "arriving")
        ]
        self._busy = [threading.Lock() for _ in self._slots]
        self.memory = self._slots

    @contextmanager
    def leaving(self, starts: Numbers) -> Iterator[Sequence[Buffer]]:
        """Provide copies of pages to store."""
        with self._busy[0]:
            for start, slot in zip(starts.tolist(), self._slots[0][: len(starts)], strict=True):
                page = self.pool.get_data_page(start, flat=False)
                slot.view(page.shape).copy_(page)
            yield self._buffers(0, len(starts))

    @contextmanager
    def arriving(self, starts: Numbers) -> Iterator[Sequence[Buffer]]:
        """Provide buffers for pages to load; ``land`` copies them into the pool."""
        with self._busy[1]:
            yield self._buffers(1, len(starts))

    def land(self, starts: Numbers, buffers: Sequence[Buffer], loaded: Sequence[bool]) -> None:
        """Copy the pages that were loaded into the pool."""
        self._land(starts, self._slots[1][: len(buffers)], loaded)

    def _buffers(self, direction: int, count: int) -> Sequence[Buffer]:
        first, size = self._slots[direction].data_ptr(), self.piece_sizes[0]
        return Addresses(first + np.arange(count)[:, None] * size, np.array([size]))


class Anchor:
    """The pages of a host pool without memory, as pages of a single byte.

    The KV pool of DeepSeek V4 only gives its other pools their indices.  Its pages are stored all the same, because
    ``batch_exists`` tells the server how many pages there are; the byte is 1, as in SGLang's connector for NIXL.

    Parameters
    ----------
    pool
        Has ``size`` and ``page_size``.
    """

    layout, dtype, kv_buffer = "layer_first", torch.uint8, None

    def __init__(self, pool: Any):
        self.size, self.page_size = pool.size, pool.page_size

    def get_data_page(self, index: int, flat: bool = True) -> torch.Tensor:
        """Return the byte that stands for a page."""
        return torch.ones(1, dtype=self.dtype)

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        """Return a byte that the one of a page is loaded into."""
        return torch.zeros(1, dtype=self.dtype)

    def set_from_flat_data_page(self, index: int, data_page: torch.Tensor) -> None:
        """Do nothing: there is no memory that it belongs to."""


def pages_of(pool: Any, staged: bool, direct: bool = False, even: bool = False) -> Pages:
    """Return how the pages of a pool become buffers.

    Parameters
    ----------
    staged : bool
        Whether copies go through memory that is registered once, instead of a new tensor per page.
    direct : bool
        Whether files are opened with O_DIRECT: pages that are not aligned for it are copied, as in SGLang
        since 0.5.13.
    even : bool
        Whether pages are copied whose pieces are so different that ``UNEVEN`` times the room would be needed if each
        were as large as the largest: the states of Mamba layers are.

    Raises
    ------
    ConfigError
        When it is not a host pool, such as None.
    """
    missing = [name for name in ("layout", "page_size", "size", "dtype") if not hasattr(pool, name)]
    if missing:
        raise ConfigError(
            f"mem_pool_host: expected a host pool, got {type(pool).__name__} without {', '.join(missing)}"
        )
    copied: type[Copied] = Staged if staged else Copied
    if without_memory(pool):
        return copied(Anchor(pool))
    if pool.layout not in ZERO_COPY_LAYOUTS:
        return copied(pool)
    try:
        if direct and _to_be_aligned(pool):
            return Staged(pool)
        pages = InPlace(pool)
        sizes = pages.piece_sizes
        return Staged(pool) if even and max(sizes) * len(sizes) > UNEVEN * sum(sizes) else pages
    except NotImplementedError:  # a Mamba pool with more state than its buffers
        return copied(pool)


def _to_be_aligned(pool: Any) -> bool:
    """Return whether copies of pages can be aligned for O_DIRECT, and pages are not."""
    addresses, sizes = pool.get_page_buffer_meta(torch.arange(2 * pool.page_size))
    unaligned = any((address | size) % ALIGNMENT for address, size in zip(addresses, sizes, strict=True))
    if not unaligned or pool.get_dummy_flat_data_page().nbytes % ALIGNMENT:
        return False
    logger.warning(
        "use_direct_io falls back to copies of pages: O_DIRECT needs addresses and sizes that are "
        "multiples of %d, and a piece of a page in this pool has %d bytes",
        ALIGNMENT,
        sizes[0],
    )
    return True
