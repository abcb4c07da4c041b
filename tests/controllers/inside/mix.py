"""Backups and prefetches at the same time."""

from __future__ import annotations

from cache import Cache, Started


class Mix:
    """Back up new prompts and prefetch earlier ones, several at any time.

    Parameters
    ----------
    pages : int
        Of each prompt.
    at_once : int
        Operations.

    Attributes
    ----------
    count : dict of int
        ``stored`` and ``loaded``: operations that moved all pages of the KV pool; ``failed``: those that did not; ``wrong``:
        prefetches that counted a page with other bytes, in any pool.
    """

    def __init__(self, cache: Cache, pages: int, at_once: int):
        self._cache, self._pages = cache, pages
        self._running: list[tuple[str, Started] | None] = [None] * at_once
        self.count = dict.fromkeys(("stored", "loaded", "failed", "wrong"), 0)

    def run(self, operations: int) -> dict[str, int]:
        """Run so many operations, of which each other one is a prefetch; return their count."""
        for operation in range(operations):
            self._cache.wait_for(lambda: self._settle() < len(self._running))
            slot = self._running.index(None)
            places = self._cache.places(self._pages, slot, seed=operation)
            prompt = operation // 2
            if operation % 2 == 0:
                self._running[slot] = ("stored", self._cache.start_backup(prompt, places, prompt, prompt))
            else:
                earlier = max(prompt - len(self._running), 0)
                self._running[slot] = ("loaded", self._cache.start_prefetch(earlier, places))
        self._cache.wait_for(lambda: self._settle() == 0)
        return self.count

    def _settle(self) -> int:
        """Count the operations that ended; return the number of the others."""
        for slot, running in enumerate(self._running):
            if running is None:
                continue
            kind, started = running
            done = self._cache.stored if kind == "stored" else self._cache.prefetches.loaded
            if started.number in done:
                self.count[kind if done[started.number] == self._pages else "failed"] += 1
                self.count["wrong"] += kind == "loaded" and self._is_wrong(started)
                self._running[slot] = None
        return len(self._running) - self._running.count(None)

    def _is_wrong(self, started: Started) -> bool:
        found = self._cache.found(started, started.prompt, started.prompt)
        return any(right < counted for counted, right in found.values())
