"""Memory in which small pieces of pages that are scattered over a host pool come next to each other.

Copying them there takes less time than an I/O for each, and a piece of less than 4 KiB would make the kernel read the
rest of its block before it is written.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import torch

from ...host.pools import aligned_tensor
from .pieces import copy, looked_over

SMALL_PIECE = 16 << 10  # larger ones are moved from and to the pool
FEW_PIECES = 16
STAGE_BYTES = 2 << 20


class InPool:
    """Pieces that are moved where they are.

    Attributes
    ----------
    starts : numpy.ndarray
        int64, (n, k): where the pieces of n pages are during the transfer.
    """

    def __init__(self, starts: np.ndarray):
        self.starts = starts

    def __enter__(self) -> InPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def gather(self) -> None:
        """Copy the pieces from the pool to where they are moved from."""

    def scatter(self, pages: np.ndarray) -> None:
        """Copy the pieces of some pages to the pool from where they were moved to."""


class Staged(InPool):
    """Pieces of one size that are moved from or to a stage, first those of all pages, then the next ones.

    Parameters
    ----------
    stage : Stage
    pool : numpy.ndarray
        int64, (n, k): where the pieces are in the pool.
    size : int
        Bytes of a piece.
    """

    def __init__(self, stage: Stage, pool: np.ndarray, size: int):
        self._stage, self._pool, self._size = stage, pool, size
        n, k = pool.shape
        super().__init__((stage.start + size * np.arange(k * n)).reshape(k, n).T)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.busy.release()

    def gather(self) -> None:
        """Copy the pieces from the pool to the stage."""
        copy(self._pool, self._size, self._stage.start, np.arange(len(self._pool)), False)

    def scatter(self, pages: np.ndarray) -> None:
        """Copy the pieces of some pages from the stage to the pool."""
        copy(self._pool, self._size, self._stage.start, pages, True)


class Stage:
    """The memory, which is registered with NIXL like the pool; one transfer uses it at a time.

    Attributes
    ----------
    memory : torch.Tensor
    start : int
        Its address.
    busy : threading.Lock
    """

    def __init__(self) -> None:
        self.memory = aligned_tensor((STAGE_BYTES,), torch.uint8)
        self.start = self.memory.data_ptr()
        self.busy = threading.Lock()

    def near(self, pools: Sequence[tuple[int, int]], starts: np.ndarray, sizes: np.ndarray) -> InPool:
        """Return where to move pieces from or to, for the time of a ``with`` block.

        Parameters
        ----------
        pools : sequence of (int, int)
            Start and end of the host memory that the pieces may be in; others may be read-only.
        starts, sizes : numpy.ndarray
            int64, (n, k) and (k,): address and bytes of each piece.
        """
        size = int(sizes[0])
        if size > SMALL_PIECE or starts.size < FEW_PIECES or starts.size * size > STAGE_BYTES:
            return InPool(starts)
        follow, start, end = looked_over(starts, size)
        in_pool = any(first <= start and end <= last for first, last in pools)
        if 2 * follow > starts.size or not in_pool or (sizes != size).any():
            return InPool(starts)
        return Staged(self, starts, size) if self.busy.acquire(blocking=False) else InPool(starts)
