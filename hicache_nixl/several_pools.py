"""The host pools of a model, and the calls of SGLang's controller that concern several of them: the v2 interface.

Beside the KV pool (``kv``) a model may have pools for the state of Mamba layers, for sliding windows, for the indexer of
sparse attention, and those of a draft model.  The page of a key has a part in each of them, which is stored under a
name, and with a layout and size, of that pool.

The rules are those of ``hicache_storage.py`` and of its ``file`` backend in SGLang 0.5.23.  A pool may not be
registered, or its pages cannot be moved or looked up.  The answer for such a pool is False, or 0 pages; one line is
logged and the other pools go on.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from .calls import Calls, is_list, one_each
from .contract import PoolHitPolicy, PoolName, PoolTransferResult
from .errors import ConfigError, PageIndexError
from .host.buffers import LARGEST_CALL, Pages, Slots, pages_of
from .lifetimes.protocol import Lifetime
from .names import KV, Named, PageNames, without_memory

logger = logging.getLogger(__name__)

Verdict = tuple[int, Collection[int] | None]


@dataclass(frozen=True)
class HostPool:
    """A host pool whose pages are stored and loaded.

    Attributes
    ----------
    what : str
        What is said of it in the log.
    pages : Pages
        How they become buffers.
    named : Named
        How they are named; without keys.
    """

    what: str
    pages: Pages
    named: Named
    lifetime: Lifetime
    calls: Calls

    def set(self, keys: Sequence[str], host_indices: torch.Tensor, most: int | None = None) -> list[bool]:
        """Store pages, at most so many in one transfer; return for each whether it was."""
        results: list[bool] = []
        for names, starts in self._batches(keys, host_indices, most):
            with self.pages.leaving(starts) as buffers:
                results += self.calls.moved(
                    f"WRITE{self.what}", names.keys, self.lifetime.store, names, buffers
                )
        return results

    def get(self, keys: Sequence[str], host_indices: torch.Tensor, most: int | None = None) -> list[bool]:
        """Load pages, at most so many in one transfer; return for each whether it was."""
        results: list[bool] = []
        for names, starts in self._batches(keys, host_indices, most):
            with self.pages.arriving(starts) as buffers:
                loaded = self.calls.moved(f"READ{self.what}", names.keys, self.lifetime.load, names, buffers)
                self.pages.land(starts, buffers, loaded)
                results += loaded
        return results

    def present(self, keys: Sequence[str]) -> Iterable[bool]:
        """Return for each page whether it is stored; maybe lazily."""
        return self.lifetime.present(self.named.of(keys), self.pages.piece_sizes)

    def _batches(self, keys: Sequence[str], host_indices: torch.Tensor, most: int | None) -> Iterator[Any]:
        """Return names and places of the pages of each transfer, after checking all arguments."""
        starts = self.pages.starts(len(keys), host_indices)
        return self.pages.batches(self.named.of(keys), starts, most)


class HostPools:
    """The pools of one connector by name.

    Parameters
    ----------
    names : PageNames
        Replaced, not changed, when a pool is registered.
    lifetime : Lifetime
    calls : Calls
    """

    def __init__(self, names: PageNames, lifetime: Lifetime, calls: Calls):
        self.names, self._lifetime, self._calls = names, lifetime, calls
        self.by_name: dict[str, HostPool] = {}
        self._refused: set[str] = set()
        self._slots, self._registering = Slots(), threading.Lock()

    @property
    def kv(self) -> HostPool | None:
        """The KV pool; None before it is registered."""
        return self.by_name.get(KV)

    def register(self, name: str, host_pool: Any) -> None:
        """Add a pool, in place of any earlier one of this name.

        Raises
        ------
        ConfigError, RegistrationError
            The earlier pool and its names stay in use, but its memory may no longer be registered.
        """
        with self._registering:
            self._register(name, host_pool)
            self._refused.discard(name)

    def _register(self, name: str, host_pool: Any) -> None:
        kept = self._lifetime
        pages = pages_of(host_pool, kept.stages_copies, kept.direct, kept.even_pieces, self._slots)
        names = copy.copy(self.names)
        if name == KV:
            names.for_pool(pages.pool, pages.zero_copy)
            named = names.of_pages((), pages.zero_copy)
        elif without_memory(pages.pool):
            raise ConfigError(
                f"pool {name}: a {type(host_pool).__name__} has no memory, as only a KV pool may"
            )
        else:
            named = names.for_other_pool(name, pages.pool, len(pages.piece_sizes))
        kept.check_pages((pages.piece_sizes, pages.most))
        kept.register_pool(pages.memory, name)  # while the earlier pool still exists
        what = "" if name == KV else f" (pool {name})"
        pool = HostPool(what, pages, named, kept, self._calls)
        self.by_name = {**self.by_name, name: pool}
        self.names = names

    def refuse(self, name: str) -> None:
        """Serve no pool of a name, not even an earlier one: the server uses one that could not be registered."""
        with self._registering:
            self._refused.add(name)
            self.by_name = {other: pool for other, pool in self.by_name.items() if other != name}

    def registered(self, name: str) -> HostPool:
        """Return a pool.

        Raises
        ------
        PageIndexError
            When it was not registered.
        """
        if name in self.by_name:
            return self.by_name[name]
        method = "register_mem_pool_host" if name == KV else "register_mem_host_pool_v2"
        why = "it could not be registered" if name in self._refused else f"call {method} first"
        raise PageIndexError(f"no host pool{'' if name == KV else f' {name}'}: {why}")

    def warn_of_room(self) -> None:
        """Log a warning if the largest calls of all pools cannot be stored together."""
        try:
            self._lifetime.check_pages(
                *((pool.pages.piece_sizes, pool.pages.most) for pool in self.by_name.values())
            )
        except ConfigError as error:
            logger.warning("a page is useless where it is stored in some of its host pools only: %s", error)

    def count_leading(self, keys: Sequence[str]) -> int:
        """Return the number of leading pages of the KV pool that are stored."""
        if self.kv is None and KV not in self._refused:
            return _leading(self._lifetime.present(self.names.of_pages(keys, False), None))
        return _leading(self.registered(KV).present(keys))

    # -- the calls that concern several pools ----------------------------------------------------------

    def set(self, transfers: Any) -> dict[str, list[bool]]:
        """Store the pages of several pools, see ``HiCacheNixl.batch_set_v2``."""
        return self._move("batch_set_v2", transfers, HostPool.set)

    def get(self, transfers: Any) -> dict[str, list[bool]]:
        """Load the pages of several pools, see ``HiCacheNixl.batch_get_v2``."""
        return self._move("batch_get_v2", transfers, HostPool.get)

    def _move(
        self, operation: str, transfers: Any, action: Callable[..., list[bool]]
    ) -> dict[str, list[bool]]:
        listed = self._listed(operation, transfers)
        failed = {_key(transfer): one_each(False, _keys(transfer)) for transfer in listed}
        return self._calls.guarded(operation, listed, failed, self._move_each, operation, listed, action)

    def _move_each(
        self, operation: str, transfers: Sequence[Any], action: Callable[..., list[bool]]
    ) -> dict[str, list[bool]]:
        """Move the pages of one pool after the other; each logs its own error."""
        results = {}
        for transfer in transfers:
            keys, of_pool = _keys(transfer), f"{operation} (pool {_name(transfer)})"
            failed = one_each(False, keys)
            results[_key(transfer)] = self._calls.part(
                of_pool, keys, failed, self._move_one, transfer, action
            )
        return results

    def _move_one(self, transfer: Any, action: Callable[..., list[bool]]) -> list[bool]:
        pool, keys = self.registered(_name(transfer)), _keys(transfer)
        if keys and transfer.host_indices is None:
            raise PageIndexError(f"{len(keys)} keys and no host indices")
        return action(pool, keys, transfer.host_indices, LARGEST_CALL) if keys else []

    def exists(self, keys: Sequence[str], transfers: Any) -> PoolTransferResult:
        """Look up the pages of several pools, see ``HiCacheNixl.batch_exists_v2``."""
        nothing = _result({}, [])
        return self._calls.guarded("batch_exists_v2", keys, nothing, self._exists, keys, transfers)

    def _exists(self, keys: Sequence[str], transfers: Any) -> PoolTransferResult:
        kv_pages = self._calls.part("batch_exists_v2", keys, 0, self.count_leading, keys)
        hits: dict[str, int] = {PoolName.KV: kv_pages} if kv_pages else {}
        restorable, refused = list(range(1, kv_pages + 1)), False
        for transfer in self._listed("batch_exists_v2", transfers):
            gates = getattr(transfer, "hit_policy", None) != PoolHitPolicy.BLOCK_GROUPS
            if gates and not restorable:
                continue
            of_pool = f"batch_exists_v2 (pool {_name(transfer)})"
            verdict = self._calls.part(of_pool, keys, None, self._verdict, transfer, keys, kv_pages)
            if verdict is None:
                refused |= gates
                continue
            pages, ends = verdict
            if pages:
                hits[_key(transfer)] = pages
            if ends is not None:
                restorable = [end for end in restorable if end in ends]
        return _result(hits, [] if refused else restorable)

    def _verdict(self, transfer: Any, keys: Sequence[str], kv_pages: int) -> Verdict:
        """Return how many leading pages a pool has, and the prefixes (in pages) that can be restored from it.

        None instead of prefixes when the pool has no say in it.
        """
        pool, policy = self.registered(_name(transfer)), transfer.hit_policy
        if policy == PoolHitPolicy.ALL_PAGES:
            pages = _leading(pool.present(keys[:kv_pages]))
            return pages, range(1, pages + 1)
        if policy == PoolHitPolicy.TRAILING_PAGES:
            ends = _window_ends(pool.present(keys[:kv_pages]), len(transfer.keys or ()) or 1)
            return max(ends, default=0), ends
        if policy == PoolHitPolicy.BLOCK_GROUPS:
            return _block_pages(pool, keys, transfer.block_pages, transfer.group_pages), None
        known = ", ".join(policy.value for policy in PoolHitPolicy)
        raise ConfigError(f"hit policy {str(policy)!r} is unknown; expected one of {known}")

    def _listed(self, operation: str, transfers: Any) -> Sequence[Any]:
        if transfers is None or is_list(transfers):
            return transfers or ()
        logger.error("%s: expected a list of transfers, got %s", operation, type(transfers).__name__)
        return ()


def _result(hits: dict[str, int], restorable: list[int]) -> PoolTransferResult:
    result = PoolTransferResult(restorable[-1] if restorable else 0, hits)
    # set here, because older releases' constructor does not take it
    result.restorable_prefix_pages = restorable
    return result


def _keys(transfer: Any) -> Any:
    keys = getattr(transfer, "keys", None)
    return [] if keys is None else keys


def _name(transfer: Any) -> str:
    """Return the name of the pool of a transfer, whose type may be an enumeration of SGLang's."""
    name = getattr(transfer, "name", None)
    return str(getattr(name, "value", name))


def _key(transfer: Any) -> str:
    """Return the name of the pool as it was given."""
    name = getattr(transfer, "name", None)
    return name if isinstance(name, str) else str(name)


def _leading(found: Iterable[bool]) -> int:
    """Return the number of pages before the first that is missing."""
    leading = found if isinstance(found, list) else list(takewhile(bool, found))
    return leading.index(False) if False in leading else len(leading)


def _window_ends(found: Iterable[bool], window: int) -> set[int]:
    """Return the lengths of prefixes whose last ``window`` pages are all present.

    Examples
    --------
    >>> _window_ends([True, False, True, True, True], 2)
    {1, 4, 5}
    """
    ends, run = set(), 0
    for end, there in enumerate(found, start=1):
        run = run + 1 if there else 0
        if run >= min(window, end):
            ends.add(end)
    return ends


def _block_pages(pool: HostPool, keys: Sequence[str], block: int, group: int) -> int:
    """Return the pages that the leading complete groups cover: each of a block of pages, under its last keys.

    SGLang 0.5.23 defines this policy and has no backend that implements it.  A key is a hash of its page and of all
    pages before.  So blocks that differ in any page differ in their last keys.
    """
    if not 0 < group <= block:
        raise ConfigError(f"block_groups: {group} keys for a block of {block} pages")
    ends = range(block, len(keys) + 1, block)
    found = list(pool.present([key for end in ends for key in keys[end - group : end]])) if ends else []
    return _leading([all(found[first : first + group]) for first in range(0, len(found), group)]) * block
