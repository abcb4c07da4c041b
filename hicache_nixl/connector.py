"""HiCacheNixl: the connector that SGLang's cache controller calls."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from . import lifetimes
from .calls import calls_of, one_each
from .config import DEFAULT_STORAGE_DIR, HiCacheStorageConfig, NixlBackendConfig
from .contract import HiCacheStorage, PoolTransferResult, check_upstream
from .errors import PageIndexError
from .host.buffers import Pages
from .interrupts import deferred
from .names import KV, Named, PageNames
from .several_pools import HostPools
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
        check_upstream()
        config = HiCacheStorageConfig.checked(storage_config)
        backend_config = NixlBackendConfig(config.extra_config)
        lifetime = lifetimes.load(backend_config.lifetime, backend_config.plugin)
        names = PageNames(config, plain=lifetime.as_released)
        folder = backend_config.storage_folder(file_path)
        self._calls = calls_of(config, backend_config, folder)
        try:
            self.lifetime = lifetime(backend_config, folder)
        except BaseException:
            self._calls.close()
            raise
        self._calls.watch(self.lifetime)
        self.host_pools = HostPools(names, self.lifetime, self._calls)
        logger.info("HiCacheNixl: lifetime %s", backend_config.lifetime)

    # -- the batch calls of the cache controller -------------------------------------------------------

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Set the host pool; its layout determines whether pages are copied.

        Raises
        ------
        ConfigError, RegistrationError
            An earlier pool and its names stay in use, but its memory may no longer be registered.
        """
        self._calls.run(self._register_pool, mem_pool_host)

    def _register_pool(self, mem_pool_host: Any) -> None:
        group = getattr(
            mem_pool_host, "anchor_entry", None
        )  # SGLang 0.5.11 to 0.5.13 pass all pools of a model here
        kv = mem_pool_host if group is None else group.host_pool
        self.host_pools.register(KV, kv)
        super().register_mem_pool_host(kv)

    @property
    def names(self) -> PageNames:
        """The names of this configuration."""
        return self.host_pools.names

    @property
    def pages(self) -> Pages | None:
        """How pages of the KV pool become buffers; None before it is registered."""
        kv = self.host_pools.kv
        return None if kv is None else kv.pages

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
        return self._calls.guarded("batch_exists", keys, 0, self.host_pools.count_leading, keys)

    def exists(self, key: str) -> bool:
        """Return whether every piece of a page is present."""
        return self.batch_exists([key]) > 0

    # -- several host pools: the v2 interface ----------------------------------------------------------

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: str) -> None:
        """Add a host pool, or replace that of the same name.

        One that cannot be served is logged; then its pages are never stored and never found, nor are those of an earlier
        pool of the same name.  The KV pool is the one of ``register_mem_pool_host``: SGLang passes it to both.
        """
        name = str(getattr(host_pool_name, "value", host_pool_name))
        kv = self.host_pools.kv
        if name != KV or kv is None or host_pool is not self.mem_pool_host:
            self._calls.guarded(f"register pool {name}", (), None, self._register_pool_v2, name, host_pool)

    def _register_pool_v2(self, name: str, host_pool: Any) -> None:
        register = self._register_pool if name == KV else partial(self.host_pools.register, name)
        try:
            register(host_pool)
        except BaseException:
            self.host_pools.refuse(name)
            raise

    def on_host_pools_registered(self) -> None:
        """Log which pools there are, and whether a store has room for a call of each of them.

        A pool that is registered later is served, too.
        """
        logger.info("host pools: %s", ", ".join(self.host_pools.by_name) or "none")
        self._calls.guarded("on_host_pools_registered", (), None, self.host_pools.warn_of_room)

    def batch_exists_v2(
        self, keys: Sequence[str], pool_transfers: Sequence[Any] | None = None, extra_info: Any = None
    ) -> PoolTransferResult:
        """Look up the pages of a prefix in the KV pool and in others.

        Parameters
        ----------
        keys : sequence of str
            One per page of the prefix.
        pool_transfers : sequence of PoolTransfer
            The other pools, each with its ``hit_policy``.  The number of their ``keys`` is that of the trailing pages.

        Returns
        -------
        PoolTransferResult
            SGLang's in a server; see ``hicache_nixl.contract``.  Nothing can be restored while a pool is not registered,
            or has a policy that is unknown.
        """
        return self.host_pools.exists(keys, pool_transfers)

    def batch_set_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> dict[str, list[bool]]:
        """Store pages of several host pools.

        Parameters
        ----------
        transfers : sequence of PoolTransfer
            At most one for each pool, with ``keys`` and ``host_indices``.

        Returns
        -------
        dict of list of bool
            By the name of the pool, one per key, as from ``batch_set_v1``.  No pool affects another.
        """
        return self.host_pools.set(transfers)

    def batch_get_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> dict[str, list[bool]]:
        """Load pages into several host pools; parameters and return value as in ``batch_set_v2``."""
        return self.host_pools.get(transfers)

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

    def get_stats(self) -> Any:
        """Return the transfers since the last call, as SGLang's ``StorageMetrics``; None without ``metrics``."""
        return self._calls.stats()

    # -- the end ---------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Remove the pages of this model and rank, in all host pools that are registered, and nothing else."""
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
        return self.host_pools.registered(KV).set(keys, host_indices)

    def _get_pages(self, keys: Sequence[str], host_indices: torch.Tensor) -> list[bool]:
        return self.host_pools.registered(KV).get(keys, host_indices)

    def _store(self, names: Named, buffers: Sequence[Buffer]) -> list[bool]:
        return self._calls.moved("WRITE", names.keys, self.lifetime.store, names, buffers)

    def _load(self, names: Named, buffers: Sequence[Buffer]) -> list[bool]:
        return self._calls.moved("READ", names.keys, self.lifetime.load, names, buffers)

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
