"""HiCacheNixl: the connector that SGLang's cache controller calls."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import cycle, takewhile
from typing import Any

import torch

from . import lifetimes
from .calls import Calls
from .config import (
    DEFAULT_STORAGE_DIR,
    OBJ_PLUGINS,
    RELEASED,
    STORAGE_DIR_VARIABLE,
    HiCacheStorageConfig,
    NixlBackendConfig,
)
from .contract import HiCacheStorage
from .errors import ConfigError, FileError, PageIndexError, TransferError
from .host.buffers import Pages, pages_of
from .names import PageNames
from .transport.agent import make_backend
from .transport.files import NixlFileManager
from .transport.registration import Buffer, NixlRegistration, buffer_sizes

logger = logging.getLogger(__name__)


class HiCacheNixl(HiCacheStorage):
    """Stores KV pages through NIXL, one file or object per piece of a page.

    Names are SGLang's, see ``hicache_nixl.names``.  A transfer that fails answers False and logs one line;
    nothing raises but the constructor,
    ``register_mem_pool_host``, and KeyboardInterrupt.

    Parameters
    ----------
    storage_config : HiCacheStorageConfig
        Ours or SGLang's.  ``extra_config`` chooses plugin and lifetime, see ``NixlBackendConfig``.
    file_path : str
        Storage folder; ``SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR`` goes before it.  SGLang's dynamic loader
        passes a dict of its own here, which stands for the default.

    Raises
    ------
    ConfigError, PluginError, NixlMissingError
        When the configuration cannot work; the message names the key and the values that it takes.

    Examples
    --------
    >>> import tempfile, torch
    >>> config = HiCacheStorageConfig(0, 1, 0, 1, 0, 1, False, False, True, "my/model")
    >>> with tempfile.TemporaryDirectory() as folder, HiCacheNixl(config, folder) as store:
    ...     store.set("page", torch.arange(4)), store.get("page", torch.zeros(4, dtype=torch.int64))
    (True, tensor([0, 1, 2, 3]))
    """

    def __init__(self, storage_config: Any, file_path: Any = DEFAULT_STORAGE_DIR):
        config = HiCacheStorageConfig.checked(storage_config)
        self.backend_config = NixlBackendConfig(config.extra_config)
        # leaky and try_finally stand for releases, and name and answer as those do
        self._as_released = self.backend_config.lifetime in RELEASED
        self.names = PageNames(config, plain=self._as_released)
        self.pages: Pages | None = None
        backend = make_backend(self.backend_config)
        self.file_manager: NixlFileManager | None = None
        if backend.plugin not in OBJ_PLUGINS:
            folder = file_path if isinstance(file_path, str | os.PathLike) else DEFAULT_STORAGE_DIR
            self.file_manager = NixlFileManager(
                os.environ.get(STORAGE_DIR_VARIABLE) or os.fspath(folder), self.backend_config.use_direct_io
            )
        self.registration = NixlRegistration(backend)
        self._calls = Calls()
        self._one_at_a_time = threading.Lock() if backend.keeps_failed_io else contextlib.nullcontext()
        self.lifetime = lifetimes.BY_NAME[self.backend_config.lifetime](self.registration, self.file_manager)
        logger.info("HiCacheNixl: plugin %s, lifetime %s", backend.plugin, self.backend_config.lifetime)

    # -- the batch calls of the cache controller -------------------------------------------------------

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Take the host pool; its layout decides between zero-copy and contiguous copies.

        Raises
        ------
        ConfigError, RegistrationError
            The pool before it, if there was one, stays with its names; its memory is not registered any more.
        """
        direct = self.file_manager is not None and self.file_manager.direct
        pages, names = pages_of(mem_pool_host, not self._as_released, direct), copy.copy(self.names)
        names.for_pool(mem_pool_host, pages.zero_copy)
        self.lifetime.register_pool(pages.memory)  # while what was registered before is still there
        super().register_mem_pool_host(mem_pool_host)
        self.pages, self.names = pages, names

    @property
    def is_zero_copy(self) -> bool:
        """Whether pages move from and to their place in the pool."""
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
            One per page.  A page that fails leaves the others alone, except in ``leaky`` and
            ``try_finally``, where it fails the batch, as in every release of SGLang up to 0.5.23.
        """
        return self._calls.guarded(
            "batch_set_v1", keys, [False] * len(keys), self._set_pages, keys, host_indices
        )

    def batch_get_v1(
        self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        """Load pages into the host pool; parameters and answer as in ``batch_set_v1``."""
        return self._calls.guarded(
            "batch_get_v1", keys, [False] * len(keys), self._get_pages, keys, host_indices
        )

    def batch_exists(self, keys: Sequence[str], extra_info: Any = None) -> int:
        """Return the number of leading pages of which every piece is present with all its bytes.

        ``leaky`` and ``try_finally`` do not look at the bytes, as no release of SGLang up to 0.5.23 does.
        """
        return self._calls.guarded("batch_exists", keys, 0, self._count_leading, keys)

    def exists(self, key: str) -> bool:
        """Tell whether every piece of a page is present."""
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
            The tensors, or all None when one could not be loaded.  SGLang's contract answers None for
            addresses in either case.
        """
        nothing = [None] * len(keys)
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
        """Store tensors, or the bytes at addresses; True when all were stored."""
        return self._calls.guarded(
            "batch_set", keys, False, self._set_values, keys, values, target_locations, target_sizes
        )

    # -- registration ----------------------------------------------------------------------------------

    def register_buffers(self, buffers: torch.Tensor | Sequence[Buffer]) -> Any:
        """Register host memory with NIXL; its registration, or None."""
        return self._calls.guarded(
            "register_buffers",
            buffers if isinstance(buffers, list | tuple) else [buffers],
            None,
            lambda: self.registration.register_buffers(buffers),
        )

    def register_files(self, file_paths: Sequence[str]) -> Any:
        """Open files and register them with NIXL; an owner with ``close()`` in ``scoped``, else NIXL's list.

        None when it failed, and with OBJ, which has no files.
        """
        if self.file_manager is None:
            logger.error("register_files opens files, and OBJ has none: use register_objects")
            return None
        return self._calls.guarded(
            "register_files", file_paths, None, self.lifetime.register_files, file_paths
        )

    def register_objects(self, keys: Sequence[str], sizes: Sequence[int] | None = None) -> Any:
        """Register objects with NIXL; their registration, or None."""
        return self._calls.guarded("register_objects", keys, None, self._register_objects, keys, sizes)

    # -- the end ---------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Remove the pages of this model and rank; other files of the folder stay."""
        self._calls.guarded("clear", (), None, self._clear)

    def close(self) -> None:
        """Wait for calls of other threads, then release the agent and what the lifetime owns.

        May be called twice; later calls answer False.
        """
        self._calls.close()
        try:
            self.lifetime.close()
        finally:
            self.registration.close()

    def __enter__(self) -> HiCacheNixl:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- the one place where bytes move ----------------------------------------------------------------

    def _execute_transfer(self, buffers: Sequence[Buffer], keys: Sequence[str], direction: str) -> bool:
        """Move bytes between buffers and files (paths) or objects (keys).

        Parameters
        ----------
        direction : str
            ``"WRITE"`` to storage, ``"READ"`` from it.
        """
        return all(self._move(buffers, keys, direction))

    def _move(self, buffers: Sequence[Buffer], keys: Sequence[str], direction: str) -> list[bool | None]:
        """Move bytes as ``_execute_transfer`` does, with an answer per buffer; None where nothing was touched."""
        failed: list[bool | None] = [False] * max(len(keys), 1)
        return self._calls.guarded(direction, keys, failed, self._transfer, buffers, keys, direction)

    def _transfer(self, buffers: Sequence[Buffer], keys: Sequence[str], direction: str) -> list[bool | None]:
        if not keys or len(buffers) != len(keys):
            raise PageIndexError(f"{len(buffers)} buffers for {len(keys)} files or objects")
        with self._one_at_a_time:
            try:
                faults = self.lifetime._execute_transfer(buffers, keys, direction)
            except TransferError as error:
                fault = self._after_failure(keys, buffer_sizes(buffers), direction == "WRITE")
                if self._as_released or len(keys) == 1:
                    raise fault or error from error
                logger.warning(
                    "%s of %d failed, each by itself now: %s", direction, len(keys), fault or error
                )
            else:
                for fault in faults.values():
                    logger.error("%s: %s", direction, fault)
                return [None if position in faults else True for position in range(len(keys))]
        alone = zip(buffers, keys, strict=True)
        return [self._execute_transfer([buffer], [key], direction) for buffer, key in alone]

    def _after_failure(self, keys: Sequence[str], sizes: Sequence[int], writing: bool) -> FileError | None:
        """Name the file that made a transfer fail, and leave nothing that would spoil a later one."""
        fault = None
        if self.file_manager is not None:
            fault = self.file_manager.first_fault(keys, sizes, writing)
            if writing:  # some of it may be on disk, so none of it is a page any more
                self.file_manager.discard(keys)
        if self.registration.keeps_failed_io:
            self.registration.attach(make_backend(self.backend_config))
            if self.pages is not None:
                self.lifetime.register_pool(self.pages.memory)
        return fault

    # -- pages -----------------------------------------------------------------------------------------

    def _set_pages(self, keys: Sequence[str], host_indices: torch.Tensor) -> list[bool]:
        results: list[bool] = []
        for names, indices in self._batches(keys, host_indices):
            with self.pages.leaving(indices) as buffers:
                results += self.pages.whole(self._store(buffers, names, len(self.pages.piece_sizes)))
        return results

    def _get_pages(self, keys: Sequence[str], host_indices: torch.Tensor) -> list[bool]:
        results: list[bool] = []
        for names, indices in self._batches(keys, host_indices):
            with self.pages.arriving(indices) as buffers:
                loaded = self.pages.whole(self._move(buffers, self._locations(names), "READ"))
                self.pages.land(indices, buffers, loaded)
                results += loaded
        return results

    def _batches(self, keys: Sequence[str], host_indices: torch.Tensor) -> Iterator[Any]:
        """Check everything about a batch call before anything moves; names and indices per transfer."""
        if self.pages is None:
            raise PageIndexError("no host pool: call register_mem_pool_host first")
        self.pages.check(len(keys), host_indices)
        return self.pages.batches(self.names.of_pages(keys, self.is_zero_copy), host_indices)

    def _count_leading(self, keys: Sequence[str]) -> int:
        names = self.names.of_pages(keys, self.is_zero_copy)
        locations = self._locations(names)
        if self._as_released or self.file_manager is None:  # an object is there when all its bytes are
            found = [answer is not None for answer in self.registration.query(locations)]
        else:
            sizes = cycle(self.pages.piece_sizes if self.pages else [None])
            found = map(self.file_manager.is_whole, locations, sizes)
        leading = sum(1 for _ in takewhile(bool, found))
        return leading * len(keys) // len(names) if names else 0

    # -- values ----------------------------------------------------------------------------------------

    def _get_values(
        self, keys: Sequence[str], targets: Sequence[Any] | None, sizes: Sequence[int] | None
    ) -> list[Any]:
        if not keys:
            return []
        if not targets:
            return [None] * len(keys)  # SGLang's older callers ask without a target
        if len(targets) != len(keys) or (sizes and len(sizes) != len(keys)):
            raise PageIndexError(f"{len(keys)} keys, {len(targets)} targets, {len(sizes or targets)} sizes")
        buffers = list(zip(targets, sizes, strict=True)) if sizes else list(targets)
        loaded = self._execute_transfer(buffers, self._locations(self.names.of_values(keys)), "READ")
        return list(targets) if loaded and not sizes else [None] * len(keys)

    def _set_values(
        self,
        keys: Sequence[str],
        values: Sequence[torch.Tensor] | None,
        addresses: Sequence[int] | None,
        sizes: Sequence[int] | None,
    ) -> bool:
        if not values and addresses and sizes and len(addresses) == len(sizes):
            values = list(zip(addresses, sizes, strict=True))
        if not keys or not values or len(values) != len(keys):
            raise PageIndexError(f"{len(keys)} keys for {len(values or ())} values")
        return all(self._store(values, self.names.of_values(keys)))

    def _store(self, buffers: Sequence[Buffer], names: Sequence[str], pieces: int = 1) -> list[bool | None]:
        """Write buffers to files; of a page that was not written nothing stays, unless no file was touched."""
        locations = self._locations(names)
        if self.file_manager is None:
            return self._move(buffers, locations, "WRITE")
        fresh: list[str] = []
        stored: list[bool | None] = [False] * len(locations)
        try:
            if not self._as_released:
                fresh = locations  # a file is emptied before it is written
            else:
                for path in locations:
                    if self.file_manager.create_file(path):
                        fresh.append(path)
            stored = self._move(buffers, locations, "WRITE")
        finally:
            if not all(stored):
                pages = (slice(first, first + pieces) for first in range(0, len(locations), pieces))
                untouched_or_whole = [page for page in pages if set(stored[page]) in ({None}, {True})]
                kept = {path for page in untouched_or_whole for path in locations[page]}
                self.file_manager.discard(path for path in fresh if path not in kept)
        return stored

    def _locations(self, names: Sequence[str]) -> list[str]:
        """Turn names into what NIXL addresses: paths of files, keys of objects."""
        if self.file_manager is None:
            return list(names)
        return [self.file_manager.get_file_path(name) for name in names]

    def _register_objects(self, keys: Sequence[str], sizes: Sequence[int] | None) -> Any:
        tuples = self.registration.objects_to_nixl_tuples(keys, sizes or [0] * len(keys))
        return self.registration.register(tuples, "OBJ")

    def _clear(self) -> None:
        if self.file_manager is None:
            raise ConfigError("clear removes files; empty a bucket with the tools of its store")
        self.file_manager.clear(self.names.is_own)
