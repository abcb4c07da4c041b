"""The index of a store, in the table that its state names: opened when it is needed, and grown when it is full."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress

import numpy as np

from ...errors import DamagedError, FileError
from .folder import is_gone
from .locks import Locks
from .row import Rows, Words
from .state import State
from .table import Table
from .words import MOST_ROWS

logger = logging.getLogger(__name__)

LEAST_ROOM = 1 << 12  # pages
GROWTH = 1.75  # times as much room when the table is full: less than 200 bytes for a page


class Index:
    """The rows of all pages.

    Parameters
    ----------
    dir_fd : int
        The folder of the store.
    state : State
    locks : Locks
    """

    def __init__(self, dir_fd: int, state: State, locks: Locks):
        self._dir_fd, self._state, self._locks = dir_fd, state, locks
        self._opening = threading.Lock()
        self._number = -1
        self._table: Table | None = None
        self._tables: weakref.WeakSet[Table] = weakref.WeakSet()

    def _current(self) -> Table:
        """Return the table that the state names."""
        return self._table_of(self._named())

    def _named(self) -> int:
        """Return the number of the table that the state names."""
        self._state.check()
        number: int = self._state["index"]
        return number

    def _table_of(self, number: int) -> Table:
        if self._table is None or self._number != number:
            with self._opening:
                self._open(number)
        assert self._table is not None
        return self._table

    def _open(self, number: int) -> None:
        if self._table is not None and self._number == number:
            return
        table = Table.open(self._dir_fd, name_of(number))
        self._replace(table, number)

    def _replace(self, table: Table, number: int) -> None:
        self._tables.add(table)
        self._table, self._number = table, number  # the table before ends with the last call that reads it

    def _lost(self, error: Exception, number: int) -> None:
        """Start with an empty table in place of one that is lost; the caller does not hold the lock."""
        with self._locks.index():
            if self._state["index"] == number:  # no other process has done it
                logger.error("the index of the store is lost, so it starts empty: %s", error)
                self.start(number + 1, LEAST_ROOM)

    def start(self, number: int, room: int) -> None:
        """Make an empty table; the caller holds the lock of the index."""
        with self._opening:
            self._replace(Table.create(self._dir_fd, name_of(number), room), number)
        self._publish(number)
        self._state["removals"] += 1

    def _publish(self, number: int) -> None:
        before = self._state["index"]
        self._state["index"] = number
        if before != number:
            with suppress(OSError):  # it may be lost, or something else is in its place
                os.unlink(name_of(before), dir_fd=self._dir_fd)

    def find(self, keys: Words, space: int) -> tuple[Rows, np.ndarray]:
        """Look up pages.

        Returns
        -------
        rows : numpy.ndarray of ROW, (n,)
        found : numpy.ndarray of bool, (n,)
            Whether a page is listed, and its segment is still of its generation.
        """
        for _ in range(3):
            number = self._named()
            try:
                rows, places = self._table_of(number).find(keys, space, self._state.generations)
                return rows, (places >= 0) & self.valid(rows)
            except (DamagedError, FileError) as error:
                if self._named() == number:
                    if not is_gone(error):
                        raise
                    self._lost(error, number)
        raise DamagedError("the index of the store is lost again and again")

    def valid(self, rows: Rows) -> np.ndarray:
        """Return for each row whether its segment is still of its generation."""
        generations = self._state.generations
        segments = np.minimum(rows["segment"], np.uint64(len(generations) - 1)).astype(np.int64)
        valid: np.ndarray = generations[segments] == rows["generation"]
        return valid

    def put(self, rows: Rows, moved: bool = False) -> None:
        """List pages; the caller holds the lock of the index.

        Parameters
        ----------
        rows : numpy.ndarray of ROW, (n,)
        moved : bool
            Whether they are pages that are listed, with the same bytes at another place: who remembers the row
            before may go on to use it.

        Raises
        ------
        FileError
            When the table is full and cannot be made larger.
        """
        number = self._named()
        try:
            table = self._table_of(number)
        except (DamagedError, FileError) as error:
            if not is_gone(error):
                raise
            logger.error("the index of the store is lost, so it starts empty: %s", error)
            self.start(number + 1, LEAST_ROOM)
            table = self._current()
        before = table.replaced
        while not (placed := table.put(rows, self._state.generations)).all():
            rows = rows[~placed]
            self._grow(max(table.room + 1, min(int(GROWTH * table.room), MOST_ROWS)))
            before -= table.replaced
            table = self._current()
            before += table.replaced
        if table.replaced > before and not moved:
            self._state["removals"] += 1

    def _grow(self, room: int) -> None:
        number = self._number + 1
        logger.info("the index of the store grows to room for %d pages", room)
        grown = self._current().grown(self._dir_fd, name_of(number), room, self._state.generations)
        with self._opening:
            self._replace(grown, number)
        self._publish(number)

    def remove(self, rows: Rows) -> None:
        """Forget pages, if they are still listed like this."""
        with self._locks.index():
            self._current().remove(rows)
            self._state["removals"] += 1

    def clear(self, spaces: Iterable[int]) -> int:
        """Forget all pages of some spaces; return how many there were."""
        with self._locks.index():
            cleared = self._current().clear(spaces)
            self._state["removals"] += 1
            return cleared

    def check(self) -> None:
        """Raise ``DamagedError`` or ``FileError`` if the index is lost."""
        self._current().check()

    def listed(self, rows: Rows) -> np.ndarray:
        """Return for each row whether its page is still listed at this place."""
        same = np.zeros(len(rows), np.bool_)
        table = self._current()
        for space in np.unique(rows["space"]).tolist():
            which = np.flatnonzero(rows["space"] == space)
            now, places = table.find(rows["key"][which], space)
            same[which] = places >= 0
            for field in ("segment", "generation", "offset"):
                same[which] &= now[field] == rows[field][which]
        return same & self.valid(rows)

    def occupied(self) -> tuple[int, int]:
        """Return how many pages are listed, also some that are gone, and for how many there is room."""
        table = self._current()
        return table.count(), table.room

    def damaged(self) -> int:
        """Return how many rows do not match their guard: damaged, or being written at the moment."""
        return self._current().damaged(self._state.generations)

    def live(self) -> Rows:
        """Return the rows of all pages."""
        return self._current().live(self._state.generations)

    def largest_generation(self) -> int:
        """Return the largest generation of all rows, valid or not."""
        return self._current().largest_generation()

    def close(self) -> None:
        """Close the table.  May be called twice."""
        for table in list(self._tables):
            table.close()


def name_of(number: int) -> str:
    """Return the name of the file of a table."""
    return f"index.{number}"
