"""Page files: names, opening, closing and removing."""

from __future__ import annotations

import errno
import logging
import os
import resource
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat

from ..config import ALIGNMENT
from ..errors import ConfigError, FileError
from . import durable
from .faults import not_a_page, not_opened, once
from .folder import FILE_MODE, NOT_OPEN, HeldFolder, make_folder, refuse_shared

logger = logging.getLogger(__name__)

MOST_FILES = 512  # that a call holds open at a time; 128 pages of two pieces, the most of SGLang, are 256

# Symbolic links are not followed, since they may lead out of the folder.  A FIFO that is opened to read only would wait
# for a writer, and with O_NONBLOCK io_uring would not wait for the disk.  A file that exists is opened in a second
# step and emptied, so that its size shows whether all bytes are there; see ``NixlFileManager.opened``.
READ = os.O_RDWR | os.O_NOFOLLOW
WRITE = READ | os.O_CREAT | os.O_EXCL


class NixlFileManager:
    """The page files of one folder, which it holds open until ``close()``.

    Page files are given by name and looked up in the folder that was opened, so nothing that happens to its
    path leads to other files, see ``HeldFolder``.  Of a file elsewhere, an absolute path is the name.

    The caller of ``open_file`` owns the descriptor.  Where and when it is closed is the difference between
    the modules of ``hicache_nixl.lifetimes``.

    Parameters
    ----------
    base_dir : str
        Created when missing, accessible to its owner only.
    direct : bool
        Whether to use O_DIRECT; if the file system does not support it, that is logged and ``direct`` is
        False.
    shared : bool
        Whether others may write to the folder.
    sync : bool
        Whether files that are written get their names from ``publish``, when their bytes are on the disk.
    held : bool
        Whether the folder is held open.  If not, files are given by path.  ``leaky`` and ``try_finally`` do
        not hold it, for its descriptor would be one more than the releases have open.

    Raises
    ------
    ConfigError
        When ``base_dir`` is not usable: a file, read-only, not writable; or others may write to it.
    """

    def __init__(
        self, base_dir: str, direct: bool = False, shared: bool = False, sync: bool = False, held: bool = True
    ):
        self.base_dir = os.path.abspath(base_dir)
        self._shared, self._sync, self._held = shared, sync, held
        self._fell_back = self._named_other = False
        try:
            self._folder = HeldFolder(self.base_dir)
            try:
                self._try_out(direct)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise ConfigError(
                f"storage folder {self.base_dir}: [Errno {error.errno}] {error.strerror}"
            ) from error
        if not held:
            self.close()

    def _try_out(self, direct: bool) -> None:
        """Raise unless the folder can be used; find out what files that are made in it are like."""
        inside = self._folder.inside
        with os.scandir(inside), tempfile.NamedTemporaryFile(dir=inside) as probe:
            status = os.fstat(probe.fileno())
            self._owner = status.st_uid  # of the files that this process makes here
            self._umask_forbids = stat.S_IMODE(status.st_mode) != FILE_MODE  # even what the owner needs
            os.fchmod(probe.fileno(), FILE_MODE)
            self.direct = direct and self._takes_direct_io(probe.name)
        self._refuse_shared(self._folder.fd)
        if self._sync:
            durable.check(self._folder)

    def _refuse_shared(self, fd: int) -> None:
        if not self._shared:
            refuse_shared(self.base_dir, self._owner, fd)

    def close(self) -> None:
        """Close the folder.  May be called twice."""
        self._folder.close()

    def _takes_direct_io(self, path: str) -> bool:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
            return True
        except OSError as error:
            self._fall_back(f"the file system of {self.base_dir} refuses O_DIRECT ({error.strerror})")
            return False

    def direct_flag(self, addresses: Sequence[int], sizes: Sequence[int]) -> int:
        """Return O_DIRECT if it is enabled and possible, otherwise 0; the first fallback is logged.

        It is possible when every address and size is a multiple of 4096, which is enough for common file
        systems.
        """
        if not self.direct:
            return 0
        for address, size in zip(addresses, sizes, strict=True):
            if (address | size) % ALIGNMENT:
                self._fall_back(
                    f"O_DIRECT needs addresses and sizes that are multiples of {ALIGNMENT}, "
                    f"got {size} bytes at {address:#x}"
                )
                return 0
        return os.O_DIRECT

    def _fall_back(self, reason: str) -> None:
        if not self._fell_back:
            self._fell_back = True
            logger.warning("use_direct_io falls back to the page cache: %s", reason)

    def get_file_path(self, name: str) -> str:
        """Return the path of a page file."""
        return name if name[:1] == "/" else f"{self.base_dir}/{name}"

    def get_file_name(self, path: str) -> str:
        """Return the name of the page file with a path, or the path if it is elsewhere."""
        return os.path.abspath(path).removeprefix(f"{self.base_dir}/")

    def create_file(self, path: str) -> bool:
        """Create an empty page file, and the folder if it was removed; return False if the file existed."""
        try:
            if not os.path.isdir(self.base_dir):
                make_folder(self.base_dir)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE))
            return True
        except FileExistsError:
            return False
        except OSError as error:
            raise FileError.of(error, path) from error

    def open_file(self, path: str) -> int:
        """Open a page file for reading and writing; return its descriptor, which the caller must close."""
        try:
            return os.open(path, os.O_RDWR)
        except OSError as error:
            raise FileError.of(error, path) from error

    def close_file(self, fd: int) -> bool:
        """Close a descriptor; a failure is logged and returns False, so that the caller can go on."""
        try:
            os.close(fd)
            return True
        except OSError as error:
            logger.error("cannot close descriptor %d: %s", fd, error)
            return False

    def files_to_nixl_tuples(self, paths: Sequence[str]) -> list[tuple[int, int, int, str]]:
        """Open all files; return ``(offset, length, fd, path)`` for each, as NIXL registers a FILE.

        When a file cannot be opened, the ones opened before it are closed and ``FileError`` is raised.
        The caller must close the descriptors.  An interrupt before the return leaves open what was opened so
        far, as in SGLang.
        """
        tuples: list[tuple[int, int, int, str]] = []
        try:
            for path in paths:
                tuples.append((0, 0, self.open_file(path), path))
        except Exception:  # any error but an interrupt, as in SGLang
            for _, _, fd, _ in tuples:
                self.close_file(fd)
            raise
        return tuples

    @contextmanager
    def opened(
        self, names: Sequence[str], flags: int, sizes: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[int, FileError]]]:
        """Open page files, and close all of them at the end of the block, however it is left.

        Parameters
        ----------
        flags : int
            ``READ``, ``WRITE`` or ``os.O_RDWR``, with ``os.O_DIRECT`` or without.
        sizes : sequence of int, optional
            Bytes that each file must have; another size is a fault.

        Yields
        ------
        fds : list of int
            A descriptor per name; ``NOT_OPEN`` for a file with a fault.  With ``WRITE`` each file is empty.
        faults : dict
            The errors of the files with a fault, by position.
        """
        self._folder.renew(self._refuse_shared, make=bool(flags & os.O_CREAT))
        fds: list[int] = []
        faults: dict[int, FileError] = {}
        closing = map(os.close, filter(NOT_OPEN.__ne__, fds))  # what is in fds by then; also in C
        try:  # without a loop of its own: Python 3.13 may leave one at an interrupt without going to ``finally``
            self._open_all(names, flags, fds, faults)
            usable = self._usable(names, sizes, fds, faults)
            if self._umask_forbids and flags & os.O_CREAT:
                _allow_owner(usable)
            yield usable, faults
        finally:
            while True:
                try:
                    deque(closing, maxlen=0)
                    break
                except OSError as error:  # the ones after it are still open
                    logger.error("cannot close a descriptor: %s", error)

    def _open_all(
        self, names: Sequence[str], flags: int, fds: list[int], faults: dict[int, FileError]
    ) -> None:
        """Append a descriptor for each name, or ``NOT_OPEN`` and note the fault."""
        opening = partial(os.open, dir_fd=self._folder.fd)
        while len(fds) < len(names):
            try:  # in C from open to append: no interrupt can come between
                if flags & os.O_CREAT and self._sync:
                    self._open_unnamed(opening, names[len(fds)], flags & os.O_DIRECT, fds, faults)
                else:
                    fds.extend(map(opening, names[len(fds) :], repeat(flags), repeat(FILE_MODE)))
            except FileExistsError:
                self._open_existing(opening, names[len(fds)], flags, fds, faults)
            except OSError as error:
                faults[len(fds)] = not_opened(error, self.get_file_path(names[len(fds)]))
                fds.append(NOT_OPEN)

    def _usable(
        self,
        names: Sequence[str],
        sizes: Sequence[int] | None,
        fds: Sequence[int],
        faults: dict[int, FileError],
    ) -> list[int]:
        """Return the descriptors of pages, with ``NOT_OPEN`` for each file that is no page of these sizes."""
        usable = [NOT_OPEN if place in faults else fd for place, fd in enumerate(fds)]
        regular, owner = stat.S_ISREG, self._owner
        for place, (fd, size) in enumerate(zip(usable, sizes or (), strict=False)):
            if fd == NOT_OPEN:
                continue
            status = os.fstat(fd)  # the look at a page that is as it should be costs little more
            if status.st_size == size and status.st_uid == owner and regular(status.st_mode):
                continue
            if fault := not_a_page(status, size, self.get_file_path(names[place]), owner):
                faults[place], usable[place] = once(fault, faults), NOT_OPEN
        return usable

    def _open_existing(
        self, opening: Callable[..., int], name: str, flags: int, fds: list[int], faults: dict[int, FileError]
    ) -> None:
        """Open and empty a file that ``WRITE`` found; what is not a file of one name is a fault and stays as it is."""
        place, path = len(fds), self.get_file_path(name)
        try:
            fds.extend(map(opening, [name], [flags & ~(os.O_CREAT | os.O_EXCL)]))
        except FileNotFoundError:  # removed since, so that WRITE can create it
            return
        except OSError as error:
            faults[place] = not_opened(error, path)
            fds.append(NOT_OPEN)
            return
        try:
            status = os.fstat(fds[place])
            if fault := not_a_page(status, status.st_size, path, self._owner):
                faults[place] = once(fault, faults)
            elif status.st_nlink > 1:
                faults[place] = FileError(errno.EMLINK, "has other names, whose content would change", path)
            else:
                os.ftruncate(fds[place], 0)
        except OSError as error:
            faults[place] = FileError.of(error, path)

    def _open_unnamed(
        self, opening: Callable[..., int], name: str, flags: int, fds: list[int], faults: dict[int, FileError]
    ) -> None:
        """Open a file that ``publish`` puts in the place of a name; what is not a page there is a fault."""
        fds.extend(map(opening, ["."], [durable.UNNAMED | flags], [FILE_MODE]))
        try:
            status = self._status(name)
        except OSError:  # nothing is there
            return
        if fault := not_a_page(status, status.st_size, self.get_file_path(name), self._owner):
            faults[len(fds) - 1] = once(fault, faults)

    def _status(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._folder.fd, follow_symlinks=False)

    def publish(self, fds: Sequence[int], names: Sequence[str]) -> None:
        """Give files that were opened with ``WRITE``, and written, their names, if they have none yet."""
        files = [(fd, name) for fd, name in zip(fds, names, strict=True) if self._sync and fd != NOT_OPEN]
        try:
            if files:
                durable.name(files, self._folder.fd)
        except OSError as error:
            raise FileError.of(error, self.get_file_path(error.filename2 or error.filename or "")) from error

    def present(self, names: Iterable[str], sizes: Iterable[int | None]) -> Iterator[bool]:
        """Return ``is_whole`` of each page file, lazily."""
        self._folder.renew(self._refuse_shared, make=False)
        return map(self.is_whole, names, sizes)

    def is_whole(self, name: str, size: int | None) -> bool:
        """Return whether a page file exists with all its bytes; any number above 0 when ``size`` is None."""
        try:
            status = os.stat(name, dir_fd=self._folder.fd, follow_symlinks=False)
        except OSError:
            return False
        if status.st_size == size and status.st_uid == self._owner and stat.S_ISREG(status.st_mode):
            return True  # the usual case, without the cost of a reason
        fault = not_a_page(status, size or status.st_size or 1, self.get_file_path(name), self._owner)
        if fault and fault.errno == errno.EPERM and not self._named_other:
            self._named_other = True
            logger.warning("page files of other users are treated as missing, the first is: %s", fault)
        return fault is None

    def discard(self, names: Iterable[str]) -> None:
        """Remove page files that must not be read again; files that do not exist are ignored."""
        for name in names:
            try:
                os.unlink(name, dir_fd=self._folder.fd)
            except OSError as error:
                if self._is_file(name):  # a folder is not a page file
                    logger.error("cannot remove %s: %s", self.get_file_path(name), error)

    def _is_file(self, name: str) -> bool:
        try:
            return stat.S_ISREG(self._status(name).st_mode)
        except OSError:
            return False

    def clear(self, is_own: Callable[[str], bool]) -> int:
        """Remove the files for whose names ``is_own`` is True; return how many there were."""
        try:
            if not self._folder.renew(self._refuse_shared, make=False):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            with os.scandir(self._folder.inside if self._held else self.base_dir) as entries:
                files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
        except OSError as error:
            raise FileError.of(error, self.base_dir) from error
        own = [entry.name for entry in files if is_own(entry.name)]
        self.discard(own if self._held else map(self.get_file_path, own))
        return len(own)

    def first_fault(self, names: Sequence[str], sizes: Sequence[int], writing: bool) -> FileError | None:
        """Return the error of the file that made a transfer fail, because NIXL does not name it.

        Parameters
        ----------
        names, sizes
            The files of the transfer, and the bytes that each should have.
        writing : bool
            For a write, a short file is ENOSPC when the file system is full, otherwise EIO.
        """
        if writing and self._sync:  # they never got a name
            full = self._free_bytes() < max(sizes)
            return FileError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.base_dir) if full else None
        for name, size in zip(names, sizes, strict=True):
            path = self.get_file_path(name)
            try:
                status = self._status(name)
            except OSError as error:
                return FileError.of(error, path)
            least = max(size, status.st_size)  # a longer file cannot be the reason
            fault = not_a_page(status, least, path, self._owner)
            if fault and writing and self._free_bytes() < size:
                return FileError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {fault.strerror}", path)
            if fault:
                return fault
        return None

    def _free_bytes(self) -> int:
        space = os.statvfs(self._folder.fd if self._held else self.base_dir)
        return space.f_bavail * space.f_frsize


def most_files() -> int:
    """Return how many files a call may hold open: the server needs descriptors for its connections, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_FILES if soft == resource.RLIM_INFINITY else max(1, min(MOST_FILES, soft // 4))


def _allow_owner(fds: Iterable[int]) -> None:
    """Give new files their mode, where the umask forbade their owner something."""
    for fd in filter(NOT_OPEN.__ne__, fds):
        os.fchmod(fd, FILE_MODE)
