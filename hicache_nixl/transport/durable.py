"""Page files that survive a power cut: a page gets its name when its bytes are on the disk.

Without that, a file may have its full size after a power cut, and hold other bytes than were written.  The files
have no name (O_TMPFILE) while they are written, and writes return when the bytes are on the disk (O_DSYNC); so no
remains have to be found and removed after a power cut.

That needs a file system which writes changes of its own records in their order, as those with a journal do:
without, the name can be on the disk before the file has it, and bytes of a removed file can be overwritten
before its name is gone.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from ..errors import ConfigError
from .folder import FILE_MODE, HeldFolder

logger = logging.getLogger(__name__)

UNNAMED = os.O_RDWR | os.O_TMPFILE | os.O_DSYNC  # to open the folder with
SYSFS = "/sys"


def check(folder: HeldFolder) -> None:
    """Raise ``ConfigError`` unless files of a folder can be made without a name and get one.

    An ext4 (or ext2) that has no journal is logged as a warning.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder.inside) as own:
            fd = os.open(own, UNNAMED, FILE_MODE)
            try:
                name([(fd, f"{os.path.basename(own)}/page")], folder.fd)
            finally:
                os.close(fd)
    except OSError as error:
        raise ConfigError(
            f"sync: files in {folder.path} cannot be made without a name and get one ({error.strerror}); "
            "ext4, XFS, Btrfs and tmpfs support it (O_TMPFILE)"
        ) from error
    if not _has_journal(os.fstat(folder.fd).st_dev):
        logger.warning(
            "sync: the file system of %s has no journal; after a power cut, pages may be missing or hold other bytes",
            folder.path,
        )


def _has_journal(device: int) -> bool:
    """Return whether a file system has a journal, by its device; True where only ext4 would tell."""
    disk = os.path.realpath(f"{SYSFS}/dev/block/{os.major(device)}:{os.minor(device)}")
    try:
        with open(f"{SYSFS}/fs/ext4/{os.path.basename(disk)}/journal_task") as task:
            return task.read().strip() != "<none>"
    except OSError:
        return True


def name(files: Sequence[tuple[int, str]], directory: int) -> None:
    """Give open files their names in a folder, in place of what has them; wait until these are on the disk.

    First all old names are removed, so that no power cut leaves one piece of a page with the old bytes, and
    another one with the new.

    Parameters
    ----------
    files : sequence of (int, str)
        Descriptors and names.
    directory : int
        Descriptor of the folder.
    """
    for _, page in files:
        _remove(page, directory)
    for fd, page in files:
        try:
            _link(fd, page, directory)
        except FileExistsError:  # another process has stored it since
            _remove(page, directory)
            _link(fd, page, directory)
    os.fsync(directory)


def _remove(page: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(page, dir_fd=directory)


def _link(fd: int, page: str, directory: int) -> None:
    """Name an open file; with a descriptor, for otherwise Python makes a link to the link in /proc."""
    os.link(f"/proc/self/fd/{fd}", page, dst_dir_fd=directory, follow_symlinks=True)
