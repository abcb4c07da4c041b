"""Raw access to the pages of a store of ``pooled``, through a second opening of the same folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support import names_open

from hicache_nixl.config import PooledOptions
from hicache_nixl.lifetimes.pooled import lifetime as pooled
from hicache_nixl.lifetimes.pooled.opening import Store
from hicache_nixl.lifetimes.pooled.row import Rows
from hicache_nixl.lifetimes.pooled.segments import name_of
from hicache_nixl.lifetimes.pooled_objects import lifetime as pooled_objects

MAPPED = ("pooled/state", "pooled/index.")  # mmap keeps a descriptor of its own
# An index holds hashes only.  These are the names behind them, noted when a connector made the hashes.
KEYS: dict[tuple[int, ...], str] = {}
SPACES: dict[int, tuple[str, tuple[str, ...]]] = {}


def note_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note from now on what the keys and spaces of ``pooled`` stand for."""
    numbers_of, space_of = pooled.numbers_of, pooled.space_of

    def noted_keys(keys: Sequence[str]) -> np.ndarray:
        numbers = numbers_of(keys)
        KEYS.update(zip(map(tuple, numbers.tolist()), keys, strict=True))
        return numbers

    def noted_space(suffix: str, endings: tuple[str, ...]) -> int:
        SPACES[space_of(suffix, endings)] = suffix, endings
        return space_of(suffix, endings)

    for module in (pooled, pooled_objects):
        monkeypatch.setattr(module, "numbers_of", noted_keys)
        monkeypatch.setattr(module, "space_of", noted_space)


class Records:
    """Pieces that are parts of records.

    A piece that is removed or gets another size takes the record with it.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def opened(self) -> Store:
        """Open the store once more, as another process would."""
        assert (self._folder / "pooled" / "state").exists(), "a new store would have another size"
        return Store(str(self._folder), PooledOptions())

    def rows(self) -> dict[str, tuple[Rows, int, int]]:
        """Return for each piece its row (of shape (1,)), offset in the segment and size."""
        if not (self._folder / "pooled" / "state").exists():
            return {}
        with self.opened() as store:
            live = store.index.live()
        found = {}
        for place in range(len(live)):
            row = live[place : place + 1]
            suffix, endings = SPACES[int(row["space"][0])]
            name, size = KEYS[tuple(row["key"][0].tolist())] + suffix, int(row["size"][0]) // len(endings)
            for number, ending in enumerate(endings):
                found[name + ending] = row, int(row["offset"][0] + number * row["step"][0]), size
        return found

    def names(self) -> list[str]:
        return sorted(self.rows())

    def place(self, name: str) -> tuple[Path, int, int]:
        """Return the segment, offset and size of a piece."""
        row, offset, size = self.rows()[name]
        return self._folder / "pooled" / name_of(int(row["segment"][0])), offset, size

    def get(self, name: str) -> bytes:
        segment, offset, size = self.place(name)
        return segment.read_bytes()[offset : offset + size]

    def put(self, name: str, content: bytes) -> None:
        raise NotImplementedError("a page is one record")  # tests that do it leave out such stores: BY_PIECE

    def resize(self, name: str, size: int) -> None:
        row, _, before = self.rows()[name]
        row["size"] = int(row["size"][0]) + size - before
        with self.opened() as store, store.locks.index():
            store.index.put(row)
            store.state["removals"] += 1  # no store changes a page in its place, so none would notice

    def flip(self, name: str) -> None:
        """Change a byte in the middle of a piece."""
        segment, offset, size = self.place(name)
        with segment.open("r+b") as file:
            file.seek(offset + size // 2)
            byte = file.read(1)[0]
            file.seek(offset + size // 2)
            file.write(bytes([byte ^ 1]))

    def remove(self, name: str) -> None:
        with self.opened() as store:
            store.index.remove(self.rows()[name][0])

    def handles(self) -> list[str]:
        """An idle store holds its folder, its locks and each segment once; twice what is mapped into memory."""
        counts = Counter(names_open(self._folder))
        stores = min(counts["pooled"], counts["pooled/locks"], counts["pooled/state"] // 2)
        idle = {name: stores * (2 if name.startswith(MAPPED) else 1) for name in counts}
        return sorted((counts - Counter(idle)).elements())
