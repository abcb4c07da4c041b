"""The segments: preallocated files that pages are appended to, and that are recycled, oldest first.

Each process appends to one segment of its own, and to two at once where batches are large: writes to one file wait for
each other in the kernel.  A segment is recycled by giving it the next generation: pages of
earlier generations are no longer valid, wherever they are listed.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from ...errors import ClosedError, DamagedError, FileError
from .folder import is_gone, open_file
from .locks import Locks
from .state import State

logger = logging.getLogger(__name__)

ALIGNED = 4096  # bytes; where the pages of a batch start
OLD_SHARE = 4  # a quarter
FEWEST_FOR_TWO = 8  # segments of a store whose large batches are written to two at once
PATIENCE, PAUSE = (
    0.5,
    0.001,
)  # seconds that a set waits for a segment that nobody reads, and between two tries


@dataclass
class Place:
    """Room for some pages of a batch, in one segment.

    Attributes
    ----------
    first, count : int
        The pages.
    segment, generation : int
    offset : int
        Bytes from the start of the segment; a multiple of 4096.
    writer : int
        0, or 1 in the second half of a batch that is written in two halves at once.
    """

    first: int
    count: int
    segment: int
    generation: int
    offset: int
    writer: int = 0

    @property
    def pages(self) -> slice:
        """The pages, as a slice of the batch."""
        return slice(self.first, self.first + self.count)


@dataclass
class Writer:
    """Where pages are appended: an own segment, its generation, and the bytes that are taken."""

    segment: int | None = None
    generation: int = 0
    head: int = 0


class Segments:
    """The segment files of a store, each opened once.

    Parameters
    ----------
    dir_fd : int
        The folder of the store.
    state : State
    locks : Locks
    flags : int
        ``os.O_DIRECT`` or 0.
    min_free : int
        Bytes of the file system that a new segment must leave free.

    Attributes
    ----------
    bytes : int
        Of a segment.
    recycled : int
        How many this object has recycled.
    recycles : bool
        Whether it drops the oldest pages where there is no other room.
    """

    def __init__(self, dir_fd: int, state: State, locks: Locks, flags: int, min_free: int):
        self._dir_fd, self._state, self._locks = dir_fd, state, locks
        self._flags, self._min_free = flags, min_free
        self._fds: dict[int, tuple[int, int]] = {}  # descriptor and inode
        self._opening, self._placing = threading.Lock(), threading.Lock()
        self._writers = Writer(), Writer()
        self._old = (0, 0)  # the answer of old_below, and for which next generation
        self.bytes: int = state["segment_bytes"]
        self.recycled = 0
        self.recycles = True
        self._said: set[str] = set()

    # -- descriptors -----------------------------------------------------------------------------------

    def fd(self, segment: int) -> int:
        """Return the descriptor of a segment, which this object closes.

        Its number stays the same when the file was lost and made again, by any process.

        Raises
        ------
        FileError
            When the file is missing, is another one, is not of this size, or is not ours.
        """
        inode = int(self._state.segments["inode"][segment])
        fd, known = self._fds.get(segment, (-1, 0))
        if fd >= 0 and known == inode:
            self._check(fd, segment)
            return fd
        with self._opening:
            fd, known = self._fds.get(segment, (-1, 0))
            if fd < 0 or known != inode:
                opened = self._opened(segment, inode)
                if fd >= 0:
                    os.dup2(opened, fd, inheritable=False)
                    os.close(opened)
                self._fds[segment] = fd if fd >= 0 else opened, inode
            return self._fds[segment][0]

    def lose(self, segment: int, generation: int, error: FileError) -> None:
        """Give up the pages of a segment whose file is gone or damaged, unless another process did."""
        if is_gone(error):
            with self._locks.index():
                if self._state.generations[segment] == generation:
                    logger.warning("segment %d and its pages are lost: %s", segment, error)
                    self._state.give_up(segment)

    def _is_good(self, segment: int) -> bool:
        """Return whether the file of a segment can be used; if it is lost, give up its pages."""
        try:
            self.fd(segment)
            return True
        except FileError as error:
            if is_gone(error):
                logger.error("segment %d and its pages are lost: %s", segment, error)
                self._state.give_up(segment)
            else:
                self._warn_once(f"segment {segment} cannot be used now: {error}")
            return False

    def _warn_once(self, problem: str) -> None:
        """Log a problem that every new segment may have, such as a full disk."""
        if problem not in self._said:
            self._said.add(problem)
            logger.warning("%s", problem)

    def _opened(self, segment: int, inode: int) -> int:
        fd = open_file(self._dir_fd, name_of(segment), os.O_RDWR | self._flags)
        try:
            if os.fstat(fd).st_ino != inode:
                raise FileError(
                    errno.EIO, "is another file than was written; a store cannot be copied", name_of(segment)
                )
            self._check(fd, segment)
            return fd
        except BaseException:
            os.close(fd)
            raise

    def _check(self, fd: int, segment: int) -> None:
        """Raise if a file was removed, or has another size: what is read beyond its end need not be an error."""
        status = os.fstat(fd)
        if not status.st_nlink:
            raise FileError(errno.ENOENT, "was removed", name_of(segment))
        if status.st_size != self.bytes:
            raise FileError(errno.EIO, f"has {status.st_size} of {self.bytes} bytes", name_of(segment))

    # -- places for pages ------------------------------------------------------------------------------

    @contextmanager
    def placed(self, pages: int, page_bytes: int, in_two: bool = False) -> Iterator[list[Place]]:
        """Provide room for the pages of a batch, in as few segments as possible.

        ``in_two`` half of them are in other segments than the rest, unless the store has too few.

        These segments are not recycled until the end of the block, though this process may have left them by then.

        Raises
        ------
        FileError
            When there is no room: every segment is in use, or the disk is full and there is none to recycle.
        """
        self._state.check()
        if page_bytes > self.bytes:
            raise FileError(
                errno.EFBIG, f"a page of {page_bytes} bytes, and a segment of {self.bytes}", "pooled"
            )
        if pages > (most := self._state["segments"] * (self.bytes // page_bytes)):
            problem = f"{pages} pages of {page_bytes} bytes in one call; the store has room for {most}, see capacity_gb"
            raise FileError(errno.EFBIG, problem, "pooled")
        with ExitStack() as in_use:
            places: list[Place] = []
            first = pages // 2 if in_two and self._state["segments"] >= FEWEST_FOR_TWO else pages
            with self._placing:
                for writer, end in enumerate((first, pages)):
                    while (done := sum(place.count for place in places)) < end:
                        place = self._place(writer, done, end - done, page_bytes)
                        if place is None:  # the second writer does without a segment of its own
                            writer, place = 0, self._place(0, done, end - done, page_bytes)
                        assert place is not None
                        places.append(place)
                        in_use.enter_context(self._locks.reading([place.segment]))
            yield places

    def _place(self, number: int, first: int, most: int, page_bytes: int) -> Place | None:
        """Return a place for up to so many pages, None if there is none and the writer is not the first."""
        writer = self._writers[number]
        while (own := writer.segment) is None or not self._fits(writer, own, page_bytes):
            if not self._next(writer, waits=not number):
                return None
        count = min(most, (self.bytes - writer.head) // page_bytes)
        place = Place(first, count, own, writer.generation, writer.head, number)
        writer.head += -(-count * page_bytes // ALIGNED) * ALIGNED
        return place

    def _fits(self, writer: Writer, own: int, page_bytes: int) -> bool:
        """Return whether the segment of a writer has room for a page, and its file is as it was."""
        if writer.head + page_bytes > self.bytes or self._state.generations[own] != writer.generation:
            return False
        try:
            self.fd(own)
        except FileError as error:
            self.lose(own, writer.generation, error)
            return False
        return True

    def _next(self, writer: Writer, waits: bool) -> bool:
        """Leave the segment of a writer, and give it another one; if it ``waits``, for loads that keep it from that."""
        ways = (self._take_open, self._take_new, self._recycle, self._take_new)  # again: recycling loses some
        end = time.monotonic() + PATIENCE
        while True:
            with self._locks.index():
                self._leave(writer, is_open=False)
                if any(way(writer) for way in ways):
                    return True
            if not waits:
                return False
            if not self.recycles or time.monotonic() > end:
                break
            time.sleep(PAUSE)
        raise FileError(
            errno.EBUSY,
            f"all of the {np.count_nonzero(self._state.generations)} segments that there are (at most "
            f"{self._state['segments']}) are being written or read, or cannot be used; make room on the disk, or use a "
            "larger capacity_gb or, in a new folder, a smaller segment_mb",
            "pooled",
        )

    def _leave(self, writer: Writer, is_open: bool) -> None:
        if writer.segment is not None:
            row = self._state.segments[writer.segment]
            if row["generation"] == writer.generation:  # not lost
                row["used"], row["open"] = writer.head, is_open
            self._locks.disown(writer.segment)
            writer.segment = None

    def _take(self, writer: Writer, segment: int, head: int) -> bool:
        row = self._state.segments[segment]
        row["open"] = False  # until it is left in good order
        writer.segment, writer.generation, writer.head = segment, int(row["generation"]), head
        return True

    def _take_open(self, writer: Writer) -> bool:
        """Go on in a segment that a writer left with room."""
        for segment in np.flatnonzero(self._state.segments["open"][: self._state["segments"]]).tolist():
            if self._locks.own(segment):
                if self._is_good(segment):
                    return self._take(writer, segment, int(self._state.segments[segment]["used"]))
                self._locks.disown(segment)
        return False

    def _take_new(self, writer: Writer) -> bool:
        """Make a segment, if the capacity and the free space allow."""
        limit = self._state["segments"]
        for segment in np.flatnonzero(self._state.generations[:limit] == 0).tolist():
            if self._locks.own(segment):
                try:
                    self._state.segments["inode"][segment] = self._make(segment)
                    self.fd(segment)
                    self._renew(segment)
                    return self._take(writer, segment, 0)
                except FileError as error:
                    self._locks.disown(segment)
                    if not self._state.generations[:limit].any():
                        raise
                    self._warn_once(f"no new segment: {error}")
                    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        return False
        return False

    def _make(self, segment: int) -> int:
        """Make the file of a segment; return its inode."""
        fd = open_file(self._dir_fd, name_of(segment), os.O_RDWR | os.O_CREAT)
        try:
            space, status = os.fstatvfs(fd), os.fstat(fd)
            needed = max(0, self.bytes - 512 * status.st_blocks) + self._min_free
            if space.f_bavail * space.f_frsize < needed:
                problem = f"a segment of {self.bytes >> 20} MiB would leave less than min_free_gb free"
                raise FileError(errno.ENOSPC, problem, name_of(segment))
            os.posix_fallocate(fd, 0, self.bytes)
            os.ftruncate(fd, self.bytes)
            return os.fstat(fd).st_ino
        except OSError as error:
            os.ftruncate(fd, 0)
            raise FileError.of(error, name_of(segment)) from error
        finally:
            os.close(fd)

    def _renew(self, segment: int) -> None:
        """Give a segment the next generation: its pages end here."""
        row = self._state.segments[segment]
        row["used"] = row["open"] = 0
        row["generation"], row["taken"] = self._state.take_generation(), int(time.time())

    def _recycle(self, writer: Writer) -> bool:
        """Take the segment with the oldest pages that nobody writes or reads."""
        if not self.recycles:
            return False
        generations = self._state.generations[: self._state["segments"]]
        mine = {other.segment for other in self._writers}  # whose locks would be granted again
        for segment in np.argsort(generations).tolist():
            if not generations[segment] or segment in mine or not self._locks.own(segment):
                continue
            with self._locks.unread(segment) as unread:
                if unread and self._is_good(segment):
                    self._renew(segment)
                    self.recycled += 1
                    return self._take(writer, segment, 0)
            self._locks.disown(segment)
        return False

    def old_below(self) -> int:
        """Return the generation from which segments are not among the quarter that is recycled next.

        0 while there is room for new segments.
        """
        newest = self._state["next_generation"]
        if self._old[0] != newest:
            generations = self._state.generations[: self._state["segments"]]
            quarter = len(generations) // OLD_SHARE
            self._old = newest, int(np.partition(generations, quarter)[quarter]) if generations.all() else 0
        return self._old[1]

    def published(self, place: Place, page_bytes: int) -> None:
        """Note that the pages of a place are listed; the caller holds the lock of the index."""
        row = self._state.segments[place.segment]
        row["used"] = max(int(row["used"]), place.offset + place.count * page_bytes)

    # -- the end ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the own segment with its room, and close all files.  May be called twice."""
        try:
            self._state.check()
            with self._placing, self._locks.index():
                for writer in self._writers:
                    self._leave(writer, is_open=True)
        except (ClosedError, DamagedError):  # there is no order to leave it in
            pass
        except FileError as error:  # its room is not used before it is recycled
            logger.warning("the own segment could not be left in good order: %s", error)
        finally:
            while self._fds:
                os.close(self._fds.popitem()[1][0])


def name_of(segment: int) -> str:
    """Return the name of the file of a segment."""
    return f"segment-{segment:04}"
