"""Addresses of a caller whose memory is not there.

The kernel answers a transfer from such an address with an error, but a checksum is computed in this process, which
would end with SIGSEGV.  So the kernel is asked first.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import RegistrationError
from ...host.addresses import Addresses
from ...names import Named
from ...transport.registration import Buffer
from ..outcome import Outcome

MOST_VECTORS = 1024  # UIO_MAXIOV
POPULATE_READ = 22  # MADV_POPULATE_READ, since Linux 5.14
_libc = ctypes.CDLL(None, use_errno=True)
_madvise, _pwritev = _libc.madvise, _libc.pwritev
_madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_pwritev.argtypes, _pwritev.restype = (
    (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long),
    ctypes.c_ssize_t,
)

Move = Callable[[Any, Named, Sequence[Buffer]], list[Outcome]]


def only_mapped(move: Move) -> Move:
    """Make ``store`` or ``load`` of a lifetime answer for pages at addresses without memory, and move the others."""

    @functools.wraps(move)
    def checked(lifetime: Any, pages: Named, buffers: Sequence[Buffer]) -> list[Outcome]:
        if isinstance(buffers, Addresses) or not any(isinstance(buffer, tuple) for buffer in buffers):
            return move(lifetime, pages, buffers)  # memory of the pool, or of tensors
        places = Addresses.of(buffers, len(pages.endings))
        good = mapped(places, lifetime.pool_ranges)
        if good.all():
            return move(lifetime, pages, places)
        first = int(np.flatnonzero(~good)[0])
        start, size = places[first * len(pages.endings)]
        missing = Outcome.not_touched(
            RegistrationError(f"not all of {size} bytes at {start:#x} are mapped memory")
        )
        kept = Named(
            [key for key, fine in zip(pages.keys, good, strict=True) if fine], pages.suffix, pages.endings
        )
        sizes = places.sizes if places.alike else places.sizes[good]
        moved = iter(move(lifetime, kept, Addresses(places.starts[good], sizes)) if kept.keys else ())
        return [next(moved) if fine else missing for fine in good.tolist()]

    return checked


def mapped(places: Addresses, known: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return for each page whether all its memory can be read.

    Parameters
    ----------
    places : Addresses
        n pages.
    known : sequence of (int, int)
        Start and end of memory that need not be looked at.

    Returns
    -------
    numpy.ndarray of bool, (n,)
    """
    ends = places.starts + places.sizes
    good = np.zeros(len(ends), np.bool_)
    for start, end in known:
        good |= ((places.starts >= start) & (ends <= end)).all(axis=1)
    if not good.all():
        fd = os.memfd_create("hicache-nixl")
        try:
            for page in np.flatnonzero(~good).tolist():
                pieces = zip(places.starts[page].tolist(), ends[page].tolist(), strict=True)
                good[page] = all(_is_readable(fd, start, end) for start, end in pieces)
        finally:
            os.close(fd)
    return good


def _is_readable(fd: int, start: int, end: int) -> bool:
    """Return whether the kernel can read each page of memory: all at once, or a byte of each into a file.

    The first way, which takes less time, does not know memory of some devices, and not all kernels know it.
    """
    aligned = start // mmap.PAGESIZE * mmap.PAGESIZE
    if start >= 0 and _madvise(aligned, end - aligned, POPULATE_READ) == 0:
        return True
    vectors = np.ones((-(-(end - start) // mmap.PAGESIZE) + 1, 2), np.int64)  # struct iovec: address, bytes
    vectors[:-1, 0], vectors[-1, 0] = np.arange(start, end, mmap.PAGESIZE), end - 1
    for first in range(0, len(vectors), MOST_VECTORS):
        part = vectors[first : first + MOST_VECTORS]
        copied = _pwritev(fd, part.ctypes.data, len(part), 0)
        if copied < 0 and ctypes.get_errno() != errno.EFAULT:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if copied < len(part):
            return False
    return True
