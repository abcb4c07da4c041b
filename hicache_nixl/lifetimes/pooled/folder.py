"""Files of a store: opened relative to its folder, never through a symbolic link, and only if they are ours."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress

from ...errors import ConfigError, DamagedError, FileError
from ...transport.folder import FILE_MODE, make_folder, refuse_shared

NAME = "pooled"  # of the store in the storage folder, which other lifetimes may use for page files
# FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_NOCOW_FL of linux/fs.h.
_GET_FLAGS, _SET_FLAGS, _IN_PLACE = 0x80086601, 0x40086602, 0x00800000
_FLAGS = struct.Struct("@l")
# Errors of a file that is not the one of the store any more.
_GONE = (
    errno.ENOENT,
    errno.EIO,
    errno.ELOOP,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENXIO,
    errno.EMLINK,
    errno.EPERM,
)


def is_gone(error: FileError | DamagedError) -> bool:
    """Return whether a file of the store is lost, and not out of reach for now, as with too many open files."""
    return isinstance(error, DamagedError) or error.errno in _GONE


def open_file(dir_fd: int, name: str, flags: int) -> int:
    """Open a file of the store; return its descriptor, which the caller closes.

    Raises
    ------
    FileError
        When it cannot be opened, is no regular file with this one name, or belongs to another user.
    """
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE, dir_fd=dir_fd)
    except OSError as error:
        raise FileError.of(error, name) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FileError(errno.EINVAL, "is no regular file", name)
        if status.st_uid != os.geteuid():
            raise FileError(errno.EPERM, f"belongs to user {status.st_uid}", name)
        if status.st_nlink > 1:
            raise FileError(errno.EMLINK, "has other names, whose content would change", name)
        if flags & os.O_CREAT:
            os.fchmod(fd, FILE_MODE)  # whatever the umask
            if not status.st_size:
                write_in_place(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_in_place(fd: int) -> None:
    """Have the bytes of an empty file overwritten in their place on a file system that would copy them (btrfs).

    A copy needs new room, though that of the file is allocated.  Without it, to change mapped memory kills the process
    with SIGBUS.
    """
    with suppress(OSError):  # all other file systems
        fcntl.ioctl(fd, _SET_FLAGS, _FLAGS.pack(_flags(fd) | _IN_PLACE))


def is_written_in_place(fd: int) -> bool:
    """Return whether ``write_in_place`` had an effect."""
    try:
        return bool(_flags(fd) & _IN_PLACE)
    except OSError:
        return False


def _flags(fd: int) -> int:
    flags: int = _FLAGS.unpack(fcntl.ioctl(fd, _GET_FLAGS, bytes(_FLAGS.size)))[0]
    return flags


def open_folder(storage_dir: str, shared: bool) -> tuple[str, int]:
    """Make the folder of a store if needed; return its path and its descriptor, which the caller closes.

    Raises
    ------
    ConfigError
        When it cannot be used, is a symbolic link, or can be written by others and ``shared`` is False.
    """
    path = os.path.join(os.path.abspath(storage_dir), NAME)
    try:
        make_folder(path)
        if not shared:
            refuse_shared(os.path.dirname(path), os.geteuid())
            refuse_shared(path, os.geteuid())
        return path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"storage folder {path}: {error}") from error
