"""Page files that survive a power cut: a page gets its name when its bytes are on the disk.

Without that, a file may have its full size after a power cut, and hold other bytes than were written.  The files
have no name (O_TMPFILE) while they are written, and writes return when the bytes are on the disk (O_DSYNC); so no
remains have to be found and removed after a power cut.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from ..errors import ConfigError, FileError
from .folder import FILE_MODE

UNNAMED = os.O_RDWR | os.O_TMPFILE | os.O_DSYNC  # to open the folder with


def check(folder: str) -> None:
    """Raise ``ConfigError`` unless files of a folder can be made without a name and get one."""
    try:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            fd = os.open(own, UNNAMED, FILE_MODE)
            try:
                name([(fd, f"{own}/page")], own)
            finally:
                os.close(fd)
    except OSError as error:
        raise ConfigError(
            f"sync: files in {folder} cannot be made without a name and get one ({error.strerror}); "
            "ext4, XFS, Btrfs and tmpfs support it (O_TMPFILE)"
        ) from error


def name(files: Sequence[tuple[int, str]], folder: str) -> None:
    """Give open files their names, in place of what has them, and wait until these are on the disk.

    First all old names are removed, so that no power cut leaves one piece of a page with the old bytes, and
    another one with the new.
    """
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _, path in files:
            _remove(path)
        for fd, path in files:
            try:
                _link(fd, path, directory)
            except FileExistsError:  # another process has stored it since
                _remove(path)
                _link(fd, path, directory)
        os.fsync(directory)
    except OSError as error:
        raise FileError.of(error, error.filename2 or error.filename or folder) from error
    finally:
        os.close(directory)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _link(fd: int, path: str, directory: int) -> None:
    """Name an open file; with a descriptor, for otherwise Python makes a link to the link in /proc."""
    os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=directory, follow_symlinks=True)
