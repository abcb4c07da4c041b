"""What a test calls."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any

from cache import Cache
from contents import count_outside
from mix import Mix


class Caches:
    """``open`` makes the cache that the other methods use."""

    def open(self, **arguments: Any) -> None:
        """Make a cache with an attached storage; the arguments are those of ``Cache``."""
        self._cache = Cache(**arguments)

    def close(self) -> None:
        """Detach the storage, as a server does that ends, and forget the pools."""
        self.detach()
        del self._cache
        gc.collect()

    def detach(self) -> None:
        """Detach the storage."""
        self._cache.controller.detach_storage_backend()

    def attach(self) -> None:
        """Attach the storage again."""
        self._cache.attach()

    def wipe(self) -> None:
        """Forget all pages of the host pools."""
        self._cache.wipe()

    def threads(self) -> dict[str, bool]:
        """Return which of the controller's threads live."""
        return self._cache.threads()

    def clear(self) -> None:
        """Remove the pages of this model and rank from the storage."""
        self._cache.controller.storage_backend.clear()

    def storage(self) -> str:
        """Return the class that the controller calls."""
        return type(self._cache.controller.storage_backend).__name__

    def back_up(
        self, prompt: int, pages: int, seed: int | None = None, side: int = 0, without: Sequence[str] = ()
    ) -> int:
        """Store the pages of a prompt; return how many the controller counts as stored.

        Parameters
        ----------
        seed : int
            Of the bytes; by default the number of the prompt.
        side : int
            The seed of those in side pools.
        without : list of str
            Side pools of which nothing is stored.
        """
        cache = self._cache
        places = cache.places(pages, slot=0, seed=1)
        started = cache.start_backup(prompt, places, prompt if seed is None else seed, side, without)
        cache.wait_for(lambda: started.number in cache.stored)
        return cache.stored[started.number]

    def prefetch(self, prompt: int, pages: int, seed: int | None = None) -> dict[str, int]:
        """Load the pages of a prompt into other places.

        Returns
        -------
        dict
            ``loaded``: pages that the controller counts; ``right``: those whose bytes are what was stored, up to the
            first that is not; ``outside``: bytes elsewhere in the host pool that are not zero.
        """
        loaded, right = self.prefetch_all(prompt, pages, seed)["kv"]
        places = self._cache.places(pages, slot=0, seed=2)["kv"]
        return {"loaded": loaded, "right": right, "outside": count_outside(self._cache.pool, places)}

    def prefetch_all(
        self, prompt: int, pages: int, seed: int | None = None, side: int = 0
    ) -> dict[str, tuple[int, int]]:
        """Load the pages of a prompt into all pools, to other places.

        Returns
        -------
        dict
            See ``Cache.found``.
        """
        cache = self._cache
        started = cache.start_prefetch(prompt, cache.places(pages, slot=0, seed=2))
        cache.wait_for(lambda: started.number in cache.prefetches.loaded)
        return cache.found(started, prompt if seed is None else seed, side)

    def mix(self, operations: int, pages: int, at_once: int) -> dict[str, int]:
        """Back up and prefetch at the same time, see ``Mix``."""
        return Mix(self._cache, pages, at_once).run(operations)

    def held(self) -> dict[str, Any]:
        """Return what this process has open: the targets of its descriptors, and the number of its threads."""
        targets = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                targets.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:
                continue  # that of the listing
        return {"descriptors": sorted(targets), "threads": len(os.listdir("/proc/self/task"))}
