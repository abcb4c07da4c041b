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

    def scatter(self, pages: Sequence[int] | slice) -> None:
        """Copy the pieces of some pages to the pool from where they were moved to."""


class Staged(InPool):
    """Pieces of one size that are moved from or to a stage, first those of all pages, then the next ones.

    Parameters
    ----------
    stage : Stage
    pool : numpy.ndarray
        uint8, (m, size): the memory of the pool.
    lines : numpy.ndarray
        int64, (k, n): where in it the pieces are.
    """

    def __init__(self, stage: Stage, pool: np.ndarray, lines: np.ndarray):
        self._stage, self._pool, self._lines = stage, pool, lines
        (k, n), size = lines.shape, pool.shape[1]
        self._copies = stage.bytes[: k * n * size].reshape(k * n, size)
        super().__init__((stage.start + size * np.arange(k * n)).reshape(k, n).T)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.busy.release()

    def gather(self) -> None:
        """Copy the pieces from the pool to the stage."""
        # "clip" saves a copy of the result; no line is beyond the pool
        np.take(self._pool, self._lines.ravel(), axis=0, out=self._copies, mode="clip")

    def scatter(self, pages: Sequence[int] | slice) -> None:
        """Copy the pieces of some pages from the stage to the pool."""
        copies = self._copies.reshape(*self._lines.shape, -1)
        self._pool[self._lines[:, pages]] = copies[:, pages]


class Stage:
    """The memory, which is registered with NIXL like the pool; one transfer uses it at a time.

    Attributes
    ----------
    memory : torch.Tensor
    bytes : numpy.ndarray
        The same.
    start : int
        Its address.
    busy : threading.Lock
    """

    def __init__(self) -> None:
        self.memory = aligned_tensor((STAGE_BYTES,), torch.uint8)
        self.bytes: np.ndarray = self.memory.numpy()
        self.start = self.memory.data_ptr()
        self.busy = threading.Lock()

    def near(self, pools: Sequence[torch.Tensor], starts: np.ndarray, sizes: np.ndarray) -> InPool:
        """Return where to move pieces from or to, for the time of a ``with`` block.

        Parameters
        ----------
        pools : sequence of torch.Tensor
            The host memory that the pieces may be in.
        starts, sizes : numpy.ndarray
            int64, (n, k) and (k,): address and bytes of each piece.
        """
        size = int(sizes[0])
        if not self._pays(starts, size) or (sizes != size).any():
            return InPool(starts)
        at = starts.T
        for tensor in pools:
            whole = tensor.numel() * tensor.element_size() // size
            lines, beside = np.divmod(at - tensor.data_ptr(), size)
            if lines.min() >= 0 and lines.max() < whole and not beside.any():
                if not self.busy.acquire(blocking=False):
                    break
                flat = tensor.view(torch.uint8).view(-1)[: whole * size]
                return Staged(self, flat.view(whole, size).numpy(), lines)
        return InPool(starts)

    @staticmethod
    def _pays(starts: np.ndarray, size: int) -> bool:
        """Return whether pieces are small and many, and most are no neighbours."""
        if size > SMALL_PIECE or starts.size < FEW_PIECES or starts.size * size > STAGE_BYTES:
            return False
        steps = starts[1:] - starts[:-1]
        return bool(2 * np.count_nonzero(steps == size) <= steps.size)
