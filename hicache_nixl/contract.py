"""The interface that SGLang's cache controller calls.

SGLang loads a backend of another package with ``--hicache-storage-backend dynamic`` and refuses a class that
does not inherit from SGLang's ``HiCacheStorage`` (``StorageBackendFactory``).  Inside a server, where that
class is already loaded, it is the base class of the connector; elsewhere the class below is.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

UPSTREAM_MODULE = "sglang.srt.mem_cache.hicache_storage"


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
else:
    HiCacheStorage = sys.modules[UPSTREAM_MODULE].HiCacheStorage
