"""Why a file in the place of a page cannot be used."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from ..errors import FileError


def not_opened(error: OSError, path: str) -> FileError:
    """Return why a page file could not be opened."""
    if error.errno == errno.ELOOP:
        return FileError(errno.ELOOP, "a symbolic link, which is not followed", path)
    return FileError.of(error, path)


def not_a_page(status: os.stat_result, size: int, path: str, owner: int) -> FileError | None:
    """Return why a file is not a page of ``size`` bytes that the user ``owner`` stored, or None."""
    if stat.S_ISDIR(status.st_mode):
        return FileError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        return FileError(errno.EINVAL, "not a regular file", path)
    if status.st_uid != owner:
        return FileError(errno.EPERM, f"belongs to user {status.st_uid}, not to user {owner}", path)
    if status.st_size != size:
        return FileError(errno.EIO, f"holds {status.st_size} of {size} bytes", path)
    return None


def once(fault: FileError, faults: Mapping[int, FileError]) -> FileError:
    """Return one fault for all files of other users, so that they are one line in the log."""
    if fault.errno != errno.EPERM:
        return fault
    return next((other for other in faults.values() if other.errno == errno.EPERM), fault)
