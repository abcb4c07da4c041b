"""A host pool, those beside it and their real controller, with the storage of this package."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import releases
import torch
from contents import count_right, fill, tokens_of
from releases import PAGE, WINDOW, Prefetches

PATIENCE = 60.0  # seconds for the threads of a controller


@dataclass(frozen=True)
class Started:
    """A backup or a prefetch of a prompt.

    Attributes
    ----------
    number : int
        By which the controller knows it.
    places : dict of torch.Tensor
        Of its pages in the pools, by the name of the pool.
    """

    prompt: int
    number: int
    places: dict[str, torch.Tensor]


class Cache:
    """What a scheduler has of a hierarchical cache, without the tree.

    Parameters
    ----------
    controller : str
        ``HiCacheController`` or ``HybridCacheController``.
    kind : str
        ``multi_head`` or ``mla``.
    pages : int
        Of the device pool; the host pool has twice as many.
    dtype : str
        Of torch.
    options : dict
        The extra config.
    side_pools : list of str
        See ``side_pools.py``; in 0.5.11 ``draft``.
    """

    def __init__(
        self,
        controller: str,
        kind: str,
        layout: str,
        pages: int,
        dtype: str,
        options: dict[str, Any],
        side_pools: list[str],
    ):
        loader = {"backend_name": "hicache_nixl", "module_path": "hicache_nixl.connector"}
        self._extra = {**loader, "class_name": "HiCacheNixl", "interface_v1": 1, **options}
        device = releases.device_pool(kind, pages, dtype)
        group = releases.host_pool(device, layout)
        self.pool = group.anchor_entry.host_pool if hasattr(group, "anchor_entry") else group
        self.side_pools = _side_pools(side_pools, pages, layout)
        for side in self.side_pools:
            side.join_group(group)
        self.controller = releases.make_controller(controller, device, group)
        for side in self.side_pools:
            side.join_controller(self.controller)
        self.wipe()
        self.attach()

    def attach(self) -> None:
        """Attach the storage."""
        releases.attach(self.controller, self._extra)
        self.stored: dict[int, int] = {}  # pages, by the number of a backup
        self.prefetches = Prefetches(self.controller)

    def wipe(self) -> None:
        """Forget all pages."""
        self.pool.kv_buffer.zero_()
        for side in self.side_pools:
            side.zero()

    def places(self, pages: int, slot: int, seed: int) -> dict[str, torch.Tensor]:
        """Return places in all pools for the pages of a prompt; in the KV pool in a random order.

        Prompts of the same size in different slots have different places.
        """
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed)) + slot * pages
        kv = (order[:, None] * PAGE + torch.arange(PAGE)).flatten()
        return {"kv": kv, **{str(side.name): side.places(kv, slot * WINDOW) for side in self.side_pools}}

    def start_backup(
        self,
        prompt: int,
        places: dict[str, torch.Tensor],
        seed: int,
        side: int = 0,
        without: Sequence[str] = (),
    ) -> Started:
        """Put the pages of a prompt into the host pools, with the bytes of two seeds, and have them stored."""
        fill(self.pool, places["kv"], seed)
        tokens = tokens_of(prompt, len(places["kv"]) // PAGE)
        keys, transfers = releases.page_hashes(tokens), []
        for other in self.side_pools:
            at = places[str(other.name)]
            fill(other.pool, at, side)
            if other.name not in without:
                transfers.append(other.transfer(keys, at))
        more = {"extra_pools": transfers} if any(transfers) else {}
        return Started(prompt, self.controller.write_storage(places["kv"], tokens, keys, **more), places)

    def start_prefetch(self, prompt: int, places: dict[str, torch.Tensor]) -> Started:
        """Have the pages of a prompt loaded into places of all pools."""
        tokens = tokens_of(prompt, len(places["kv"]) // PAGE)
        unknown = ["__placeholder__"] * len(
            tokens
        )  # as the cache asks: it does not know how far the storage has it
        transfers = [other.transfer(unknown, places[str(other.name)]) for other in self.side_pools]
        number = self.prefetches.start(tokens, places["kv"], transfers if any(transfers) else ())
        return Started(prompt, number, places)

    def found(self, started: Started, seed: int, side: int) -> dict[str, tuple[int, int]]:
        """Return for each pool the pages of a prefetch that the controller counts, and those with the bytes of the seeds.

        The controller counts those of ``draft`` with the KV pool.
        """
        counted, hits = self.prefetches.loaded[started.number], self.prefetches.hits.get(started.number, {})
        found = {"kv": (counted, count_right(self.pool, started.places["kv"], seed))}
        for other in self.side_pools:
            name = str(other.name)
            found[name] = (hits.get(name, 0), count_right(other.pool, started.places[name], side))
        return found

    def advance(self) -> None:
        """Do what the scheduler does between two batches."""
        while not self.controller.ack_backup_queue.empty():
            operation = self.controller.ack_backup_queue.get()
            self.stored[operation.id] = operation.completed_tokens // PAGE
        self.prefetches.advance()

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Advance until something is done."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer; threads that live: {self.threads()}")
            self.advance()
            time.sleep(0.0005)

    def threads(self) -> dict[str, bool]:
        """Return which of the controller's threads live."""
        names = ("backup_thread", "prefetch_thread", "prefetch_io_aux_thread")
        return {name: getattr(self.controller, name).is_alive() for name in names}


def _side_pools(names: Sequence[str], pages: int, layout: str) -> list[Any]:
    if not names:
        return []
    if not releases.HAS_CONTEXT:
        return [releases.Draft(pages, layout)]
    from side_pools import make  # what it imports is not in 0.5.11

    return make(names, pages, layout)
