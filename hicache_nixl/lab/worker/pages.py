"""The pages that a worker stores and loads: where they lie in the host pool, and whether they are right.

Pages of a call are scattered over a pool that is larger than any call, in another order and at another place for
each call, so that a connector which ignores an index, or writes beside a page, is noticed.  What a set stored is also
read from the files themselves: a connector that swaps keys and values, or writes at another offset, would read
its own pages back without an error.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...host.pools import HostKVPool, pool_for_page_bytes
from .setup import Setup, key_of

MIX = 0x1E3779B97F4A7C15  # odd, so that the pages of two keys differ in every number
ABSENT = -1  # number of a page that is never stored
READ_BACK = 2  # pages of a set whose files are read; all of them in a call of at most SMALL_CALL
SMALL_CALL = 4
NEIGHBOURS = 8  # pages beside those of a get that must stay as they were


@dataclass(frozen=True)
class Batch:
    """The pages of one call: their numbers, keys, places in the pool (in pages) and token indices."""

    ids: list[int]
    keys: list[str]
    places: list[int]
    indices: torch.Tensor


class CheckedPages:
    """A host pool, the pages that were stored from it, and the checks of what a call did.

    Parameters
    ----------
    setup : Setup
    storage_dir : str
        The folder that the connector stores pages in.
    in_files : bool
        Whether it stores each piece of a page in a file of its own, named as SGLang names it.

    Attributes
    ----------
    pool : HostKVPool
        What the connector is given; a quarter larger than ``setup.pages``, and three pages more.
    """

    def __init__(self, setup: Setup, storage_dir: str, in_files: bool):
        self._seed, self._folder, self._in_files = setup.seed, Path(storage_dir), in_files
        self._direct = setup.direct
        self._pieces: tuple[str, ...] = (
            ("",) if setup.layout == "layer_first" else ("_k",) if setup.mla else ("_k", "_v")
        )
        self.pool: HostKVPool = pool_for_page_bytes(
            setup.page_bytes, pages=setup.pages + setup.pages // 4 + 3, layout=setup.layout, mla=setup.mla
        )
        content = torch.Generator().manual_seed(setup.seed)
        self._base = torch.randint(-(2**62), 2**62, (setup.page_bytes // 8,), generator=content)
        self._poison = torch.full_like(self._base, -1).view(self.pool.dtype)
        self.pool.kv_buffer.view(torch.int16).fill_(-1)  # all of its memory is used from the start
        self._order = torch.Generator().manual_seed(setup.seed)
        self._next_id = 0
        self._middle: str | None = None  # what stands between the key and the piece in a file's name
        self._stored: deque[tuple[int, int]] = deque(maxlen=setup.pages)  # no call asks for more

    def to_set(self, count: int) -> Batch:
        """Put pages that were not stored before into the pool."""
        ids = list(range(self._next_id, self._next_id + count))
        self._next_id += count
        batch = self._batch(ids, self._scattered([-1] * count))
        for page_id, place in zip(batch.ids, batch.places, strict=True):
            self._write(place, self._content(page_id))
        return batch

    def to_get(self, count: int) -> Batch:
        """Choose the pages stored last, and other places for them, which are overwritten."""
        latest = self._latest(count)
        batch = self._batch(
            [page_id for page_id, _ in latest], self._scattered([place for _, place in latest])
        )
        for place in (*batch.places, *self._beside(batch)):
            self._write(place, self._poison)
        return batch

    def latest_keys(self, count: int) -> list[str]:
        """Return the keys of the pages stored last, from the first again when there are fewer."""
        return self._keys([page_id for page_id, _ in self._latest(count)])

    def present_and_absent(self, batch: Batch, results: Sequence[bool]) -> tuple[list[str], int]:
        """Return keys, the first ones stored by a set and one of them absent; and how many lead."""
        present = [key for key, stored in zip(batch.keys, results, strict=True) if stored][:SMALL_CALL]
        return [*present, key_of(self._seed, ABSENT), *present[:1]], len(present)

    def was_set(self, batch: Batch, results: Sequence[bool]) -> list[str]:
        """Remember what a set stored, and read some of it from the files; a line for each wrong page."""
        stored = [position for position, (_, good) in enumerate(zip(batch.ids, results, strict=True)) if good]
        self._stored += [(batch.ids[position], batch.places[position]) for position in stored]
        if not self._in_files:
            return []
        if len(stored) > SMALL_CALL:
            chosen = torch.randperm(len(stored), generator=self._order)[:READ_BACK]
            stored = [stored[position] for position in chosen.tolist()]
        wrong = [self._wrong_in_files(batch.ids[position], batch.keys[position]) for position in stored]
        return [line for line in wrong if line]

    def was_get(self, batch: Batch, results: Sequence[bool]) -> tuple[int, list[str]]:
        """Count the pages that came back bit for bit; a line for each page that changed beside them."""
        good = sum(
            bool(loaded) and self._holds(place, self._content(page_id))
            for page_id, place, loaded in zip(batch.ids, batch.places, results, strict=True)
        )
        return good, [
            f"the get changed page {place} of the pool, which it was not asked for"
            for place in self._beside(batch)
            if not self._holds(place, self._poison)
        ]

    def _latest(self, count: int) -> list[tuple[int, int]]:
        stored = list(self._stored) or [(page_id, -1) for page_id in range(count)]  # none of them is there
        return stored[-count:] if count <= len(stored) else [stored[i % len(stored)] for i in range(count)]

    def _scattered(self, before: Sequence[int]) -> list[int]:
        """Choose places in the pool: none right after the one before it, and none where its page was."""
        avoided = torch.tensor(before)
        while True:
            places = torch.randperm(self.pool.page_num, generator=self._order)[: len(before)]
            if not ((places[1:] == places[:-1] + 1).any() or (places == avoided).any()):
                return places.tolist()

    def _batch(self, ids: list[int], places: list[int]) -> Batch:
        starts = torch.tensor(places)[:, None] * self.pool.page_size
        indices = (starts + torch.arange(self.pool.page_size)).flatten()
        return Batch(ids, self._keys(ids), places, indices)

    def _beside(self, batch: Batch) -> list[int]:
        """Return some places before and behind the pages of a call that are not in it."""
        asked = set(batch.places)
        beside = {place + step for place in batch.places for step in (-1, 1)} - asked
        return sorted(beside & set(range(self.pool.page_num)))[:: max(1, len(beside) // NEIGHBOURS)]

    def _wrong_in_files(self, page_id: int, key: str) -> str:
        """Compare the files of a page with its pieces; why they are wrong, empty when they are right."""
        content = self._content(page_id).view(torch.uint8).numpy().tobytes()
        self._pieces = self._pieces if self._middle is not None else self._stored_pieces(key)
        size = len(content) // len(self._pieces)
        for number, piece in enumerate(self._pieces):
            try:
                found = self._read(self._path(key, piece))
            except OSError as error:
                return f"the set says that {key} is stored: {error}"
            if len(found) != size:
                return f"the set stored {len(found)} bytes of {key}{piece}, expected {size}"
            if found != content[number * size : (number + 1) * size]:
                return f"the set stored other bytes than those of {key}{piece}"
        return ""

    def _stored_pieces(self, key: str) -> tuple[str, ...]:
        """Return the pieces that a page is stored in: O_DIRECT may need a copy of it, in one file without a suffix."""
        if not self._direct:
            return self._pieces
        files = [path.name for path in self._folder.rglob(f"{key}*")]
        return ("",) if files and not any(name.endswith(self._pieces) for name in files) else self._pieces

    def _path(self, key: str, piece: str) -> Path:
        """Find a file by its name, in the folder or in one below it."""
        if self._middle is None:
            found = next(self._folder.rglob(f"{key}*{piece}"), None)
            if found is None:
                return self._folder / f"{key}{piece}"
            self._middle = found.name.removeprefix(key).removesuffix(piece)
        name = f"{key}{self._middle}{piece}"
        path = self._folder / name
        return path if path.exists() else next(self._folder.glob(f"*/{name}"), path)

    def _read(self, path: Path) -> bytes:
        with path.open("rb") as file:
            content = file.read()
            if self._direct:  # the next get is to find nothing of it in the page cache
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return content

    def _content(self, page_id: int) -> torch.Tensor:
        return (self._base + page_id * MIX % 2**62).view(self.pool.dtype)

    def _write(self, place: int, content: torch.Tensor) -> None:
        self.pool.set_from_flat_data_page(place * self.pool.page_size, content)

    def _holds(self, place: int, content: torch.Tensor) -> bool:
        page = self.pool.get_data_page(place * self.pool.page_size)
        return torch.equal(page.view(torch.int64), content.view(torch.int64))

    def _keys(self, ids: Sequence[int]) -> list[str]:
        return [key_of(self._seed, page_id) for page_id in ids]
