"""HiCacheNixl: the connector that SGLang's cache controller calls."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch

from . import lifetimes
from .calls import Calls, one_each
from .config import DEFAULT_STORAGE_DIR, HiCacheStorageConfig, NixlBackendConfig
from .contract import HiCacheStorage
from .errors import PageIndexError
from .host.buffers import Pages, pages_of
from .interrupts import deferred
from .names import Named, PageNames
from .transport.registration import Buffer

logger = logging.getLogger(__name__)


class HiCacheNixl(HiCacheStorage):
    """Stores KV pages through a lifetime, which owns the storage; see ``hicache_nixl.lifetimes``.

    Names are SGLang's, see ``hicache_nixl.names``.  A call that fails logs one line and returns False (or
    None, or 0); only the constructor and ``register_mem_pool_host`` raise.  An interrupt is raised when the
    call has released what it holds, see ``hicache_nixl.interrupts``.

    Parameters
    ----------
    storage_config : HiCacheStorageConfig
        Ours or SGLang's.  ``extra_config`` chooses plugin and lifetime, see ``NixlBackendConfig``.
    file_path : str
        Storage folder; ``SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR`` overrides it.  A dict, which SGLang's
        dynamic loader passes, means the default.

    Raises
    ------
    ConfigError, PluginError, NixlMissingError
        When the configuration cannot work; the message names the key and the expected values.

    Examples
    --------
    >>> import tempfile, torch
    >>> config = HiCacheStorageConfig(0, 1, 0, 1, 0, 1, False, False, True, "my/model")
    >>> with tempfile.TemporaryDirectory() as folder, HiCacheNixl(config, folder) as store:
    ...     store.set("page", torch.arange(4)), store.get("page", torch.zeros(4, dtype=torch.int64))
    (True, tensor([0, 1, 2, 3]))
    """

    def __init__(self, storage_config: Any, file_path: Any = DEFAULT_STORAGE_DIR):
        deferred(self._construct, storage_config, file_path)

    def _construct(self, storage_config: Any, file_path: Any) -> None:
        config = HiCacheStorageConfig.checked(storage_config)
        backend_config = NixlBackendConfig(config.extra_config)
        lifetime = lifetimes.load(backend_config.lifetime)
        self.names = PageNames(config, plain=lifetime.as_released)
        self.pages: Pages | None = None
        self.lifetime = lifetime(backend_config, backend_config.storage_folder(file_path))
        self._calls = Calls()
        logger.info("HiCacheNixl: lifetime %s", backend_config.lifetime)

    # -- the batch calls of the cache controller -------------------------------------------------------

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Set the host pool; its layout determines whether pages are copied.

        Raises
        ------
        ConfigError, RegistrationError
            An earlier pool and its names stay in use, but its memory need not be registered any more.
        """
        self._calls.run(self._register_pool, mem_pool_host)

    def _register_pool(self, mem_pool_host: Any) -> None:
        pages = pages_of(mem_pool_host, self.lifetime.stages_copies, self.lifetime.direct)
        names = copy.copy(self.names)
        names.for_pool(mem_pool_host, pages.zero_copy)
        self.lifetime.check_pages(pages.piece_sizes, pages.most)
        self.lifetime.register_pool(pages.memory)  # while the earlier pool still exists
        super().register_mem_pool_host(mem_pool_host)
        self.pages, self.names = pages, names

    @property
    def is_zero_copy(self) -> bool:
        """Whether pages are stored and loaded without a copy."""
        return self.pages is not None and self.pages.zero_copy

    def batch_set_v1(
        self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        """Store pages of the host pool.

        Parameters
        ----------
        keys : sequence of str
            One per page.
        host_indices : torch.Tensor
            int64 token indices into the host pool, ``page_size`` per key.

        Returns
        -------
        list of bool
            One per page.  A page that fails does not affect the others, except in ``leaky`` and
            ``try_finally``, where it fails the batch, as in every release of SGLang up to 0.5.23.
        """
        failed = one_each(False, keys)
        return self._calls.guarded("batch_set_v1", keys, failed, self._set_pages, keys, host_indices)

    def batch_get_v1(
        self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        """Load pages into the host pool; parameters and return value as in ``batch_set_v1``."""
        failed = one_each(False, keys)
        return self._calls.guarded("batch_get_v1", keys, failed, self._get_pages, keys, host_indices)

    def batch_exists(self, keys: Sequence[str], extra_info: Any = None) -> int:
        """Return the number of leading pages whose pieces are all present with all their bytes.

        ``leaky`` and ``try_finally`` do not check the bytes, like all releases of SGLang up to 0.5.23.
        """
        return self._calls.guarded("batch_exists", keys, 0, self._count_leading, keys)

    def exists(self, key: str) -> bool:
        """Return whether every piece of a page is present."""
        return self.batch_exists([key]) > 0

    # -- tensors and (address, size) -------------------------------------------------------------------

    def get(self, key: str, target_location: Any = None, target_sizes: int | None = None) -> Any:
        """Load one value into a tensor and return it, or into an address and return None."""
        sizes = None if target_sizes is None else [target_sizes]
        result = self.batch_get([key], None if target_location is None else [target_location], sizes)
        return result[0]

    def batch_get(
        self,
        keys: Sequence[str],
        target_locations: Sequence[Any] | None = None,
        target_sizes: Sequence[int] | None = None,
    ) -> list[Any]:
        """Load values into tensors, or into addresses of the given sizes.

        Returns
        -------
        list
            The tensors, or None for each when one could not be loaded.  For addresses, always None, as in
            SGLang.
        """
        nothing = one_each(None, keys)
        return self._calls.guarded(
            "batch_get", keys, nothing, self._get_values, keys, target_locations, target_sizes
        )

    def set(
        self,
        key: str,
        value: torch.Tensor | None = None,
        target_location: int | None = None,
        target_sizes: int | None = None,
    ) -> bool:
        """Store one tensor, or the bytes at an address."""
        if target_location is not None and target_sizes is not None:
            return self.batch_set([key], None, [target_location], [target_sizes])
        return self.batch_set([key], None if value is None else [value])

    def batch_set(
        self,
        keys: Sequence[str],
        values: Sequence[torch.Tensor] | None = None,
        target_locations: Sequence[int] | None = None,
        target_sizes: Sequence[int] | None = None,
    ) -> bool:
        """Store tensors, or the bytes at addresses; return whether all were stored."""
        return self._calls.guarded(
            "batch_set", keys, False, self._set_values, keys, values, target_locations, target_sizes
        )

    # -- registration ----------------------------------------------------------------------------------

    def register_buffers(self, buffers: torch.Tensor | Sequence[Buffer]) -> Any:
        """Register host memory with NIXL; return its registration, or None."""
        listed = buffers if isinstance(buffers, list | tuple) else [buffers]
        register = self.lifetime.register_buffers
        return self._calls.guarded("register_buffers", listed, None, register, buffers)

    def register_files(self, file_paths: Sequence[str]) -> Any:
        """Open files and register them with NIXL.

        Returns
        -------
        object
            In ``scoped`` an owner with ``close()``, otherwise NIXL's list; None when it failed, or when pages
            are not files.
        """
        register = self.lifetime.register_files
        return self._calls.guarded("register_files", file_paths, None, register, file_paths)

    def register_objects(self, keys: Sequence[str], sizes: Sequence[int] | None = None) -> Any:
        """Register objects with NIXL; return their registration, or None."""
        sizes = sizes or one_each(0, keys)
        register = self.lifetime.register_objects
        return self._calls.guarded("register_objects", keys, None, register, keys, sizes)

    # -- the end ---------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Remove the pages of this model and rank, and nothing else."""
        self._calls.guarded("clear", (), 0, self.lifetime.clear, self.names)

    def close(self) -> None:
        """Wait for calls of other threads, then close the lifetime.

        May be called twice; later calls answer False.
        """
        self._calls.close()
        deferred(self.lifetime.close)

    def __enter__(self) -> HiCacheNixl:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- pages -----------------------------------------------------------------------------------------

    def _set_pages(self, keys: Sequence[str], host_indices: torch.Tensor) -> list[bool]:
        pages, results = self._host_pages(), []
        for names, starts in self._batches(pages, keys, host_indices):
            with pages.leaving(starts) as buffers:
                results += self._store(names, buffers)
        return results

    def _get_pages(self, keys: Sequence[str], host_indices: torch.Tensor) -> list[bool]:
        pages, results = self._host_pages(), []
        for names, starts in self._batches(pages, keys, host_indices):
            with pages.arriving(starts) as buffers:
                loaded = self._load(names, buffers)
                pages.land(starts, buffers, loaded)
                results += loaded
        return results

    def _host_pages(self) -> Pages:
        if self.pages is None:
            raise PageIndexError("no host pool: call register_mem_pool_host first")
        return self.pages

    def _batches(self, pages: Pages, keys: Sequence[str], host_indices: torch.Tensor) -> Iterator[Any]:
        """Return names and places of the pages of each transfer, after checking all arguments."""
        starts = pages.starts(len(keys), host_indices)
        return pages.batches(self.names.of_pages(keys, pages.zero_copy), starts)

    def _store(self, names: Named, buffers: Sequence[Buffer]) -> list[bool]:
        return self._calls.moved("WRITE", names.keys, self.lifetime.store, names, buffers)

    def _load(self, names: Named, buffers: Sequence[Buffer]) -> list[bool]:
        return self._calls.moved("READ", names.keys, self.lifetime.load, names, buffers)

    def _count_leading(self, keys: Sequence[str]) -> int:
        names = self.names.of_pages(keys, self.is_zero_copy)
        found = self.lifetime.present(names, self.pages.piece_sizes if self.pages else None)
        leading = found if isinstance(found, list) else list(takewhile(bool, found))
        return leading.index(False) if False in leading else len(leading)

    # -- values ----------------------------------------------------------------------------------------

    def _get_values(
        self, keys: Sequence[str], targets: Sequence[Any] | None, sizes: Sequence[int] | None
    ) -> list[Any]:
        if not keys:
            return []
        if not targets:
            return [None] * len(keys)  # older callers in SGLang pass no target
        if len(targets) != len(keys) or (sizes and len(sizes) != len(keys)):
            raise PageIndexError(f"{len(keys)} keys, {len(targets)} targets, {len(sizes or targets)} sizes")
        buffers = list(zip(targets, sizes, strict=True)) if sizes else list(targets)
        loaded = all(self._load(self.names.of_values(keys), buffers))
        return list(targets) if loaded and not sizes else [None] * len(keys)

    def _set_values(
        self,
        keys: Sequence[str],
        values: Sequence[Buffer] | None,
        addresses: Sequence[int] | None,
        sizes: Sequence[int] | None,
    ) -> bool:
        buffers = values or ()
        if not buffers and addresses and sizes and len(addresses) == len(sizes):
            buffers = list(zip(addresses, sizes, strict=True))
        if not keys or len(buffers) != len(keys):
            raise PageIndexError(f"{len(keys)} keys for {len(buffers)} values")
        return all(self._store(self.names.of_values(keys), buffers))
