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

from .ring import Ring, stale
from .row import (
    GENERATION,
    GUARD,
    NAME_WORDS,
    ROW,
    ROW_WORDS,
    Rows,
    Words,
    guards,
    rows_of,
    tags,
    words_of,
)
from .table_file import TableFile
from .words import (
    WAYS,
    Flags,
    Numbers,
    are_stale,
    buckets_of,
    have_tags,
    last_of_each,
    places_in,
    roomiest,
    tags_of,
    words_for,
)

__all__ = ["ROW", "Table"]

CHUNK = 1 << 14  # rows or words that a walk over the whole table looks at together: a few MB
# Seconds before a torn row is read again.  Its writer may have lost the processor in the middle of it.
PAUSES = (0, 0, 0.0005, 0.002, 0.008)


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
        self._buckets = np.uint64(file.slots // WAYS)
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

    @property
    def _ring(self) -> Ring:
        return Ring(self._file.rows, self._file.head)  # not kept: it would keep the file mapped

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

    def find(self, keys: Words, space: int, generations: Words | None = None) -> tuple[Rows, Numbers]:
        """Look up the rows of keys.

        Parameters
        ----------
        keys : numpy.ndarray of uint64, shape (n, 4)
            They may repeat.
        space : int
            The space of all of them, below 2**64.
        generations : numpy.ndarray of uint64, shape (segments,), optional
            The generation of each segment: most stale rows are not looked at.

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
        names = np.empty((len(keys), NAME_WORDS), np.uint64)
        names[:, :4], names[:, 4] = keys, space
        rows, places = self._find(names, generations)
        return rows_of(rows), places

    def _find(self, names: Words, generations: Words | None) -> tuple[Words, Numbers]:
        """Return rows, shape (n, 12), and places, shape (n,).

        A row that is not the one that its word tells of may have been replaced between the two looks: its name is looked
        up again at once, and if the row is torn, also after each pause.
        """
        rows = np.zeros((len(names), ROW_WORDS), np.uint64)
        places = np.full(len(names), -1)
        wanted = np.arange(len(names))
        for pause in (*PAUSES, None):
            self.check()
            which, slots, found = self._candidates(names.take(wanted, axis=0))
            if generations is not None:
                now = ~are_stale(self._file.words.take(slots), generations)
                which, slots, found = which[now], slots[now], found[now]
            same, whole = self._are(found, names.take(wanted.take(which), axis=0))
            good = which[same]
            rows[wanted[good]] = found[same]
            places[wanted[good]] = places_in(self._file.words.take(slots[same]))
            again = ~whole if pause else ~same
            if pause is None or not again.any():
                break
            wanted = np.setdiff1d(wanted[which[again]], wanted[good])
            if pause:
                time.sleep(pause)
        return rows, places

    def _near(self, names: Words) -> tuple[Words, Numbers, Words]:
        """Return the hashes of names, their buckets, shape (n, 2), and the words in these, shape (n, 2, 16)."""
        hashes = tags(names)
        buckets = buckets_of(hashes, self._buckets)
        return hashes, buckets, self._file.words.reshape(-1, WAYS).take(buckets, axis=0)

    def _candidates(
        self, names: Words, near: tuple[Words, Numbers, Words] | None = None
    ) -> tuple[Numbers, Numbers, Words]:
        """Return what has the tags of names: which name, the slot of the word, the row, as it is now."""
        hashes, buckets, around = near or self._near(names)
        hits = have_tags(around, tags_of(hashes)[:, None, None]).reshape(-1).nonzero()[0]
        which = hits // (2 * WAYS)
        slots = buckets.reshape(-1).take(hits // WAYS) * WAYS + hits % WAYS
        places = np.minimum(places_in(around.reshape(-1).take(hits)), self.room - 1)
        return which, slots, self._file.rows.take(places, axis=0)

    @staticmethod
    def _are(rows: Words, names: Words) -> tuple[Flags, Flags]:
        """Tell which rows, shape (m, 12), are whole and have these names, shape (m, 5); and which are whole."""
        whole = _whole(rows)
        return whole & (rows[:, :NAME_WORDS] == names).all(axis=1), whole

    def put(self, rows: Rows, generations: Words) -> Flags:
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
        self.check()
        words = _guarded(rows)
        places = self._ring.append(words, generations)
        if (places < 0).any():
            self._sweep()
            places = self._ring.append(words, generations)
        placed = places >= 0
        pending = np.flatnonzero(placed)
        while len(pending):
            new, at = words.take(pending, axis=0), places.take(pending)
            hashes, slots, superseded = self._slots_for(new[:, :NAME_WORDS].copy(), generations)
            winners, losers = last_of_each(slots)
            told = words_for(tags_of(hashes), new, at)
            self._file.words[slots.take(winners)] = told.take(winners)
            self._ring.free(np.setdiff1d(superseded, places))  # a new row may be where the older one was
            if not len(losers) and len(winners) == len(slots):
                break
            placed[pending[slots < 0]] = False
            rivals = winners[np.searchsorted(slots[winners], slots[losers])]
            replaced = losers[(new[losers, :NAME_WORDS] == new[rivals, :NAME_WORDS]).all(axis=1)]
            self._ring.free(np.concatenate([at[slots < 0], at[replaced]]))
            pending = pending[np.setdiff1d(losers, replaced)]
        return placed

    def _sweep(self) -> None:
        """Free the rows to which no word points, such as those of a process that was killed before it wrote the words."""
        lost = np.ones(self.room, np.bool_)
        for slots, _ in self._walk():
            lost[places_in(self._file.words.take(slots))] = False
        self._ring.free(lost.nonzero()[0])

    def _slots_for(self, names: Words, generations: Words) -> tuple[Words, Numbers, Numbers]:
        """Return where the words of names go.

        Returns
        -------
        hashes : numpy.ndarray of uint64, shape (n,)
        slots : numpy.ndarray of int64, shape (n,)
            -1 where there is none.
        superseded : numpy.ndarray of int64, shape (m,)
            Places of rows of these names, which are not stale.
        """
        near = hashes, buckets, around = self._near(names)
        slots, superseded = np.full(len(names), -1), np.zeros(0, np.int64)
        which, at, rows = self._candidates(names, near)
        if len(which):
            same, whole = self._are(rows, names.take(which, axis=0))
            slots[which[~whole]] = at[~whole]  # a damaged row of this name is replaced
            slots[which[same]] = at[same]
            superseded = places_in(self._file.words.take(at[same & ~stale(rows, generations)]))
            self.replaced += len(superseded)
        for are_free in (lambda words: words == 0, lambda words: are_stale(words, generations)):
            homeless = np.flatnonzero(slots < 0)
            if len(homeless):
                free = are_free(around[homeless])
                slots[homeless] = roomiest(hashes[homeless], buckets[homeless], free)
        return hashes, slots, superseded

    def remove(self, rows: Rows) -> None:
        """Forget those of these rows, shape (n,), that are in the table unchanged."""
        self.check()
        words = _guarded(rows)
        which, slots, stored = self._candidates(words[:, :NAME_WORDS])
        same, _ = self._are(stored, words[which, :NAME_WORDS])
        self._remove(slots[same & (stored[:, GUARD] == words[which, GUARD])])

    def _remove(self, slots: Numbers) -> None:
        places = places_in(self._file.words.take(slots))
        self._file.words[slots] = 0
        self._ring.free(places)

    def clear(self, spaces: Iterable[int]) -> int:
        """Forget all rows of some spaces; return how many there were, stale ones included."""
        numbers = np.array(list(spaces), np.uint64)
        cleared = 0
        for slots, rows in self._walk():
            inside = slots[np.isin(rows[:, NAME_WORDS - 1], numbers)]
            self._remove(inside)
            cleared += len(inside)
        return cleared

    def live(self, generations: Words) -> Rows:
        """Return copies of all rows that are not stale, shape (m,), in no particular order.

        Parameters
        ----------
        generations : numpy.ndarray of uint64, shape (segments,)
            The generation of each segment.
        """
        return rows_of(np.concatenate([rows[~stale(rows, generations)] for _, rows in self._walk()]))

    def largest_generation(self) -> int:
        """Return the largest generation of all rows, stale ones included; 0 if there are none."""
        return max((int(rows[:, GENERATION].max(initial=0)) for _, rows in self._walk()), default=0)

    def count(self) -> int:
        """Return how many rows are listed, also stale ones; it reads all words."""
        self.check()
        return int(np.count_nonzero(self._file.words))

    def _walk(self) -> Iterator[tuple[Numbers, Words]]:
        """Yield the slots and the rows of all words, a chunk at a time, without those that are damaged."""
        for start in range(0, self._file.slots, CHUNK):
            self.check()
            words = self._file.words[start : start + CHUNK]
            used = np.flatnonzero(words)
            words = words[used]
            places = np.minimum(places_in(words), self.room - 1)
            rows = self._file.rows.take(places, axis=0)
            hashes = tags(rows[:, :NAME_WORDS])
            good = _whole(rows) & (words_for(tags_of(hashes), rows, places) == words)
            here = buckets_of(hashes, self._buckets) == (used + start)[:, None] // WAYS
            good &= here.any(axis=1)
            yield used[good] + start, rows[good]

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
            room = 2 * larger.room
            larger.close()


def _guarded(rows: Rows) -> Words:
    """Return copies of rows as words, shape (n, 12), with their guards."""
    words = words_of(rows).copy()
    words[:, GUARD] = guards(words)
    return words


def _whole(rows: Words) -> Flags:
    """Tell which rows match their guards."""
    flags: Flags = rows[:, GUARD] == guards(rows)
    return flags
