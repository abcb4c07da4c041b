"""Pages of a host pool as buffers that NIXL can move.

A page that is contiguous in the pool moves from and to its place there.  One that is not (``layer_first``)
goes through a copy: in SGLang up to 0.5.12 a new tensor per page and call (``Copied``), here memory that is
registered once and used by every call (``Staged``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..config import ALIGNMENT, ZERO_COPY_LAYOUTS
from ..errors import PageIndexError
from ..transport.registration import Buffer
from .pools import aligned_tensor

logger = logging.getLogger(__name__)

STAGED_PAGES = 128  # what SGLang's controller asks for at most in one set or get
STAGED_BYTES = 2**28  # for each direction; fewer pages where they are large


class Pages:
    """What all of them share.  Token indices are as the server hands them over, ``page_size`` per page.

    Attributes
    ----------
    zero_copy : bool
        Whether pages move from and to their place in the pool.
    batch : int or None
        Pages that fit into one transfer.
    memory : list of torch.Tensor
        Host memory in which all buffers lie; none when each call brings its own.
    piece_sizes : list of int
        Bytes of each piece of a page.
    """

    zero_copy = False
    batch: int | None = None
    memory: list[torch.Tensor]
    piece_sizes: list[int]

    def __init__(self, pool: Any):
        self.pool = pool

    def check(self, pages: int, indices: torch.Tensor) -> None:
        """Refuse token indices that are not those of so many pages of the pool."""
        pool = self.pool
        if not pages or len(indices) != pages * pool.page_size:
            raise PageIndexError(
                f"{pages} keys and {len(indices)} host indices do not fit: a page has {pool.page_size} tokens"
            )
        starts = self.starts(indices)
        if min(starts) < 0 or max(starts) + pool.page_size > pool.size:
            raise PageIndexError(
                f"{pages} keys, {len(indices)} host indices: token indices {min(starts)} to "
                f"{max(starts) + pool.page_size - 1} leave the pool of {pool.size} tokens"
            )
        if any(start % pool.page_size for start in starts):
            raise PageIndexError(f"a page of {pool.page_size} tokens starts at a token index inside a page")

    def starts(self, indices: torch.Tensor) -> list[int]:
        """Return the first token index of each page."""
        return indices[:: self.pool.page_size].tolist()

    def batches(
        self, names: Sequence[str], indices: torch.Tensor
    ) -> Iterator[tuple[Sequence[str], torch.Tensor]]:
        """Split the names of pieces and the token indices of pages into transfers."""
        pieces, tokens = len(self.piece_sizes), self.pool.page_size
        pages = len(names) // pieces
        batch = self.batch or pages
        for first in range(0, pages, batch):
            last = first + batch
            yield names[first * pieces : last * pieces], indices[first * tokens : last * tokens]

    def whole(self, moved: Sequence[bool]) -> list[bool]:
        """Answer per page from an answer per piece."""
        pieces = len(self.piece_sizes)
        if all(moved):
            return list(moved[::pieces])
        return [all(moved[first : first + pieces]) for first in range(0, len(moved), pieces)]


class InPlace(Pages):
    """The pool's own memory: one piece per plane of a page."""

    zero_copy = True

    def __init__(self, pool: Any):
        super().__init__(pool)
        self.memory = [pool.kv_buffer]
        self.piece_sizes = pool.get_page_buffer_meta(torch.arange(pool.page_size))[1]

    @contextmanager
    def leaving(self, indices: torch.Tensor) -> Iterator[list[Buffer]]:
        """Hold the buffers of pages that go to storage."""
        yield list(zip(*self.pool.get_page_buffer_meta(indices), strict=True))

    arriving = leaving

    def land(self, indices: torch.Tensor, buffers: Sequence[Buffer], loaded: Sequence[bool]) -> None:
        """Do nothing: the pages are where they belong."""


class Copied(Pages):
    """A tensor per page, made for the call."""

    def __init__(self, pool: Any):
        super().__init__(pool)
        self.memory = []
        self.piece_sizes = [pool.get_dummy_flat_data_page().nbytes]

    @contextmanager
    def leaving(self, indices: torch.Tensor) -> Iterator[list[Buffer]]:
        """Hold copies of pages that go to storage."""
        pages = (self.pool.get_data_page(start, flat=False) for start in self.starts(indices))
        yield [page.contiguous() for page in pages]

    @contextmanager
    def arriving(self, indices: torch.Tensor) -> Iterator[list[Buffer]]:
        """Hold buffers for pages that come from storage; ``land`` puts them into the pool."""
        yield [self.pool.get_dummy_flat_data_page() for _ in self.starts(indices)]

    def land(self, indices: torch.Tensor, buffers: Sequence[Any], loaded: Sequence[bool]) -> None:
        """Put the pages that were loaded into the pool."""
        for start, page, whole in zip(self.starts(indices), buffers, loaded, strict=True):
            if whole:
                self.pool.set_from_flat_data_page(start, page)


class Staged(Copied):
    """A slot per page in memory of this object's own, for each direction: a set never waits for a get."""

    def __init__(self, pool: Any):
        super().__init__(pool)
        page = pool.get_dummy_flat_data_page()
        fitting = max(1, STAGED_BYTES // page.nbytes)
        self.batch = min(STAGED_PAGES, fitting, pool.size // pool.page_size)
        self._slots = [
            aligned_tensor((self.batch, page.numel()), page.dtype) for _ in ("leaving", "arriving")
        ]
        self._busy = [threading.Lock() for _ in self._slots]
        self.memory = self._slots

    @contextmanager
    def leaving(self, indices: torch.Tensor) -> Iterator[list[Buffer]]:
        """Hold copies of pages that go to storage."""
        with self._busy[0]:
            starts = self.starts(indices)
            for start, slot in zip(starts, self._slots[0][: len(starts)], strict=True):
                page = self.pool.get_data_page(start, flat=False)
                slot.view(page.shape).copy_(page)
            yield self._buffers(0, len(starts))

    @contextmanager
    def arriving(self, indices: torch.Tensor) -> Iterator[list[Buffer]]:
        """Hold buffers for pages that come from storage; ``land`` puts them into the pool."""
        with self._busy[1]:
            yield self._buffers(1, len(self.starts(indices)))

    def land(self, indices: torch.Tensor, buffers: Sequence[Buffer], loaded: Sequence[bool]) -> None:
        """Put the pages that were loaded into the pool."""
        super().land(indices, self._slots[1][: len(buffers)], loaded)

    def _buffers(self, direction: int, count: int) -> list[Buffer]:
        first, size = self._slots[direction].data_ptr(), self.piece_sizes[0]
        return [(first + slot * size, size) for slot in range(count)]


def pages_of(pool: Any, staged: bool, direct: bool = False) -> Pages:
    """Return how the pages of a pool become buffers.

    Parameters
    ----------
    staged : bool
        Where copies are needed, through memory that is registered once in place of a tensor per page.
    direct : bool
        Files are opened with O_DIRECT: pages that do not lie as it wants them are copied, as SGLang does
        from 0.5.13 on.
    """
    if pool.layout not in ZERO_COPY_LAYOUTS:
        return Staged(pool) if staged else Copied(pool)
    if direct:
        addresses, sizes = pool.get_page_buffer_meta(torch.arange(2 * pool.page_size))
        unaligned = any((address | size) % ALIGNMENT for address, size in zip(addresses, sizes, strict=True))
        if unaligned and pool.get_dummy_flat_data_page().nbytes % ALIGNMENT == 0:  # else a copy is no better
            logger.warning(
                "use_direct_io falls back to copies of pages: O_DIRECT takes addresses and sizes that are "
                "multiples of %d, and a piece of a page in this pool is %d bytes",
                ALIGNMENT,
                sizes[0],
            )
            return Staged(pool)
    return InPlace(pool)
