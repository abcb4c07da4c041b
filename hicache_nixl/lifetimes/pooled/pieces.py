"""The pieces of pages as the lists of a transfer, with neighbours in memory and file as one I/O; and copies of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.core import types

from .compiled import (
    Flag,
    Matrix,
    Number,
    Numbers,
    ReadMatrix,
    ReadNumberMatrix,
    ReadNumbers,
    compiled,
    unlocked,
)
from .row import OFFSET, STEP, Rows, words_of

MOST_BYTES = 1 << 20  # of one I/O: larger ones are neither faster nor fair to others in the queue

_memcpy: Any = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.uintp))


class Pieces(NamedTuple):
    """What a transfer moves between host memory and one file.

    Attributes
    ----------
    host : numpy.ndarray of uint64, (m, 3)
        Address and bytes of each I/O, and 0.
    stored : numpy.ndarray of uint64, (m, 3)
        Place in the file, bytes, and the descriptor, which the caller fills in.
    start, end : int
        The part of memory that has all of them.
    bits : int
        All addresses, places and sizes, joined by "or": what divides it and is a power of two divides all of them.
    """

    host: npt.NDArray[np.uint64]
    stored: npt.NDArray[np.uint64]
    start: int
    end: int
    bits: int


def joined(rows: Rows, starts: np.ndarray, sizes: np.ndarray) -> Pieces:
    """Return the pieces of n pages: all first ones, then all second ones.

    Parameters
    ----------
    rows : numpy.ndarray of ROW, (n,)
        Where the pages are in the file.
    starts, sizes : numpy.ndarray
        int64, (n, k) and (k,): address and bytes of each piece.
    """
    host, stored = np.empty((2, starts.size, 3), np.uint64)
    count, start, end, bits = _join(words_of(rows), starts, sizes, host, stored)
    return Pieces(host[:count], stored[:count], start, end, bits)


@compiled
def _join(
    rows: ReadMatrix, starts: ReadNumberMatrix, sizes: ReadNumbers, host: Matrix, stored: Matrix
) -> tuple[Number, Number, Number, Number]:
    count, low, high, bits = 0, starts[0, 0], starts[0, 0], 0
    for piece in range(len(sizes)):
        size = sizes[piece]
        for page in range(len(rows)):
            at = starts[page, piece]
            offset = np.int64(rows[page, OFFSET]) + piece * np.int64(rows[page, STEP])
            low, high = min(low, at), max(high, at + size)
            last = count - 1
            so_far = np.int64(stored[last, 1]) if count else MOST_BYTES
            if (
                so_far + size <= MOST_BYTES
                and np.int64(host[last, 0]) + so_far == at
                and np.int64(stored[last, 0]) + so_far == offset
            ):
                host[last, 1] = stored[last, 1] = so_far + size
                continue
            host[count, 0], host[count, 1], host[count, 2] = at, size, 0
            stored[count, 0], stored[count, 1], stored[count, 2] = offset, size, 0
            count += 1
    for line in range(count):
        bits |= int(host[line, 0] | stored[line, 0] | stored[line, 1])
    return count, low, high, bits


@compiled
def looked_over(starts: ReadNumberMatrix, size: Number) -> tuple[Number, Number, Number]:
    """Return how many of n * k pieces follow those of the page before, and the start and end of all of them."""
    follow, low, high = 0, starts[0, 0], starts[0, 0]
    for page in range(starts.shape[0]):
        for piece in range(starts.shape[1]):
            at = starts[page, piece]
            low, high = min(low, at), max(high, at)
            follow += page > 0 and at == starts[page - 1, piece] + size
    return follow, low, high + size


@unlocked
def copy(starts: ReadNumberMatrix, size: Number, stage: Number, pages: Numbers, back: Flag) -> Number:
    """Copy pieces of some of n pages to their places on a stage, or ``back``: first those of all pages, then the next."""
    for piece in range(starts.shape[1]):
        for page in pages:
            there = stage + (piece * starts.shape[0] + page) * size
            if back:
                _memcpy(starts[page, piece], there, size)
            else:
                _memcpy(there, starts[page, piece], size)
    return len(pages)
