"""The interface that SGLang's cache controller calls.

SGLang loads a backend of another package with ``--hicache-storage-backend dynamic`` and refuses a class that
does not inherit from SGLang's ``HiCacheStorage`` (``StorageBackendFactory``).  Inside a server, where that
class is already loaded, it is the base class of the connector; elsewhere the class below is.  So it is with the classes
of the v2 interface (``batch_exists_v2`` and so on), which describe pages of several host pools.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch

from .errors import ConfigError

# What the classes below are in a server.
UPSTREAM_MODULE = "sglang.srt.mem_cache.hicache_storage"
NEEDED = ("register_mem_pool_host", "batch_set_v1", "batch_get_v1", "batch_exists")  # of its HiCacheStorage
TESTED_RELEASES = "0.5.11 to 0.5.23"
CONTEXT_MODULE = "sglang.srt.runtime_context"  # of SGLang 0.5.23


class _PoolName(StrEnum):
    """The host pools that most models have; see ``hicache_nixl.names`` for others."""

    KV = "kv"
    MAMBA = "mamba"
    SWA = "swa"
    INDEXER = "indexer"
    DRAFT = "draft"


class _PoolHitPolicy(StrEnum):
    """Which pages of a pool a prefix needs.

    ``ALL_PAGES``: all.  ``TRAILING_PAGES``: the last ones, as many as the transfer has keys.  ``BLOCK_GROUPS``: limits
    nothing; the pool reports how many pages its leading complete blocks cover.  It holds blocks of ``block_pages`` pages
    in another form, each under ``group_pages`` keys.
    """

    ALL_PAGES = "all_pages"
    TRAILING_PAGES = "trailing_pages"
    BLOCK_GROUPS = "block_groups"


@dataclass
class _PoolTransfer:
    """The pages of one pool in a call, as SGLang 0.5.23 passes them; a connector looks at those described here.

    Attributes
    ----------
    name : str
        Of the pool.
    host_indices : torch.Tensor, optional
        int64 indices into the pool, as many per key as a page has tokens; for set and get.
    keys : list of str, optional
        One per page.
    hit_policy : str
    block_pages, group_pages : int
        For ``BLOCK_GROUPS``.
    """

    name: str
    host_indices: torch.Tensor | None = None
    device_indices: torch.Tensor | None = None
    keys: list[str] | None = None
    hit_policy: str = _PoolHitPolicy.ALL_PAGES
    nodes_to_load: list[Any] | None = None
    indices_from_pool: str | None = None
    block_pages: int = 0
    group_pages: int = 0


@dataclass
class _PoolTransferResult:
    """What ``batch_exists_v2`` found.

    Attributes
    ----------
    kv_hit_pages : int
        The longest prefix, in pages, that can be restored from all pools.
    extra_pool_hit_pages : dict of int
        By pool, ``kv`` among them: the longest prefix as far as this pool is concerned, if there is one.
    restorable_prefix_pages : list of int, optional
        All lengths of prefixes that can be restored from all pools, in ascending order.
    """

    kv_hit_pages: int
    extra_pool_hit_pages: dict[str, int]
    restorable_prefix_pages: list[int] | None = None


class _HiCacheStorage(ABC):
    """A key-value store of KV pages, with the methods that SGLang's cache controller calls."""

    mem_pool_host: Any = None

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Set the host pool whose pages are stored and loaded."""
        self.mem_pool_host = mem_pool_host

    @abstractmethod
    def batch_set_v1(
        self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        """Store one page per key; return one answer per page."""

    @abstractmethod
    def batch_get_v1(
        self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        """Load one page per key; return one answer per page."""

    @abstractmethod
    def batch_exists(self, keys: Sequence[str], extra_info: Any = None) -> int:
        """Return the number of leading pages that are present."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether one page is present."""

    @abstractmethod
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        """Load one value."""

    @abstractmethod
    def batch_get(
        self, keys: Sequence[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[Any]:
        """Load several values."""

    @abstractmethod
    def set(
        self,
        key: str,
        value: Any = None,
        target_location: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Store one value."""

    @abstractmethod
    def batch_set(
        self,
        keys: Sequence[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Store several values."""

    def clear(self) -> None:
        """Remove every page of this connector."""

    def close(self) -> None:
        """Release all resources of this connector."""

    def get_stats(self) -> Any:
        """Return storage metrics: none are collected."""
        return None


if TYPE_CHECKING or UPSTREAM_MODULE not in sys.modules:
    HiCacheStorage = _HiCacheStorage
    PoolName = _PoolName
    PoolTransfer = _PoolTransfer
    PoolTransferResult = _PoolTransferResult
else:  # what a release does not have is refused when a connector is constructed, with a message
    _upstream = sys.modules[UPSTREAM_MODULE]
    HiCacheStorage = getattr(_upstream, "HiCacheStorage", _HiCacheStorage)
    PoolName = getattr(_upstream, "PoolName", _PoolName)
    PoolTransfer = getattr(_upstream, "PoolTransfer", _PoolTransfer)
    PoolTransferResult = getattr(_upstream, "PoolTransferResult", _PoolTransferResult)
PoolHitPolicy = _PoolHitPolicy  # equal to SGLang's; releases before 0.5.23 know only the first two policies


def check_upstream() -> None:
    """Check the SGLang of this process, where there is one.

    Raises
    ------
    ConfigError
        When its ``HiCacheStorage`` lacks a method that the cache controller has to call; names version and methods.
    """
    upstream = sys.modules.get(UPSTREAM_MODULE)
    if upstream is None:
        return
    storage = getattr(upstream, "HiCacheStorage", object)
    if missing := [name for name in NEEDED if not hasattr(storage, name)]:
        version = getattr(sys.modules.get("sglang"), "__version__", "of an unknown version")
        raise ConfigError(
            f"SGLang {version}: its HiCacheStorage has no {' and no '.join(missing)}; expected one of the releases that "
            f"work: {TESTED_RELEASES}"
        )


def kv_cache_dtype() -> str | None:
    """Return ``--kv-cache-dtype`` of the server that this is in, None elsewhere and in releases up to 0.5.13."""
    context = sys.modules.get(CONTEXT_MODULE)
    try:
        return None if context is None else str(context.get_model().kv_cache_dtype)
    except (AttributeError, ValueError):  # SGLang is imported, but this is no server
        return None
