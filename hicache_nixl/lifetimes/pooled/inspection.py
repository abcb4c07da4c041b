"""Looking at a store, also beside live servers: what is in it, and whether its pages are those that were stored.

Nothing is changed, except by ``repair``.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from ...errors import ConfigError, DamagedError, FileError, NewerFormatError
from .checksums import checksums
from .facts import Damaged, Facts, Segment
from .folder import NAME, open_file
from .index import Index
from .index import name_of as name_of_index
from .locks import OWNERS, READERS, USERS, Locks
from .row import Rows, Words
from .segments import name_of
from .state import COUNTERS, State

BATCH_BYTES = 16 << 20  # read before their checksums are computed
LONGEST_WRITE = 0.01  # seconds of a row, whose writer may lose the processor
TRIES = 5  # of what a live server may replace meanwhile
Answer = TypeVar("Answer")
Progress = Callable[[int], None]  # is told of bytes that were read


class Inspection:
    """A store that is looked at; use it in a ``with`` block.

    Parameters
    ----------
    folder : path
        The storage folder, or the folder of the store in it.

    Raises
    ------
    ConfigError
        When there is no store, or one that cannot be read: in one line.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.path = store_in(Path(folder))
        with ExitStack() as stack:
            try:
                self.dir_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, self.dir_fd)
                self.state = State(self.dir_fd, read_only=True)
                stack.callback(self.state.close)
                self._locks = Locks(self.dir_fd, flags=os.O_RDONLY)
                stack.callback(self._locks.close)
            except (OSError, DamagedError, NewerFormatError) as error:
                raise ConfigError(f"{self.path} cannot be read: {_reason(error)}{_way_out(error)}") from error
            self._index = Index(self.dir_fd, self.state, self._locks)
            stack.callback(self._index.close)
            self._pieces: dict[int, int] = {}  # of the pages of a space
            self._end = stack.pop_all()

    def __enter__(self) -> Inspection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.close()

    def rows(self) -> Rows:
        """Return the rows of all pages, in the order of segments and offsets."""
        rows = self._live()
        return rows[np.lexsort((rows["offset"], rows["segment"]))]

    def _live(self) -> Rows:
        try:
            return _again(self._index.live)
        except (DamagedError, OSError) as error:
            raise ConfigError(
                f"{self.path} cannot be read: {_reason(error)}; without its index, a server that opens the store starts empty"
            ) from error

    def find(self, key: Words, space: int | None = None) -> Rows:
        """Return the rows of a page, of shape (n,): those of a space that have its key, shape (1, 4).

        Without a space, those of all, for which the whole index is read.
        """
        if space is not None:
            rows, found = self._index.find(key, space)
            return rows[found]
        rows = self._live()
        return rows[(rows["key"] == key).all(axis=1)]

    def facts(self) -> Facts:
        """Return what is in the store."""
        rows = self.rows()
        segments = self._segments(rows)
        spaces, counts = np.unique(rows["space"], return_counts=True)
        size, most = self.state["segment_bytes"], self.state["segments"]
        counters = self.state.header["counters"][0].tolist()
        return Facts(
            path=str(self.path),
            format=self.state["version"],
            in_use=self._locks.holds(USERS),
            pages=len(rows),
            stored=int(rows["size"].sum()),
            dead=sum(segment.dead for segment in segments),
            capacity=size * most,
            segment_bytes=size,
            most_segments=most,
            segments=segments,
            spaces={f"{space:016x}": n for space, n in zip(spaces.tolist(), counts.tolist(), strict=True)},
            index=_again(partial(self._index_facts, len(rows))),
            counters=dict(zip(COUNTERS, counters, strict=True)),
        )

    def _segments(self, rows: Rows) -> list[Segment]:
        table = self.state.segments.copy()
        number = rows["segment"].astype(np.int64)
        pages = np.bincount(number, minlength=len(table))
        live = np.bincount(number, rows["size"].astype(np.float64), len(table)).astype(np.int64)
        held = np.flatnonzero(table["generation"])
        return [
            Segment(
                number=segment,
                generation=int(table["generation"][segment]),
                taken=int(table["taken"][segment]),
                used=int(table["used"][segment]),
                live=int(live[segment]),
                dead=max(int(table["used"][segment]) - int(live[segment]), 0),
                pages=int(pages[segment]),
                is_written=self._locks.holds(OWNERS + segment),
                is_read=self._locks.holds(READERS + segment),
            )
            for segment in held[np.argsort(table["generation"][held])].tolist()
        ]

    def _index_facts(self, occupied: int) -> dict[str, Any]:
        _, slots = self._index.occupied()
        name = name_of_index(self.state["index"])
        size = os.stat(name, dir_fd=self.dir_fd).st_size
        return {"file": name, "bytes": size, "slots": slots, "occupied": occupied, "load": occupied / slots}

    # -- every page ------------------------------------------------------------------------------------

    def verify(self, rows: Rows, progress: Progress = lambda size: None) -> tuple[list[Damaged], Rows]:
        """Read pages and compare their checksums.

        A page that a live server replaces or drops meanwhile is not damaged.

        Returns
        -------
        damaged : list of Damaged
        rows : numpy.ndarray of ROW
            Those of the damaged pages.
        """
        damaged: list[Damaged] = []
        bad = [rows[:0]]
        for segment in np.unique(rows["segment"]).tolist():
            of_segment = rows[rows["segment"] == segment]
            for batch in _batches(of_segment):
                problems = self._problems(segment, batch)
                which = np.array([bool(problem) for problem in problems])
                if which.any():
                    which &= _again(partial(self._index.listed, batch))
                damaged += [_damaged(batch[page], problems[page]) for page in np.flatnonzero(which)]
                bad.append(batch[which])
                progress(int(batch["size"].sum()))
        return damaged, np.concatenate(bad)

    def damaged_rows(self) -> int:
        """Return how many rows of the index are damaged, so that their pages are missing."""
        looks = []
        for _ in range(2):  # a live server may be writing one
            looks.append(_again(self._index.damaged))
            if not looks[-1]:
                break
            time.sleep(LONGEST_WRITE)
        return min(looks)

    def _problems(self, segment: int, rows: Rows) -> list[str]:
        """Return for each of some pages of a segment what is wrong with it, empty if nothing is."""
        try:
            fd = self._open_segment(segment)
        except FileError as error:
            return [_reason(error)] * len(rows)
        try:
            return [self._problem(fd, row) for row in rows]
        except OSError as error:  # the disk cannot read it
            return [_reason(error)] * len(rows)
        finally:
            os.close(fd)

    def _open_segment(self, segment: int) -> int:
        """Open the file of a segment for reading; return its descriptor, which the caller closes."""
        fd = open_file(self.dir_fd, name_of(segment), os.O_RDONLY)
        if os.fstat(fd).st_ino != self.state.segments["inode"][segment]:
            os.close(fd)
            raise FileError(errno.EIO, "is another file", name_of(segment))
        # From Linux 6.3 on, this leaves the page cache to the servers.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NOREUSE)
        return fd

    def _problem(self, fd: int, row: Any) -> str:
        """Return what is wrong with a page.

        Its row does not say in how many pieces it is: one, or keys and values of the same size.
        """
        space, size = int(row["space"]), int(row["size"])
        for pieces in sorted((1, 2), key=lambda count: count != self._pieces.get(space)):
            if size % pieces == 0:
                page = b"".join(read_pieces(fd, row, pieces))
                if len(page) == size and _checksum(page, pieces) == row["checksum"]:
                    self._pieces[space] = pieces
                    return ""
        return "other bytes than were stored"

    def pieces(self, row: Any) -> list[bytes]:
        """Return the pieces of a page, if they are those that were stored.

        Raises
        ------
        DamagedError, FileError
        """
        fd = self._open_segment(int(row["segment"]))
        try:
            if problem := self._problem(fd, row):
                raise DamagedError(problem)
            return read_pieces(fd, row, self._pieces[int(row["space"])])
        except OSError as error:
            raise FileError.of(error, name_of(int(row["segment"]))) from error
        finally:
            os.close(fd)

    def repair(self, rows: Rows) -> None:
        """Remove pages from the index, if they are still listed like this."""
        with ExitStack() as stack:
            locks = Locks(self.dir_fd)
            stack.callback(locks.close)
            with locks.index():
                state = State(self.dir_fd)
            stack.callback(state.close)
            index = Index(self.dir_fd, state, locks)
            stack.callback(index.close)
            index.remove(rows)


def store_in(folder: Path) -> Path:
    """Return the folder of the store in a storage folder, or that folder itself; ConfigError if there is none."""
    for path in (folder / NAME, folder):
        try:
            status = os.stat(path / "state", follow_symlinks=False)
        except OSError as error:
            if isinstance(error, PermissionError):
                raise ConfigError(f"{path} cannot be read: {_reason(error)}") from None
            continue
        if stat.S_ISREG(status.st_mode) and status.st_uid != os.geteuid():
            raise ConfigError(
                f"{path} belongs to user {status.st_uid}, and this process is user {os.geteuid()}; run it as that user"
            )
        return path
    if not folder.is_dir():
        found = f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}"
        raise ConfigError(f"{found}; expected a storage folder of lifetime pooled")
    if (folder / NAME).is_dir():
        raise ConfigError(
            f"{folder / NAME}: its state is missing, so its pages are lost; a server that opens it starts empty"
        )
    raise ConfigError(f"{folder} has no store of lifetime pooled; expected its storage folder")


def read_pieces(fd: int, row: Any, pieces: int) -> list[bytes]:
    """Read a page of so many pieces of the same size; they are shorter where the file ends."""
    size, offset, step = int(row["size"]) // pieces, int(row["offset"]), int(row["step"])
    return [os.pread(fd, size, offset + piece * step) for piece in range(pieces)]


def _checksum(page: bytes, pieces: int) -> int:
    memory, size = np.frombuffer(page, np.uint8), len(page) // pieces
    starts = memory.ctypes.data + np.arange(pieces)[None, :] * size
    return int(checksums(starts, np.full(pieces, size))[0])


def _batches(rows: Rows) -> Iterator[Rows]:
    """Yield pages of about ``BATCH_BYTES`` together."""
    parts = (np.cumsum(rows["size"]) - 1) // BATCH_BYTES
    yield from np.split(rows, np.flatnonzero(np.diff(parts)) + 1)


def _damaged(row: Any, problem: str) -> Damaged:
    return Damaged(
        row["key"].astype("<u8").tobytes().hex(),
        int(row["segment"]),
        int(row["offset"]),
        int(row["size"]),
        problem,
    )


def _again(look: Callable[[], Answer]) -> Answer:
    """Return what a look at the index gives, also when a live server replaces its file meanwhile."""
    for _ in range(TRIES - 1):
        try:
            return look()
        except (DamagedError, OSError):
            continue
    return look()


def _way_out(error: Exception) -> str:
    """Say what a server does that opens such a store."""
    if getattr(error, "errno", None) == errno.ENOENT:
        return "; a server that opens the store makes it again, and keeps the pages"
    if isinstance(error, DamagedError):
        return "; a server that opens the store keeps it as state.damaged, and starts empty"
    return ""


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror or error}"
