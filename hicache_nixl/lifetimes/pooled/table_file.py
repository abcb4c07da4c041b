"""The file of a table, mapped into memory: a header, the words, and a row for every two of them."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
import weakref
from contextlib import suppress

import numpy as np

from ...errors import ClosedError, DamagedError, FileError, NewerFormatError
from ...transport.folder import FILE_MODE
from .folder import write_in_place
from .row import ROW, ROW_WORDS
from .words import MOST_ROWS

MAGIC, FORMAT = b"hicache_nixl idx", 2
WORDS_START = 4096  # bytes; a page of memory for the header
HEAD = 32  # where in the header the place after the row that was written last is
_HEADER = struct.Struct("<16sQQ")  # magic, format, slots
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_CLOSED = -1
# Words are written anywhere: to make their pages of memory one by one would take 8 us for each, in the first calls.
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of <linux/mman.h>


class TableFile:
    """One descriptor and one mapping of a file; both end with ``close()``, or with this object.

    So a table that was replaced ends when the last thread that reads it has left it.

    Attributes
    ----------
    slots : int
        Of words: a multiple of those of a bucket.
    head : numpy.ndarray of uint64, shape (1,)
        The place in the ring of rows that is written next.
    words : numpy.ndarray of uint64, shape (slots,)
        See the module ``words``.
    rows : numpy.ndarray of uint64, shape (slots // 2, 12)
        The mapped rows.
    """

    def __init__(self, fd: int, name: str, least_slots: int):
        self.name = name
        self._fd = fd  # owned from here on
        try:
            self.slots = _slots_of(fd, name, least_slots)
            self._size = _size_of(self.slots)
            self._map = mmap.mmap(fd, self._size)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and not isinstance(error, FileError):
                raise FileError.of(error, name) from error
            raise
        self._end = weakref.finalize(self, os.close, fd)
        self.head = np.frombuffer(self._map, np.uint64, 1, HEAD)
        self.words = np.frombuffer(self._map, np.uint64, self.slots, WORDS_START)
        room, start = self.slots // 2, WORDS_START + self.words.nbytes
        self.rows = np.frombuffer(self._map, np.uint64, room * ROW_WORDS, start).reshape(room, ROW_WORDS)

    @classmethod
    def create(cls, dir_fd: int, name: str, slots: int) -> TableFile:
        """Make the file of an empty table, in place of a file of that name; raise ``FileError``."""
        if slots > 2 * MOST_ROWS:
            raise FileError(errno.EFBIG, f"more than {MOST_ROWS} pages cannot be listed", name)
        try:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=dir_fd)
            fd = os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, FILE_MODE, dir_fd=dir_fd)
            try:
                os.fchmod(fd, FILE_MODE)  # whatever the umask
                write_in_place(fd)
                # A store to a mapped page for which the disk has no room would kill the process with SIGBUS.
                os.posix_fallocate(fd, 0, _size_of(slots))
                os.pwrite(fd, _HEADER.pack(MAGIC, FORMAT, slots), 0)
            except BaseException:
                os.close(fd)
                os.unlink(name, dir_fd=dir_fd)
                raise
        except OSError as error:
            raise FileError.of(error, name) from error
        file = cls(fd, name, slots)
        with suppress(OSError):  # before Linux 5.14
            file._map.madvise(_POPULATE_WRITE, 0, WORDS_START + file.words.nbytes)
        return file

    @classmethod
    def open(cls, dir_fd: int, name: str, least_slots: int) -> TableFile:
        """Map an existing file; raise ``FileError``, ``DamagedError`` or ``NewerFormatError``."""
        try:
            fd = os.open(name, _FLAGS, dir_fd=dir_fd)
        except OSError as error:
            raise FileError.of(error, name) from error
        return cls(fd, name, least_slots)

    def check(self) -> None:
        """Raise ``DamagedError`` if the file was removed or has another size, ``ClosedError`` after ``close()``."""
        if self._fd == _CLOSED:
            raise ClosedError(f"the table in {self.name} is closed")
        status = os.fstat(self._fd)
        if status.st_nlink == 0:
            raise DamagedError(f"{self.name} was removed")
        if status.st_size != self._size:
            raise DamagedError(f"{self.name} has {status.st_size} bytes instead of {self._size}")

    def mapped(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return words, rows and head, which stay mapped while they are held; errors as in ``check``."""
        self.check()
        words, rows, head = self.words, self.rows, self.head
        if not (len(words) and len(rows) and len(head)):  # another thread closes it at this moment
            raise ClosedError(f"the table in {self.name} is closed")
        return words, rows, head

    def close(self) -> None:
        """Unmap and close the file.  A second call does nothing."""
        if self._fd != _CLOSED:
            self._fd = _CLOSED
            self.head = self.words = np.empty(0, np.uint64)
            self.rows = np.empty((0, ROW_WORDS), np.uint64)
            with suppress(BufferError):  # a call in another thread still reads; its end unmaps
                self._map.close()
            del self._map
            self._end()


def _size_of(slots: int) -> int:
    """Return the size in bytes of the file of a table."""
    return WORDS_START + slots * 8 + slots // 2 * ROW.itemsize


def _slots_of(fd: int, name: str, least: int) -> int:
    """Return how many slots a file has; raise ``DamagedError`` or ``NewerFormatError`` if it is not a table's."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"{name} is not a regular file")
    if status.st_uid != os.geteuid():
        raise DamagedError(f"{name} belongs to user {status.st_uid}, and this process is user {os.geteuid()}")
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise DamagedError(f"{name} is not an index of this package")
    _, version, slots = _HEADER.unpack(header)
    if version > FORMAT:
        raise NewerFormatError(
            f"{name} has format {version}, and this version reads up to {FORMAT}: upgrade it"
        )
    if version != FORMAT or slots < least or slots % least or status.st_size != _size_of(slots):
        raise DamagedError(f"{name} is damaged: format {version}, {slots} slots, {status.st_size} bytes")
    return int(slots)
