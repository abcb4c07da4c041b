"""Where a file system puts the files of a measurement.

ext4 does not reuse an inode for minutes after its file was deleted, and searches past such inodes one by one, so
creating a file takes longer where many were deleted shortly before.  A folder at the "top of a hierarchy" (``chattr
+T``) makes ext4 place each of its subfolders in a block group of its own, where no earlier measurement deleted files.
"""

from __future__ import annotations

import array
import fcntl
import os
import tempfile
from contextlib import suppress

_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
_TOP_OF_HIERARCHY = 0x20000  # FS_TOPDIR_FL


def place_apart(folder: str | os.PathLike[str]) -> bool:
    """Have ext4 place each subfolder that is created in a folder apart from the others.

    Returns
    -------
    bool
        False where the file system has no such flag.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(fd, _GET_FLAGS, flags, True)
        flags[0] |= _TOP_OF_HIERARCHY
        fcntl.ioctl(fd, _SET_FLAGS, flags, True)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def new_subfolder(folder: str | os.PathLike[str]) -> str:
    """Create a subfolder of a random name, apart from the others where the file system can do that."""
    place_apart(folder)
    return tempfile.mkdtemp(prefix="", dir=folder)


def write_back(folder: str | os.PathLike[str], drop: bool) -> None:
    """Write everything that waits for the disk, and, if asked to, drop the files of a folder from the page cache.

    Pages of the cache that are dropped are used for the next files.  Other free memory of a virtual machine may be
    memory that its host has to find first: writes into it were measured to be ten times as slow.
    """
    os.sync()
    if not drop:
        return
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                fd = os.open(os.path.join(parent, name), os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(fd)


def truncate_files(folder: str | os.PathLike[str]) -> None:
    """Truncate every file in a folder, which frees their bytes and deletes no inode."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                os.truncate(os.path.join(parent, name), 0)
