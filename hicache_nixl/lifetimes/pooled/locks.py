"""Locks between processes on one store: who writes a segment, who reads it, who changes the index.

They are locks of byte ranges of one file that belong to its open file description (OFD locks), so the kernel
releases them when a process ends, however it ends.  All threads of a process share that description, so what they
hold is counted here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ...errors import DamagedError, FileError
from .folder import open_file

NAME = "locks"
# Bytes of the file, which need not exist: of the index, of all users, of the counters, and from here on of each segment.
INDEX, USERS, COUNTERS = 0, 1, 2
OWNERS, READERS = 1 << 20, 2 << 20
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock on 64-bit Linux
PATIENCE = 5.0  # seconds; a change of the index takes less than a millisecond, growing it up to a second


class Locks:
    """The locks that this process holds.

    Parameters
    ----------
    dir_fd : int
        The folder of the store.
    flags : int
        With ``os.O_RDONLY``, the locks of others can be looked at, and none can be set.
    """

    def __init__(self, dir_fd: int, flags: int = os.O_RDWR | os.O_CREAT):
        self._dir_fd = dir_fd
        self._fd = open_file(dir_fd, NAME, flags)
        self._inode = os.fstat(self._fd).st_ino
        self._one_thread = threading.Lock()  # changes the index
        self._counting = threading.Lock()
        self._readers: Counter[int] = Counter()  # by segment: running loads of this process

    def _check(self) -> None:
        """Raise ``DamagedError`` if others would not see the locks, because they open another file by now."""
        try:
            inode = os.stat(NAME, dir_fd=self._dir_fd, follow_symlinks=False).st_ino
        except OSError as error:
            raise DamagedError(f"{NAME} was removed ({error.strerror})") from error
        if inode != self._inode:
            raise DamagedError(f"{NAME} was replaced")

    def _try(self, kind: int, byte: int) -> bool:
        """Set or release a lock without waiting; return False if another process holds it."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise FileError.of(error, NAME) from error
        return True

    def _wait(self, kind: int, byte: int) -> None:
        """Set a lock; others hold theirs for less than a millisecond."""
        end = time.monotonic() + PATIENCE
        while not self._try(kind, byte):
            if time.monotonic() > end:
                problem = f"another process has held a lock for {PATIENCE:g} s; was it stopped?"
                raise FileError(errno.ETIMEDOUT, problem, NAME)
            time.sleep(50e-6)

    @contextmanager
    def index(self) -> Iterator[None]:
        """Be the only one who changes the index and the state.  Not to be nested.

        Raises
        ------
        FileError
            When another process, perhaps one that was stopped, holds the lock for too long.
        DamagedError
            When the file of the locks was removed or replaced.
        """
        with self._one_thread:
            self._wait(fcntl.F_WRLCK, INDEX)
            try:
                self._check()
                yield
            finally:
                self._try(fcntl.F_UNLCK, INDEX)

    def holds(self, byte: int) -> bool:
        """Return whether a process, or another object of this one, has locked a byte, for itself or with others."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        found = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)

    @contextmanager
    def counters(self) -> Iterator[bool]:
        """Be the only process that changes the counters; yields False if another one does, without waiting."""
        mine = self._try(fcntl.F_WRLCK, COUNTERS)
        try:
            yield mine
        finally:
            if mine:
                self._try(fcntl.F_UNLCK, COUNTERS)

    def join(self) -> bool:
        """Become a user of the store until ``close``; return whether there was no other."""
        alone = self._try(fcntl.F_WRLCK, USERS)
        if not self._try(fcntl.F_RDLCK, USERS):
            raise FileError(errno.EAGAIN, "another process is opening the store", NAME)
        return alone

    def own(self, segment: int) -> bool:
        """Become the only writer of a segment; return False if another process is that."""
        return self._try(fcntl.F_WRLCK, OWNERS + segment)

    def disown(self, segment: int) -> None:
        """Let others write a segment."""
        self._try(fcntl.F_UNLCK, OWNERS + segment)

    @contextmanager
    def reading(self, segments: Iterable[int]) -> Iterator[None]:
        """Keep segments from being recycled, in any process."""
        held: list[int] = []
        try:
            self._check()
            with self._counting:
                for segment in segments:
                    if not self._readers[segment]:
                        self._wait(fcntl.F_RDLCK, READERS + segment)
                    self._readers[segment] += 1
                    held.append(segment)
            yield
        finally:
            with self._counting:
                for segment in held:
                    self._readers[segment] -= 1
                    if not self._readers[segment]:
                        del self._readers[segment]
                        self._try(fcntl.F_UNLCK, READERS + segment)

    @contextmanager
    def unread(self, segment: int) -> Iterator[bool]:
        """Keep readers from a segment; yields False if one reads it now, here or in another process."""
        with self._counting:
            free = not self._readers[segment] and self._try(fcntl.F_WRLCK, READERS + segment)
            try:
                yield free
            finally:
                if free:
                    self._try(fcntl.F_UNLCK, READERS + segment)

    def close(self) -> None:
        """Release all locks.  May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
