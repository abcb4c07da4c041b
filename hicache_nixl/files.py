"""Names to paths; opening, closing and removing page files."""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence

from .errors import ConfigError, FileError

logger = logging.getLogger(__name__)


class NixlFileManager:
    """The page files below one folder.

    Whoever calls ``open_file`` owns the descriptor: this class closes only what it is told to close.  Which
    owner closes it, and when, is what the modules of ``hicache_nixl.lifetimes`` differ in.

    Parameters
    ----------
    base_dir : str
        Made when missing.

    Raises
    ------
    ConfigError
        When it cannot be a storage folder: a file, read-only, not writable.
    """

    def __init__(self, base_dir: str):
        self.base_dir = os.path.abspath(base_dir)
        try:
            os.makedirs(self.base_dir, exist_ok=True)
            with os.scandir(self.base_dir), tempfile.TemporaryFile(dir=self.base_dir):
                pass  # it is a folder, can be listed, and takes a file
        except OSError as error:
            raise ConfigError(f"storage folder {self.base_dir}: {error}") from error

    def get_file_path(self, name: str) -> str:
        """Return the path of a page file."""
        return os.path.join(self.base_dir, name)

    def create_file(self, path: str) -> bool:
        """Make an empty page file; True when it was not there before."""
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return True
        except FileExistsError:
            return False
        except OSError as error:
            raise FileError.of(error, path) from error

    def open_file(self, path: str) -> int:
        """Open a page file for reading and writing and hand over its descriptor."""
        try:
            return os.open(path, os.O_RDWR)
        except OSError as error:
            raise FileError.of(error, path) from error

    def close_file(self, fd: int) -> bool:
        """Close a descriptor; a failure is logged and does not keep the next one from being closed."""
        try:
            os.close(fd)
            return True
        except OSError as error:
            logger.error("cannot close descriptor %d: %s", fd, error)
            return False

    def files_to_nixl_tuples(self, paths: Sequence[str]) -> list[tuple[int, int, int, str]]:
        """Open every file; one ``(offset, length, fd, path)`` each, as NIXL registers a FILE.

        When one cannot be opened, those opened before it are closed again and ``FileError`` is raised.
        From the return on the descriptors are the caller's.  An interrupt in between leaves those opened
        so far to nobody, as in SGLang.
        """
        tuples: list[tuple[int, int, int, str]] = []
        try:
            for path in paths:
                tuples.append((0, 0, self.open_file(path), path))
        except FileError:
            for _, _, fd, _ in tuples:
                self.close_file(fd)
            raise
        return tuples

    def discard(self, paths: Iterable[str]) -> None:
        """Remove page files that must not be read again; one that is gone already is fine."""
        for path in paths:
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                logger.error("cannot remove %s: %s", path, error)

    def clear(self, is_own: Callable[[str], bool]) -> int:
        """Remove the files whose names ``is_own`` takes for pages of this connector; return how many."""
        try:
            with os.scandir(self.base_dir) as entries:
                files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
        except OSError as error:
            raise FileError.of(error, self.base_dir) from error
        own = [entry.path for entry in files if is_own(entry.name)]
        self.discard(own)
        return len(own)

    def first_fault(self, paths: Sequence[str], sizes: Sequence[int], writing: bool) -> FileError | None:
        """Find out which file made a transfer fail, since NIXL says only that one did.

        Parameters
        ----------
        paths, sizes
            The files of the transfer and the bytes that each should hold.
        writing : bool
            For a write a short file means that the file system was full, or EIO.
        """
        for path, size in zip(paths, sizes, strict=True):
            try:
                status = os.stat(path)
            except OSError as error:
                return FileError.of(error, path)
            if not stat.S_ISREG(status.st_mode):
                return FileError(errno.EINVAL, "not a regular file", path)
            if status.st_size < size:
                reason = f"holds {status.st_size} of {size} bytes"
                if writing and self._free_bytes() < size:
                    return FileError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {reason}", path)
                return FileError(errno.EIO, reason, path)
        return None

    def _free_bytes(self) -> int:
        space = os.statvfs(self.base_dir)
        return space.f_bavail * space.f_frsize
