"""The index of the pages: a table in a file, which any number of processes map into memory.

The rows of a batch lie next to each other, in a ring: pages that were stored together are looked up together, and
segments are recycled in the order in which they were written, so the oldest rows are the first that are stale.  The
hash of a row's key and space names two buckets of 16 words; one of them has the place of the row, see ``words``.  The
file is a header, two words for each row that it has room for, and the rows: 112 bytes for each.

Only one process at a time may change the table: its caller holds a lock.  Readers need none.  A row that is
partly written or damaged does not match its guard, and counts as missing.  A row is written before its word,
so a process that is killed leaves each page with its old row, its new one, or none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np

from . import kernels
from .kernels import MISSING, TORN
from .row import GENERATION, ROW, ROW_WORDS, SPACE, Rows, Words, rows_of, words_of
from .table_file import TableFile
from .words import MOST_ROWS, WAYS, are_stale, guard

__all__ = ["ROW", "Table"]

CHUNK = 1 << 14  # rows or words that a walk over the whole table looks at together: a few MB
# Seconds before a torn row is read again.  Its writer may have lost the processor in the middle of it.
PAUSES = (0.0005, 0.002, 0.008)
_NO_GENERATIONS = np.zeros(0, np.uint64)


class Table:
    """The rows of the pages, by key and space.

    Parameters
    ----------
    file : TableFile
        The mapped file, which this table closes.

    Attributes
    ----------
    room : int
        The most rows.
    replaced : int
        How many rows ``put`` has replaced that were not stale.
    """

    def __init__(self, file: TableFile):
        self._file = file
        self.replaced = 0
        self.room = len(file.rows)

    @classmethod
    def create(cls, dir_fd: int, name: str, room: int) -> Table:
        """Make an empty table in a new file, in place of what a process that was killed left there.

        Parameters
        ----------
        dir_fd : int
            The folder.
        name : str
            The file in it.
        room : int
            The least number of rows that it has room for; the next multiple of 8 is taken.

        Raises
        ------
        FileError
            The file could not be made, for example because the disk is full.
        """
        return cls(TableFile.create(dir_fd, name, max(1, -(-2 * room // WAYS)) * WAYS))

    @classmethod
    def open(cls, dir_fd: int, name: str) -> Table:
        """Open the table in a file.

        Raises
        ------
        FileError
            The file could not be opened, or is a symbolic link.
        DamagedError
            The file is not one that ``create`` made for this user.
        NewerFormatError
            A later version of this package made the file.
        """
        return cls(TableFile.open(dir_fd, name, WAYS))

    def close(self) -> None:
        """Unmap and close the file.  A second call does nothing."""
        self._file.close()

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def check(self) -> None:
        """Raise ``DamagedError`` if the file was removed or has another size, ``ClosedError`` after ``close()``.

        To read a mapped file beyond its end would kill the process with SIGBUS.
        """
        self._file.check()

    def find(self, keys: Words, space: int, generations: Words | None = None) -> tuple[Rows, np.ndarray]:
        """Look up the rows of keys.

        Parameters
        ----------
        keys : numpy.ndarray of uint64, shape (n, 4)
            They may repeat.
        space : int
            The space of all of them, below 2**64.
        generations : numpy.ndarray of uint64, shape (segments,), optional
            The generation of each segment: stale rows are not found.

        Returns
        -------
        rows : numpy.ndarray of ROW, shape (n,)
            Copies; zeros where a key is missing.
        places : numpy.ndarray of int64, shape (n,)
            Where the rows are; -1 where a key is missing.

        Raises
        ------
        DamagedError, ClosedError
            As for ``check``.
        """
        rows = np.empty((len(keys), ROW_WORDS), np.uint64)
        places = np.full(len(keys), TORN)
        which = _NO_GENERATIONS if generations is None else generations
        for pause in (0, *PAUSES):
            if pause:
                time.sleep(pause)
            words, stored, _ = self._file.mapped()
            if not kernels.look_up(words, stored, keys, np.uint64(space), which, rows, places):
                break
        return rows_of(rows), np.maximum(places, MISSING)

    def put(self, rows: Rows, generations: Words) -> np.ndarray:
        """Store rows: in place of the one of the same key and space, or of a stale one.

        A row is stale if its generation is not that of its segment.  Of rows with the same key and space the last one
        is stored.

        Parameters
        ----------
        rows : numpy.ndarray of ROW, shape (n,)
            Their guards are computed here.
        generations : numpy.ndarray of uint64, shape (segments,)
            The generation of each segment.

        Returns
        -------
        numpy.ndarray of bool, shape (n,)
            Whether each row is stored.  If one is not, a larger table is needed: see ``grown``.
        """
        words, stored, head = self._file.mapped()
        new = _guarded(rows)
        places, listed = np.empty(len(new), np.int64), np.empty(len(new), np.bool_)
        if kernels.append(stored, head, new, generations, places) < len(new):
            kernels.sweep(words, stored)
            kernels.append(stored, head, new, generations, places)  # all again: none of them has a word yet
        self.replaced += kernels.enlist(words, stored, new, places, generations, listed)
        return listed

    def remove(self, rows: Rows) -> None:
        """Forget those of these rows, shape (n,), that are in the table unchanged."""
        words, stored, _ = self._file.mapped()
        kernels.forget(words, stored, _guarded(rows))

    def clear(self, spaces: Iterable[int]) -> int:
        """Forget all rows of some spaces; return how many there were, stale ones included."""
        numbers = np.array(list(spaces), np.uint64)
        words, stored, _ = self._file.mapped()
        return sum(
            kernels.forget(words, stored, rows[np.isin(rows[:, SPACE], numbers)]) for rows in self._walk()
        )

    def live(self, generations: Words) -> Rows:
        """Return copies of all rows that are not stale, shape (m,), in no particular order.

        Parameters
        ----------
        generations : numpy.ndarray of uint64, shape (segments,)
            The generation of each segment.
        """
        return rows_of(np.concatenate([rows[~are_stale(rows, generations)] for rows in self._walk()]))

    def largest_generation(self) -> int:
        """Return the largest generation of all rows, stale ones included; 0 if there are none."""
        return max((int(rows[:, GENERATION].max(initial=0)) for rows in self._walk()), default=0)

    def count(self) -> int:
        """Return how many rows are listed, also stale ones; it reads all words."""
        self.check()
        return int(np.count_nonzero(self._file.words))

    def damaged(self, generations: Words) -> int:
        """Return how many rows that are not stale do not match their guard: damaged, or being written."""
        return int(kernels.damaged(self._file.mapped()[1], generations))

    def _walk(self) -> Iterator[Words]:
        """Yield copies of the rows of all words, a chunk at a time, without those that are damaged."""
        for first in range(0, self._file.slots, CHUNK):
            words, stored, _ = self._file.mapped()
            end = min(first + CHUNK, len(words))
            rows = np.empty((end - first, ROW_WORDS), np.uint64)
            yield rows[: kernels.walk(words, stored, first, end, rows)]

    def grown(self, dir_fd: int, name: str, room: int, generations: Words) -> Table:
        """Make another table with all rows of this one that are not stale.

        Parameters
        ----------
        dir_fd, name, room
            As for ``create``.  There is more room if that is too little for the rows.
        generations : numpy.ndarray of uint64, shape (segments,)
            The generation of each segment.

        Raises
        ------
        FileError
            The file could not be made.
        DamagedError
            This table was damaged meanwhile.
        """
        rows = self.live(generations)
        rows = rows[np.lexsort((rows["offset"], rows["generation"]))]  # as they were stored
        while True:
            larger = self.create(dir_fd, name, room)
            try:
                parts = (rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK))
                if all(larger.put(part, generations).all() for part in parts):
                    return larger
            except BaseException:
                larger.close()
                with suppress(OSError):
                    os.unlink(name, dir_fd=dir_fd)
                raise
            room = min(2 * larger.room, max(larger.room + 1, MOST_ROWS))
            larger.close()


def _guarded(rows: Rows) -> Words:
    """Return copies of rows as words, shape (n, 12), with their guards."""
    words = words_of(rows).copy()
    guard(words)
    return words
