"""Pages that this process stored or found lately: looking them up needs no index.

They are kept in the order in which they came, and pages that were stored together are looked up together.  So one is
looked for, and those behind it are compared with those that are asked for.

A page is there until its segment gets another generation, rows are removed from the index, or other bytes are stored
for it, by any process.  The first shows in the generations; the others are counted in the state, and then all is
forgotten.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from ...errors import DamagedError, FileError
from .index import Index
from .row import ROW, Rows
from .state import State

MOST = 1 << 16  # pages of one space and size: some 20 MB


class Seen:
    """The rows of pages.

    Parameters
    ----------
    state : State
    index : Index
        Asked whether it is still there.
    """

    def __init__(self, state: State, index: Index):
        self._state, self._index = state, index
        self._changing = threading.Lock()
        self._known: dict[tuple[int, int], Known] = {}  # by space and size

    def version(self) -> int | None:
        """Return what changes when rows may have gone; to be read before the index, and passed to the others.

        None if the index is lost; then nothing is known.
        """
        with suppress(DamagedError, FileError):
            self._index.check()
            removals: int = self._state["removals"]
            return removals
        return None

    def find(self, version: int | None, space: int, size: int, keys: Sequence[str]) -> Rows | None:
        """Return the rows of pages of so many bytes if all are known to be listed, otherwise None."""
        known = self._known.get((space, size))
        if version is None or known is None or known.version != version:
            return None
        rows = known.find(keys)
        return rows if rows is not None and self._index.valid(rows).all() else None

    def note(self, version: int | None, space: int, size: int, keys: Sequence[str], rows: Rows) -> None:
        """Remember pages that are listed, unless rows were removed since ``version``.

        They were, if a page was stored twice in one call.
        """
        if version is None or not 0 < len(keys) <= MOST:
            return
        with self._changing:
            if version == self._state["removals"]:
                known = self._known.get((space, size))
                if known is None or known.version != version or not known.has_room(len(keys)):
                    known = self._known[space, size] = Known(version)
                known.add(keys, rows)


class Known:
    """Pages of one space and size, in the order in which they came.

    What other threads read meanwhile stays as it is.

    Parameters
    ----------
    version : int
    """

    def __init__(self, version: int):
        self.version = version
        self._rows = np.zeros(MOST, ROW)
        self._keys: list[str] = []
        # Of the first pages of each call; of the others when they are asked for.
        self._places: dict[str, int] = {}
        self._placed = 0  # up to here, of all

    def has_room(self, pages: int) -> bool:
        """Return whether so many pages can be added."""
        return len(self._keys) + pages <= MOST

    def add(self, keys: Sequence[str], rows: Rows) -> None:
        """Append pages."""
        first = len(self._keys)
        self._rows[first : first + len(keys)] = rows
        self._keys += keys
        self._places[keys[0]] = first

    def find(self, keys: Sequence[str]) -> Rows | None:
        """Return rows, (n,), in the order of the keys, or None if one is not known."""
        if (rows := self._run(keys)) is not None:
            return rows
        placed, end = self._placed, len(self._keys)
        self._places.update(zip(self._keys[placed:end], range(placed, end), strict=True))
        self._placed = end
        if (rows := self._run(keys)) is not None:
            return rows
        places = list(map(self._places.get, keys))
        return None if None in places else self._rows.take(places)  # type: ignore[arg-type]

    def _run(self, keys: Sequence[str]) -> Rows | None:
        """Return rows if the pages came in this order."""
        first = self._places.get(keys[0], MOST)
        same = self._keys[first : first + len(keys)] == keys
        return self._rows[first : first + len(keys)] if same else None
