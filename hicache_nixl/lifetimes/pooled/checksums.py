"""Checksums of pages in host memory: XXH3, 64 bits, over the pieces of a page in their order."""

from __future__ import annotations

import ctypes

import numpy as np
from xxhash import xxh3_64_intdigest

NONE = 0  # instead of a checksum

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
    base = int(starts.min())
    memory = _view(base, int(starts.max()) + int(sizes.max()) - base, _READ_ONLY)
    digests = [0] * len(starts)  # the seed of the first piece; that of the others is the checksum so far
    for column, size in zip((starts - base).T.tolist(), sizes.tolist(), strict=True):
        digests = [
            xxh3_64_intdigest(memory[at : at + size], seed) for at, seed in zip(column, digests, strict=True)
        ]
    return np.maximum(np.array(digests, np.uint64), np.uint64(1))
