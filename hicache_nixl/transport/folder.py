"""The storage folder: how it is made and held open, and who else may write to it.

A page that another user put there would be loaded into the model's cache.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Callable
from pathlib import Path

from ..errors import ConfigError, FileError

# A KV page contains the input of a user: only the owner of the process may read it.
FILE_MODE, FOLDER_MODE = 0o600, 0o700
FOLDER = os.O_RDONLY | os.O_DIRECTORY
NOT_OPEN = -1  # instead of a descriptor
TRIES = 10  # to make and open a folder that others remove
ROOT = 0


class HeldFolder:
    """The storage folder, open, so that no other folder can take its place while it is in use.

    Files that are looked up relative to ``fd`` (``dir_fd``) are those of this folder, wherever its path leads
    by then: the folder or a parent may have been renamed, or exchanged for a symbolic link or another folder.
    Only when the folder itself was removed is one made again.

    Parameters
    ----------
    path : str
        Created when missing.  Symbolic links in it are followed here, once, since the folder may be on
        another disk.

    Attributes
    ----------
    fd : int
        The same number until ``close()``, also when the folder is made again; then ``NOT_OPEN``.
    path : str
        Where the folder was when it was opened, without symbolic links.

    Raises
    ------
    FileError, OSError
        When there is no folder, or it may not be read.
    """

    def __init__(self, path: str):
        make_folder(path)
        self.path = os.path.realpath(path)
        self.fd = os.open(self.path, FOLDER)
        # Without ``close()``, after an interrupt or in a program that forgets it, the object closes it at its end.
        self._end = weakref.finalize(self, os.close, self.fd)

    @property
    def inside(self) -> str:
        """A path that leads into this folder, for functions without ``dir_fd``."""
        return f"/proc/self/fd/{self.fd}"

    def renew(self, check: Callable[[int], None], make: bool) -> bool:
        """If the folder was removed, open the one that is where it was; return False if there is none.

        Other threads may use ``fd`` meanwhile, so the descriptor is exchanged in one step.  No symbolic link
        is followed now, since it may be there for an attack.

        Parameters
        ----------
        check : callable
            Raises when the folder with this descriptor must not be used.
        make : bool
            Whether to make the folder again if nothing is there; otherwise all its files are missing.

        Raises
        ------
        FileError
            When the folder cannot be made or opened, or its path leads elsewhere now.
        """
        if self.fd == NOT_OPEN or not _is_removed(self.fd):
            return True
        self._refuse_elsewhere(os.path.realpath(self.path))  # where no folder should be made, either
        if not make and not os.path.exists(self.path):
            return False
        fd = self._opened_again(make)
        try:
            actual = os.readlink(f"/proc/self/fd/{fd}")
            # removed again since: the next call finds that
            self._refuse_elsewhere(actual.removesuffix(" (deleted)") if _is_removed(fd) else actual)
            check(fd)
            os.dup2(fd, self.fd, inheritable=False)
            return True
        finally:
            os.close(fd)

    def _opened_again(self, make: bool) -> int:
        for tries_left in reversed(range(TRIES)):
            try:
                if make:
                    make_folder(self.path)
                return os.open(self.path, FOLDER)
            except OSError as error:  # it may be removed again before it is opened
                if error.errno != errno.ENOENT or not make or not tries_left:
                    raise FileError.of(error, self.path) from error
        raise AssertionError("the last try returns or raises")

    def _refuse_elsewhere(self, actual: str) -> None:
        if actual != self.path:
            raise FileError(errno.ELOOP, f"was removed, and its path leads to {actual} now", self.path)

    def close(self) -> None:
        """Close the descriptor.  May be called twice."""
        self.fd = NOT_OPEN  # whose use is an error, while the number may be given to another file
        self._end()


def _is_removed(fd: int) -> bool:
    """Return whether a folder that is open was removed; one that was renamed is still there."""
    try:
        return os.fstat(fd).st_nlink == 0
    except OSError as error:
        if error.errno != errno.ESTALE:  # removed from an NFS server
            raise
        return True


def make_folder(path: str) -> None:
    """Create a folder and its missing parents, accessible to their owner only, whatever the umask."""
    folder = Path(path)
    try:
        for missing in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
            try:
                missing.mkdir(FOLDER_MODE)
                missing.chmod(FOLDER_MODE)
            except FileExistsError:
                if not missing.is_dir():
                    raise
    except OSError as error:
        raise FileError.of(error, path) from error


def refuse_shared(path: str, user: int, fd: int | None = None) -> None:
    """Raise ``ConfigError`` if anyone but a user and root can write to a folder.

    Parameters
    ----------
    user : int
        The owner of a new file in this folder.  On NFS that need not be the user of the process.
    fd : int, optional
        A descriptor of the folder; its path may lead to another one by now.
    """
    status = os.stat(path if fd is None else fd)
    if status.st_uid not in (user, ROOT):
        problem, way_out = f"belongs to user {status.st_uid}, and this process is user {user}", "chown it"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem, way_out = (
            f"can be written by others (mode {stat.S_IMODE(status.st_mode):04o})",
            "chmod go-w it",
        )
    else:
        return
    raise ConfigError(
        f"storage folder {path} {problem}, who could put pages into the cache of the model; {way_out}, "
        f"use a folder of your own such as {path}/pages, or set allow_shared_folder to true in the extra config"
    )
