"""Checksums of pages in host memory: XXH3, 64 bits, over the pieces of a page in their order."""

from __future__ import annotations

import ctypes

import numpy as np
from xxhash import xxh3_64_intdigest

from .xxh3 import LEAST, digests

NONE = 0  # instead of a checksum
_ONE = np.uint64(1)

_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.restype, _view.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_READ_ONLY = 0x100


def checksums(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the checksum of each page, never ``NONE``.

    Parameters
    ----------
    starts : numpy.ndarray
        int64, (n, k): the address of each piece.  They must not be freed meanwhile.
    sizes : numpy.ndarray
        int64, (k,): bytes of each piece.

    Returns
    -------
    numpy.ndarray
        uint64, (n,).
    """
    if sizes.min() >= LEAST:
        found = np.empty(len(starts), np.uint64)
        digests(starts, sizes, found)
        return np.maximum(found, _ONE)
    base = int(starts.min())
    memory = _view(base, int(starts.max()) + int(sizes.max()) - base, _READ_ONLY)
    so_far = [0] * len(starts)  # the seed of the first piece; that of the others is the checksum so far
    for column, size in zip((starts - base).T.tolist(), sizes.tolist(), strict=True):
        so_far = [
            xxh3_64_intdigest(memory[at : at + size], seed) for at, seed in zip(column, so_far, strict=True)
        ]
    return np.maximum(np.array(so_far, np.uint64), _ONE)
