"""The state of a store: its capacity, the generation of each segment, and the number of its index.

A file of fixed size that all processes on the store map into memory.  It is changed under the lock of the index.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ClosedError, DamagedError, NewerFormatError
from .folder import open_file

MAGIC, VERSION = b"HCNXPOOL", 1
MOST_SEGMENTS = 4096
# Of all processes since the store was made.
COUNTERS = (
    "gets",
    "pages_asked",
    "pages_found",
    "bytes_found",
    "sets",
    "pages_stored",
    "bytes_stored",
    "segments_recycled",
)
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "u8"),
        ("segment_bytes", "u8"),
        ("segments", "u8"),  # how many there may be: the capacity
        ("index", "u8"),  # the number in the name of its file
        ("next_generation", "u8"),
        (
            "verified_below",
            "u8",
        ),  # pages of smaller generations are compared with their checksums in any case
        ("boot", "S40"),
        ("counters", "u8", (len(COUNTERS),)),
    ]
)
# ``used`` bytes hold pages.  A segment is ``open`` if its last writer left it with room, in good order.  It got its
# generation at ``taken``, in seconds since 1970.
SEGMENT = np.dtype([(name, "u8") for name in ("generation", "used", "open", "inode", "taken")])
SIZE = mmap.PAGESIZE + MOST_SEGMENTS * SEGMENT.itemsize


class State:
    """The mapped state.

    Attributes
    ----------
    header : numpy.ndarray
        One ``HEADER``.
    segments : numpy.ndarray
        ``SEGMENT`` by number; generation 0 means that a segment holds no page.
    generations : numpy.ndarray
        uint64, the generations of ``segments``.

    Raises
    ------
    NewerFormatError
        A later version of this package made the store.
    FileError, DamagedError
        The file cannot be opened, or is not the state of a store.
    """

    def __init__(
        self, dir_fd: int, geometry: Callable[[], tuple[int, int]] | None = None, read_only: bool = False
    ):
        """Open the state of a store, or make it; the caller holds the lock of the index.

        A new store gets the bytes of a segment and the number of segments that ``geometry`` returns; without it, the
        store must exist.  If it is only read, the lock is not needed.
        """
        fd = open_file(dir_fd, "state", os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT)
        try:
            self.is_new = os.fstat(fd).st_size == 0 and geometry is not None
            if self.is_new:
                os.posix_fallocate(fd, 0, SIZE)  # no SIGBUS later for want of room
            _refuse_newer(fd)
            self._fd = fd
            self.check()
            self._memory = mmap.mmap(fd, SIZE, access=mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE)
        except BaseException:
            os.close(fd)
            raise
        self.header: Any = np.frombuffer(self._memory, HEADER, 1)[0:1]
        self.segments = np.frombuffer(self._memory, SEGMENT, MOST_SEGMENTS, mmap.PAGESIZE)
        self.generations = self.segments["generation"]
        try:
            if geometry is not None and not self["version"]:
                # the maker may have been killed before it wrote the version, which it does last
                self.is_new = True
                self["segment_bytes"], self["segments"] = geometry()
                self["next_generation"], self["boot"] = 1, boot_id()
                self.header["magic"], self["version"] = MAGIC, VERSION
            self._check_format()
        except BaseException:
            self.close()
            raise

    def _check_format(self) -> None:
        if self.header["magic"][0] != MAGIC or not 0 < self["segment_bytes"] < 2**48:
            raise DamagedError("state is not the state of a store")

    def check(self) -> None:
        """Raise ``DamagedError`` if the file was removed or has another size, ``ClosedError`` after ``close()``.

        To read a mapped file beyond its end would kill the process with SIGBUS.
        """
        if self._fd < 0:
            raise ClosedError("the store is closed")
        status = os.fstat(self._fd)
        if status.st_nlink == 0 or status.st_size != SIZE:
            raise DamagedError(f"state was removed, or has {status.st_size} bytes instead of {SIZE}")

    def __getitem__(self, field: str) -> Any:
        return self.header[field][0].item()

    def __setitem__(self, field: str, value: Any) -> None:
        self.header[field] = value

    def take_generation(self) -> int:
        """Return the next generation; the caller holds the lock of the index."""
        taken: int = self["next_generation"]
        self["next_generation"] = taken + 1
        return taken

    def is_other_boot(self) -> bool:
        """Return whether the machine was booted since, so that not all that was written need be on the disk."""
        return bool(self["boot"] != boot_id())

    def close(self) -> None:
        """Unmap the file.  May be called twice."""
        self.header = self.segments = self.generations = np.zeros(0, SEGMENT)
        with suppress(BufferError):  # an array that a caller still has
            self._memory.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _refuse_newer(fd: int) -> None:
    """Raise ``NewerFormatError`` for the state of a later version, whose size may be another one."""
    start = np.dtype([("magic", "S8"), ("version", "u8")])
    header = np.frombuffer(os.pread(fd, start.itemsize, 0).ljust(start.itemsize, b"\0"), start)[0]
    if header["magic"] == MAGIC and header["version"] > VERSION:
        raise NewerFormatError(
            f"the store has format {header['version']}, and this version of hicache-nixl knows up to {VERSION}: "
            "upgrade it, or use another folder"
        )


def boot_id() -> bytes:
    """Return what changes with every boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
