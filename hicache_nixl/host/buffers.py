"""Pages of a host pool as buffers that a lifetime can store and load.

A page that is contiguous in the pool needs no copy (``InPlace``).  Other pages (``layer_first``) are copied:
into a new tensor for each page of a call, as in SGLang up to 0.5.12 (``Copied``), or through memory that is
registered once and used by every call of every pool (``Staged``).  Those of a pool without memory are markers
(``Anchor``).
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
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

LARGEST_CALL = 128  # pages of a v1 call of SGLang's controller, and of a transfer of our v2 calls
UNEVEN = 1.5
STAGED_BYTES = 2**28  # for each direction; limits the number of large pages in a transfer


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
        """How many pages one transfer may have."""
        return self.batch or min(LARGEST_CALL, self.pool.size // self.pool.page_size)

    def starts(self, pages: int, indices: torch.Tensor) -> Numbers:
        """Return where pages start, given the token indices that the server passes, ``page_size`` for each.

        Raises
        ------
        PageIndexError
            Unless they are those of so many whole pages of the pool.
        """
        if not isinstance(indices, torch.Tensor):
            raise PageIndexError(f"host indices: expected a tensor, got {type(indices).__name__}")
        pool, tokens = self.pool, indices.numpy()
        if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
            raise PageIndexError(
                f"host indices: expected integers of one dimension, got {indices.dtype} of {tokens.ndim}"
            )
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

    def batches(
        self, pages: Named, starts: Numbers, most: int | None = None
    ) -> Iterator[tuple[Named, Numbers]]:
        """Yield the pages of each transfer, at most so many, and where they start."""
        batch = self.batch or most or len(pages.keys)
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


class Slots:
    """Memory for copies of pages, separate for each direction: a set never waits for a get.

    All host pools of a connector share it.  It is only ever replaced by memory of at least twice the size, so that all
    that was allocated is less than four times what the largest pool needs.
    """

    def __init__(self) -> None:
        self.busy = [threading.Lock() for _ in ("leaving", "arriving")]
        self._memory: list[torch.Tensor] = []
        self._allocated = 0

    def of(self, needed: int) -> list[torch.Tensor]:
        """Return memory of at least so many bytes for each direction."""
        if not self._memory or self._memory[0].numel() < needed:
            size = 1 << (needed - 1).bit_length()
            self._memory = [aligned_tensor((size,), torch.uint8) for _ in self.busy]
            self._allocated += size * len(self._memory)
            logger.info("%.1f MiB of host memory for copies of pages", self._allocated / 2**20)
        return self._memory


class Staged(Copied):
    """Pages in slots of preallocated memory."""

    def __init__(self, pool: Any, slots: Slots):
        super().__init__(pool)
        page = pool.get_dummy_flat_data_page()
        fitting = max(1, STAGED_BYTES // page.nbytes)
        self.batch = min(LARGEST_CALL, fitting, pool.size // pool.page_size)
        self.memory, self._busy = slots.of(self.batch * page.nbytes), slots.busy
        self._slots = [
            memory[: self.batch * page.nbytes].view(page.dtype).view(self.batch, page.numel())
            for memory in self.memory
        ]

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

    layout, dtype, kv_buffer, size_per_token = "layer_first", torch.uint8, None, 0

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


def pages_of(
    pool: Any, staged: bool, direct: bool = False, even: bool = False, slots: Slots | None = None
) -> Pages:
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
    slots : Slots, optional
        That memory; its own unless it is given.

    Raises
    ------
    ConfigError
        When it is not a host pool, such as None, or does not give its pages.
    """
    kind = type(pool).__name__
    if missing := [name for name in ("layout", "page_size", "size", "dtype") if not hasattr(pool, name)]:
        raise ConfigError(f"mem_pool_host: expected a host pool, got {kind} without {', '.join(missing)}")
    slots = slots or Slots()
    copied = partial(Staged, slots=slots) if staged else Copied
    if without_memory(pool):
        return copied(Anchor(pool))
    if getattr(pool, "kv_buffer", pool) is None:
        raise ConfigError(f"mem_pool_host: a {kind} without memory (kv_buffer), whose pages have bytes")
    try:
        in_place = _in_place(pool)
        if in_place is None:
            return copied(pool)
        uneven = even and max(in_place.piece_sizes) * len(in_place.piece_sizes) > UNEVEN * sum(
            in_place.piece_sizes
        )
        return Staged(pool, slots) if uneven or (direct and _to_be_aligned(pool)) else in_place
    except NotImplementedError as error:
        raise ConfigError(f"mem_pool_host: the pages of a {kind} cannot be stored: {error}") from error


def _in_place(pool: Any) -> InPlace | None:
    """Return the pages of a pool in its memory; None where a page is not contiguous, or the pool does not say where."""
    try:
        return InPlace(pool) if pool.layout in ZERO_COPY_LAYOUTS else None
    except NotImplementedError:  # a Mamba pool with more state than its buffers
        return None


def _to_be_aligned(pool: Any) -> bool:
    """Return whether copies of pages can be aligned for O_DIRECT, and pages are not."""
    pieces = zip(*pool.get_page_buffer_meta(torch.arange(2 * pool.page_size)), strict=True)
    unaligned = [(address, size) for address, size in pieces if (address | size) % ALIGNMENT]
    try:
        if not unaligned or pool.get_dummy_flat_data_page().nbytes % ALIGNMENT:
            return False
    except NotImplementedError:  # keys and values of different sizes: no copies
        return False
    logger.warning(
        "use_direct_io falls back to copies of pages: O_DIRECT needs addresses and sizes that are "
        "multiples of %d, and a piece of a page in this pool has %d bytes at address %d",
        ALIGNMENT,
        unaligned[0][1],
        unaligned[0][0],
    )
    return True
