"""The pages that a worker stores and loads: where they lie in the host pool, and whether they are right.

Pages of a call are scattered over a pool that is larger than any call, in another order and at another place for
each call, so that a connector which ignores an index, or writes beside a page, is noticed.  What a set stored is also
read past the connector, see ``stored``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...host.pools import HostKVPool, pool_for_page_bytes
from .setup import Setup, key_of
from .stored import Stored

MIX = 0x1E3779B97F4A7C15  # odd, so that the pages of two keys differ in every number
ABSENT = -1  # number of a page that is never stored
READ_BACK = 2  # pages of a set that are read past the connector; all of them in a call of at most SMALL_CALL
SMALL_CALL = 4
NEIGHBOURS = 8  # pages beside those of a get that must stay as they were


@dataclass(frozen=True)
class Batch:
    """The pages of one call: their numbers, keys, places in the pool (in pages) and token indices."""

    ids: list[int]
    keys: list[str]
    places: list[int]
    indices: torch.Tensor

    def parts(self, count: int) -> list[Batch]:
        """Return the batch in parts of so many pages."""
        tokens = len(self.indices) // len(self.ids)
        slices = [slice(first, first + count) for first in range(0, len(self.ids), count)]
        return [
            Batch(
                self.ids[part],
                self.keys[part],
                self.places[part],
                self.indices[part.start * tokens : part.stop * tokens],
            )
            for part in slices
        ]


class CheckedPages:
    """A host pool, the pages that were stored from it, and the checks of what a call did.

    Parameters
    ----------
    setup : Setup
    stored : Stored
        What the connector stores.
    scattered : bool
        Whether the pages of a call are scattered over the pool, instead of next to each other.

    Attributes
    ----------
    pool : HostKVPool
        What the connector is given; a quarter larger than ``setup.pages``, and three pages more.
    """

    def __init__(self, setup: Setup, stored: Stored, scattered: bool = True):
        self._seed, self._in_store, self._scatter = setup.seed, stored, scattered
        self.pool: HostKVPool = pool_for_page_bytes(
            setup.page_bytes, pages=setup.pages + setup.pages // 4 + 3, layout=setup.layout, mla=setup.mla
        )
        content = torch.Generator().manual_seed(setup.seed)
        self._base = torch.randint(-(2**62), 2**62, (setup.page_bytes // 8,), generator=content)
        self._poison = torch.full_like(self._base, -1).view(self.pool.dtype)
        self.pool.kv_buffer.view(torch.int16).fill_(-1)  # all of its memory is used from the start
        self._order = torch.Generator().manual_seed(setup.seed)
        self._next_id = 0
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
        """Remember what a set stored, and read some of it past the connector; a line for each wrong page."""
        stored = [position for position, (_, good) in enumerate(zip(batch.ids, results, strict=True)) if good]
        self._stored += [(batch.ids[position], batch.places[position]) for position in stored]
        if len(stored) > SMALL_CALL:
            chosen = torch.randperm(len(stored), generator=self._order)[:READ_BACK]
            stored = [stored[position] for position in chosen.tolist()]
        wrong = [
            self._in_store.wrong(batch.keys[position], self._bytes(batch.ids[position]))
            for position in stored
        ]
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
        """Choose places in the pool: none right after the one before it, and none where its page was.

        Places that are not scattered begin at the first page of the pool, or behind that where the first page was.
        """
        if not self._scatter:
            first = before[0] + 1 if before[0] >= 0 else 0
            return list(range(first, first + len(before)))
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

    def _bytes(self, page_id: int) -> bytes:
        return self._content(page_id).view(torch.uint8).numpy().tobytes()

    def _content(self, page_id: int) -> torch.Tensor:
        return (self._base + page_id * MIX % 2**62).view(self.pool.dtype)

    def _write(self, place: int, content: torch.Tensor) -> None:
        self.pool.set_from_flat_data_page(place * self.pool.page_size, content)

    def _holds(self, place: int, content: torch.Tensor) -> bool:
        page = self.pool.get_data_page(place * self.pool.page_size)
        return torch.equal(page.view(torch.int64), content.view(torch.int64))

    def _keys(self, ids: Sequence[int]) -> list[str]:
        return [key_of(self._seed, page_id) for page_id in ids]
