"""The state of a store: its capacity, the generation of each segment, and the number of its index.

A file of fixed size that all processes on the store map into memory.  It is changed under the lock of the index.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ClosedError, DamagedError, FileError, NewerFormatError
from .folder import is_written_in_place, open_file

NAME, MAGIC, VERSION = "state", b"HCNXPOOL", 1
MOST_SEGMENTS, MEBIBYTE = 4096, 1 << 20
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
        (
            "removals",
            "u8",
        ),  # how often pages were given up otherwise than by a new generation of their segment
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
    in_place : bool
        Whether the file system copies what is overwritten, and was told not to.

    Raises
    ------
    NewerFormatError
        A later version of this package made the store.
    FileError, DamagedError
        The file cannot be opened, or is not the state of a store.
    """

    def __init__(self, dir_fd: int, read_only: bool = False):
        """Open the state of a store, or make room for it; the caller holds the lock of the index.

        ``read_only``, without that lock, the state is that of an existing store, and cannot be changed.
        """
        fd = open_file(dir_fd, NAME, os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT)
        try:
            if os.fstat(fd).st_size == 0 and not read_only:
                _allocate(fd)
            _refuse_newer(fd)
            self._dir_fd, self._fd, self._inode = dir_fd, fd, os.fstat(fd).st_ino
            self.in_place = is_written_in_place(fd)
            self._check_file()
            self._memory = mmap.mmap(fd, SIZE, access=mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE)
        except BaseException:
            os.close(fd)
            raise
        self.header: Any = np.frombuffer(self._memory, HEADER, 1)[0:1]
        self.segments = np.frombuffer(self._memory, SEGMENT, MOST_SEGMENTS, mmap.PAGESIZE)
        self.generations = self.segments["generation"]
        self.is_new = not self.header.tobytes().strip(b"\0")  # or its maker was killed before ``begin``
        try:
            if not self.is_new or read_only:
                self.check_format()
        except BaseException:
            self.close()
            raise

    def begin(self, segment_bytes: int, segments: int) -> None:
        """Fill in the state of a new store; a process that is killed leaves it whole or new."""
        header = np.zeros(1, HEADER)
        header["magic"], header["version"], header["boot"] = MAGIC, VERSION, boot_id()
        header["segment_bytes"], header["segments"], header["next_generation"] = segment_bytes, segments, 1
        self.header[:] = header

    def check_format(self) -> None:
        """Raise ``DamagedError`` if the header is not that of a store."""
        if self.header["magic"][0] != MAGIC:
            raise DamagedError(f"{NAME} is not the state of a store")
        size, count, index = self["segment_bytes"], self["segments"], self["index"]
        if not 0 < size < 2**48 or size % MEBIBYTE or not 2 <= count <= MOST_SEGMENTS or index >= 2**48:
            raise DamagedError(f"{NAME} is damaged: {count} segments of {size} bytes, index {index}")

    def check(self) -> None:
        """Raise ``DamagedError`` if the file is not the one of a store any more, ``ClosedError`` after ``close()``."""
        if self._fd < 0:
            raise ClosedError("the store is closed")
        self._check_file()
        if self._memory[: len(MAGIC)] != MAGIC:
            raise DamagedError(f"{NAME} was overwritten")

    def _check_file(self) -> None:
        """Raise ``DamagedError`` if the file is not there or has another size.

        To read a mapped file beyond its end would kill the process with SIGBUS.  With another file in its place
        other processes would not see what this one changes.
        """
        try:
            status = os.stat(NAME, dir_fd=self._dir_fd, follow_symlinks=False)
        except OSError as error:
            raise DamagedError(f"{NAME} was removed ({error.strerror})") from error
        if status.st_ino != self._inode:
            raise DamagedError(f"{NAME} was replaced")
        if status.st_size != SIZE:
            raise DamagedError(f"{NAME} has {status.st_size} bytes instead of {SIZE}")

    def __getitem__(self, field: str) -> Any:
        return self.header[field][0].item()

    def __setitem__(self, field: str, value: Any) -> None:
        self.header[field] = value

    def take_generation(self) -> int:
        """Return the next generation; the caller holds the lock of the index."""
        taken: int = self["next_generation"]
        self["next_generation"] = taken + 1
        return taken

    def give_up(self, segment: int) -> None:
        """Note that a segment holds no page any more; the caller holds the lock of the index."""
        self.segments[segment] = 0
        self["removals"] += 1

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


def _allocate(fd: int) -> None:
    """Give the file its size and its room on the disk, so that no SIGBUS comes later for want of it."""
    try:
        os.posix_fallocate(fd, 0, SIZE)
    except OSError as error:
        os.ftruncate(fd, 0)
        raise FileError.of(error, NAME) from error


def boot_id() -> bytes:
    """Return what changes with every boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
