"""Pages that this process found in the index or listed there lately: a lookup of them alone needs no index.

A page is listed until its segment gets another generation, or rows are removed from the index, by any process.  The
first shows in the generations; the second is counted in the state, and then everything here is forgotten.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress

from ...errors import DamagedError, FileError
from .index import Index
from .state import State

MOST = 1 << 16  # pages of one space: some 10 MB

Version = tuple[int, int]


class Seen:
    """The generations of pages, by space and size, and by key.

    Parameters
    ----------
    state : State
    index : Index
        Asked whether it is still there.
    """

    def __init__(self, state: State, index: Index):
        self._state, self._index = state, index
        self._changing = threading.Lock()
        self._pages: dict[tuple[int, int], dict[str, int]] = {}
        self._version: Version = (0, 0)
        self._live: frozenset[int] = frozenset()

    def version(self) -> Version | None:
        """Return what changes when pages may have gone; to be read before the index, and passed to ``note``.

        None if the index is lost; then nothing is known.
        """
        with suppress(DamagedError, FileError):
            self._index.check()
            return self._state["removals"], self._state["next_generation"]
        return None

    def has_all(self, version: Version | None, space: int, size: int, keys: Iterable[str]) -> bool:
        """Return whether all these pages of so many bytes are known to be listed."""
        if version is None:
            return False
        if version != self._version:
            with self._changing:
                self._renew(version)
        known = self._pages.get((space, size))
        return known is not None and self._live.issuperset(map(known.get, keys))

    def _renew(self, version: Version) -> None:
        if version[0] != self._version[0]:
            self._pages = {}
        self._version = version
        self._live = frozenset(self._state.generations.tolist()) - {0}

    def note(
        self, version: Version | None, space: int, size: int, keys: Sequence[str], generations: list[int]
    ) -> None:
        """Remember pages that are listed, unless some were removed since ``version``."""
        if version is None:
            return
        with self._changing:
            if version[0] != self._version[0]:
                self._renew(version)
            if version[0] == self._state["removals"]:
                known = self._pages.setdefault((space, size), {})
                if len(known) > MOST:
                    known.clear()
                known.update(zip(keys, generations, strict=True))
