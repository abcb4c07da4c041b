"""The index of the pages: a hash table in a file, which any number of processes map into memory.

The tag of a row, a hash of its key and space, names two buckets of 16 slots; the row is in one of them.  The file
is a header, the tags of all slots (0: empty), and the rows of all slots: 104 bytes per slot.

Only one process at a time may change the table: its caller holds a lock.  Readers need none.  A row that is
partly written or damaged does not match its guard, and counts as missing.  A new row is written before its tag,
so a process that is killed leaves each row old, new or missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from .row import (
    GENERATION,
    GUARD,
    NAME_WORDS,
    ROW,
    ROW_WORDS,
    SEGMENT,
    Rows,
    Words,
    guards,
    rows_of,
    tags,
    words_of,
)
from .table_file import TableFile

__all__ = ["ROW", "Table"]

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# Measured with 10^5 rows: the first put fails at a load of 0.87; with buckets of 8 slots, some fail at 0.75.
WAYS = 16
CHUNK = 1 << 14  # rows or slots that a walk over the whole table looks at together: a few MB
# Seconds before a torn row is read again.  Its writer may have lost the processor in the middle of it.
PAUSES = (0, 0, 0.0005, 0.002, 0.008)
# Each key prefers the slots of a bucket in one of these orders, so that few keys of a batch want the same slot.
_ORDERS = np.array([np.random.RandomState(seed).permutation(WAYS) + 1 for seed in range(64)], np.uint8)
_ONES = np.ones(WAYS, np.uint8)
# A half of the tag, as a fraction of 2^32, is the place of a bucket among all; its low bits are free for the order.
_HALVES, _HALF, _LOWER, _SIX_BITS = (
    np.array([0, 32], np.uint64),
    np.uint64(32),
    np.uint64(2**32 - 1),
    np.uint64(63),
)


class Table:
    """The rows of the pages, by key and space.

    Parameters
    ----------
    file : TableFile
        The mapped file, which this table closes.
    """

    def __init__(self, file: TableFile):
        self._file = file
        self._buckets = np.uint64(file.slots // WAYS)

    @classmethod
    def create(cls, dir_fd: int, name: str, slots: int) -> Table:
        """Make an empty table in a new file, in place of what a process that was killed left there.

        Parameters
        ----------
        dir_fd : int
            The folder.
        name : str
            The file in it.
        slots : int
            The least number of slots; the next multiple of 16 is taken.  Each has 104 bytes on disk.

        Raises
        ------
        FileError
            The file could not be made, for example because the disk is full.
        """
        return cls(TableFile.create(dir_fd, name, max(1, -(-slots // WAYS)) * WAYS))

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
    def slots(self) -> int:
        """The number of slots, occupied or not."""
        return self._file.slots

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

    def find(self, keys: Words, space: int) -> tuple[Rows, Numbers]:
        """Look up the rows of keys.

        Parameters
        ----------
        keys : numpy.ndarray of uint64, shape (n, 4)
            They may repeat.
        space : int
            The space of all of them, below 2**64.

        Returns
        -------
        rows : numpy.ndarray of ROW, shape (n,)
            Copies; zeros where a key is missing.
        slots : numpy.ndarray of int64, shape (n,)
            Where the rows are; -1 where a key is missing.

        Raises
        ------
        DamagedError, ClosedError
            As for ``check``.
        """
        names = np.empty((len(keys), NAME_WORDS), np.uint64)
        names[:, :4], names[:, 4] = keys, space
        rows, slots = self._find(names)
        return rows_of(rows), slots

    def _find(self, names: Words) -> tuple[Words, Numbers]:
        """Return rows, shape (n, 12), and slots, shape (n,); what is torn is read again after each pause."""
        rows = np.zeros((len(names), ROW_WORDS), np.uint64)
        slots = np.full(len(names), -1)
        wanted = np.arange(len(names))
        for pause in (*PAUSES, None):
            self.check()
            which, places, found, same = self._candidates(names.take(wanted, axis=0))
            if not (good := same.all()):
                torn = which[~same]
                which, places, found = which[same], places[same], found[same]
            rows[wanted[which]] = found
            slots[wanted[which]] = places
            if good or pause is None or not len(wanted := np.setdiff1d(wanted[torn], wanted[which])):
                break
            time.sleep(pause)
        return rows, slots

    def _near(self, names: Words) -> tuple[Words, Numbers, Words]:
        """Return the tags of names, their buckets, shape (n, 2), and the tags in these, shape (n, 2, 16)."""
        tag = tags(names)
        buckets = ((tag[:, None] >> _HALVES & _LOWER) * self._buckets >> _HALF).view(np.int64)
        return tag, buckets, self._file.tags.reshape(-1, WAYS).take(buckets, axis=0)

    def _candidates(
        self, names: Words, near: tuple[Words, Numbers, Words] | None = None
    ) -> tuple[Numbers, Numbers, Words, Flags]:
        """Return the slots with the tags of names: which name, which slot, the row, whether it is the name's row."""
        tag, buckets, around = near or self._near(names)
        hits = (around == tag[:, None, None]).reshape(-1).nonzero()[0]
        which = hits // (2 * WAYS)
        slots = buckets.reshape(-1).take(hits // WAYS) * WAYS + hits % WAYS
        rows = self._file.rows.take(slots, axis=0)
        same = _whole(rows)
        differences = (rows[:, :NAME_WORDS] != names.take(which, axis=0)).reshape(-1).nonzero()[0]
        same[differences // NAME_WORDS] = False
        return which, slots, rows, same

    def put(self, rows: Rows, generations: Words) -> Flags:
        """Store rows: in the place of the same key and space, in an empty slot, or in that of a stale row.

        A row is stale if it is damaged, or if its generation is not that of its segment.  Of rows with the same
        key and space the last one is stored.

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
        placed = np.ones(len(words), np.bool_)
        pending = np.arange(len(words))
        while len(pending):
            new = words.take(pending, axis=0)
            tag, slots = self._places(new[:, :NAME_WORDS].copy(), generations)
            winners, losers = _last_of_each(slots)
            self._write(slots.take(winners), tag.take(winners), new.take(winners, axis=0))
            placed[pending[slots < 0]] = False
            if not len(losers):
                break
            rivals = winners[np.searchsorted(slots[winners], slots[losers])]
            replaced = (new[losers, :NAME_WORDS] == new[rivals, :NAME_WORDS]).all(axis=1)
            pending = pending[np.sort(losers[~replaced])]
        return placed

    def _write(self, slots: Numbers, tag: Words, rows: Words) -> None:
        """Write rows, each to a slot of its own, so that nobody finds one under another's tag."""
        other = slots[self._file.tags.take(slots) != tag]
        self._file.tags[other] = 0
        self._file.rows[slots] = rows
        self._file.tags[slots] = tag

    def _places(self, names: Words, generations: Words) -> tuple[Words, Numbers]:
        """Return the tags of names, and the slot where each row should go, -1 where there is none."""
        near = tag, buckets, around = self._near(names)
        slots = np.full(len(names), -1)
        which, places, rows, same = self._candidates(names, near)
        if not same.all():  # the damaged row of this name is the first to be replaced
            damaged = ~_whole(rows)
            slots[which[damaged]] = places[damaged]
        slots[which[same]] = places[same]
        homeless = np.flatnonzero(slots < 0)
        if len(homeless):
            slots[homeless] = _roomiest(tag[homeless], buckets[homeless], around[homeless] == 0)
            homeless = np.flatnonzero(slots < 0)
        if len(homeless):
            stale = self._stale(buckets[homeless], generations)
            slots[homeless] = _roomiest(tag[homeless], buckets[homeless], stale)
        return tag, slots

    def _stale(self, buckets: Numbers, generations: Words) -> Flags:
        """Tell which rows of full buckets, shape (n, 2), are stale, shape (n, 2, 16)."""
        slots = (buckets[:, :, None] * WAYS + np.arange(WAYS)).reshape(-1)
        words, starts = self._file.rows.reshape(-1), slots * ROW_WORDS
        stale = ~_current(words.take(starts + SEGMENT), words.take(starts + GENERATION), generations)
        if not stale.reshape(-1, 2 * WAYS).any(axis=1).all():  # damaged rows are few, and take longer to tell
            stale |= ~_whole(self._file.rows.take(slots, axis=0))
        return stale.reshape(-1, 2, WAYS)

    def remove(self, rows: Rows) -> None:
        """Forget those of these rows, shape (n,), that are in the table unchanged."""
        self.check()
        words = _guarded(rows)
        which, slots, stored, same = self._candidates(words[:, :NAME_WORDS])
        self._file.tags[slots[same & (stored[:, GUARD] == words[which, GUARD])]] = 0

    def clear(self, spaces: Iterable[int]) -> int:
        """Forget all rows of some spaces; return how many there were, stale ones included."""
        numbers = np.array(list(spaces), np.uint64)
        cleared = 0
        for slots, rows in self._walk():
            inside = slots[np.isin(rows[:, NAME_WORDS - 1], numbers)]
            self._file.tags[inside] = 0
            cleared += len(inside)
        return cleared

    def live(self, generations: Words) -> Rows:
        """Return copies of all rows that are not stale, shape (m,), in no particular order.

        Parameters
        ----------
        generations : numpy.ndarray of uint64, shape (segments,)
            The generation of each segment.
        """
        found = [
            rows[_current(rows[:, SEGMENT], rows[:, GENERATION], generations)] for _, rows in self._walk()
        ]
        return rows_of(np.concatenate(found))

    def largest_generation(self) -> int:
        """Return the largest generation of all rows, stale ones included; 0 if there are none."""
        return max((int(rows[:, GENERATION].max(initial=0)) for _, rows in self._walk()), default=0)

    def count(self) -> int:
        """Return how many slots are occupied, also by stale rows; it reads all tags."""
        self.check()
        return int(np.count_nonzero(self._file.tags))

    def _walk(self) -> Iterator[tuple[Numbers, Words]]:
        """Yield the slots and the rows of the table, a chunk at a time, without those that are damaged."""
        for start in range(0, self.slots, CHUNK):
            self.check()
            tag = self._file.tags[start : start + CHUNK]
            used = np.flatnonzero(tag)
            rows = self._file.rows[start : start + CHUNK].take(used, axis=0)
            good = _whole(rows) & (tags(rows[:, :NAME_WORDS]) == tag[used])
            yield used[good] + start, rows[good]

    def grown(self, dir_fd: int, name: str, slots: int, generations: Words) -> Table:
        """Make another table with all rows of this one that are not stale.

        Parameters
        ----------
        dir_fd, name
            The new file, as for ``create``.
        slots : int
            The least number of slots.  There are more if that is too few for the rows.
        generations : numpy.ndarray of uint64, shape (segments,)
            The generation of each segment.

        Raises
        ------
        FileError
            The file could not be made.
        DamagedError
            This table was damaged meanwhile.
        """
        while True:
            larger = self.create(dir_fd, name, slots)
            try:
                if self._copy(larger, generations):
                    return larger
            except BaseException:
                larger.close()
                with suppress(OSError):
                    os.unlink(name, dir_fd=dir_fd)
                raise
            slots = 2 * larger.slots
            larger.close()

    def _copy(self, target: Table, generations: Words) -> bool:
        """Put all rows that are not stale into another table; tell whether all found a place."""
        for _, rows in self._walk():
            live = rows[_current(rows[:, SEGMENT], rows[:, GENERATION], generations)]
            if not target.put(rows_of(live), generations).all():
                return False
        return True


def _guarded(rows: Rows) -> Words:
    """Return copies of rows as words, shape (n, 12), with their guards."""
    words = words_of(rows).copy()
    words[:, GUARD] = guards(words)
    return words


def _whole(rows: Words) -> Flags:
    """Tell which rows match their guards."""
    flags: Flags = rows[:, GUARD] == guards(rows)
    return flags


def _current(segments: Words, written: Words, generations: Words) -> Flags:
    """Tell for segments and generations of rows whether they are the generations of these segments."""
    known: Flags = segments < len(generations)
    places = np.where(known, segments, len(generations)).astype(np.int64)
    known &= np.append(generations, np.uint64(0)).take(places) == written
    return known


def _last_of_each(slots: Numbers) -> tuple[Numbers, Numbers]:
    """Return where each slot stands last, in the order of the slots, and where else it stands; -1 is no slot."""
    order = slots.argsort(kind="stable")
    order = order[np.searchsorted(slots.take(order), 0) :]
    ordered = slots.take(order)
    last = np.ones(len(order), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=last[:-1])
    return order[last], order[~last]


def _roomiest(tag: Words, buckets: Numbers, free: Flags) -> Numbers:
    """Return a free slot in that bucket of each pair which has more of them, -1 where there is none."""
    counts = free.view(np.uint8) @ _ONES
    lines = np.arange(len(tag))
    side = (counts[:, 1] > counts[:, 0]).astype(np.int64)
    sides = 2 * lines + side
    order = _ORDERS.take((tag & _SIX_BITS).astype(np.int64), axis=0)
    order *= free.reshape(-1, WAYS).take(sides, axis=0)
    slots = buckets.reshape(-1).take(sides) * WAYS + order.argmax(axis=1)
    return np.where(counts.any(axis=1), slots, -1)
