"""The lifetime ``pooled``: pages in a store of few large files, opened and registered once."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import torch

from ...config import OBJ_PLUGINS, PLUGIN_VARIABLE, NixlBackendConfig
from ...errors import (
    ConfigError,
    DamagedError,
    FileError,
    HiCacheNixlError,
    MissingError,
)
from ...host.addresses import Addresses
from ...interrupts import deferred
from ...names import KV, Named, PageNames
from ...transport.registration import Buffer
from ..outcome import MOVED, Outcome
from .folder import open_file
from .healing import Healing, healed
from .keys import numbers_of, space_of
from .mapped import only_mapped
from .opening import Store
from .row import ROW, Rows, Words
from .seen import Seen
from .segments import Segments
from .transfers import Transfers

logger = logging.getLogger(__name__)

TRIES = 8  # of a load


class Lifetime:
    """A fixed number of descriptors and registrations for the life of the store; see ``protocol.Lifetime``."""

    as_released = False
    stages_copies = even_pieces = True

    def __init__(self, config: NixlBackendConfig, storage_dir: str):
        with ExitStack() as stack:
            self._transfers = stack.enter_context(closing(Transfers(config)))
            self.registration = self._transfers.lanes[0].registration
            if self.registration.plugin in OBJ_PLUGINS:
                raise ConfigError(
                    "lifetime: pooled keeps pages in files, and no plugin for files works here; to keep them in objects, "
                    f"name the plugin: {PLUGIN_VARIABLE}=OBJ, or a section obj in the extra config"
                )
            self._config, self._of_store = config, stack.enter_context(ExitStack())
            self.healing = Healing(storage_dir, self.open(storage_dir))
            # Without ``close()``, after an interrupt or in a program that forgets it, the object ends it all.  At
            # the end of the process a thread may still be in a transfer, so there it does not.
            self._end = weakref.finalize(self, deferred, stack.pop_all().close)
            self._end.atexit = False

    def open(self, storage_dir: str) -> Store:
        """Open the store, in place of one that is lost and that no call uses."""
        self._transfers.detach()
        self._of_store.close()
        self._store = self._of_store.enter_context(_opened(self._config, storage_dir))
        direct = self._opened_direct() if self._config.use_direct_io else None
        self._transfers.attach(self._store, direct)
        self._seen, self.direct = Seen(self._store.state, self._store.index), direct is not None
        return self._store

    def _opened_direct(self) -> Segments | None:
        """Return the segments once more, opened with O_DIRECT; None where the file system does not support it."""
        store = self._store
        try:
            os.close(open_file(store.dir_fd, "state", os.O_RDWR | os.O_DIRECT))
        except FileError as error:
            logger.warning("use_direct_io falls back to the page cache: %s", error)
            return None
        return self._of_store.enter_context(
            closing(Segments(store.dir_fd, store.state, store.locks, os.O_DIRECT, 0))
        )

    @property
    def recycled(self) -> int:
        """How many segments this store has recycled."""
        return self._store.segments.recycled

    @healed
    def check_pages(self, *calls: tuple[Sequence[int], int]) -> None:
        """Raise ``ConfigError`` if a page is larger than a segment, or calls are larger than the store."""
        self._store.check_pages(*((max(sizes) * len(sizes), most) for sizes, most in calls))

    def register_pool(self, memory: Sequence[torch.Tensor], pool: str = KV) -> None:
        """Register the memory of a host pool, in place of what was registered of it before."""
        self._transfers.register_memory(memory, pool)

    @healed
    def size(self) -> tuple[int, int]:
        """Return the bytes of the store behind which there is room, and those that it may have."""
        state = self._store.state
        state.check()
        return int(state.segments["used"].sum()), state["segments"] * state["segment_bytes"]

    @property
    def pool_ranges(self) -> Sequence[tuple[int, int]]:
        """Start and end of the memory of the pool."""
        return self._transfers.pools

    # -- pages -----------------------------------------------------------------------------------------

    @healed
    @only_mapped
    def store(self, pages: Named, buffers: Sequence[Buffer]) -> list[Outcome]:
        """Append pages to the own segment, and list them when all their bytes are there."""
        places, keys = Addresses.of(buffers, len(pages.endings)), numbers_of(pages.keys)
        space = space_of(pages.suffix, pages.endings)
        if places.alike:
            version = self._seen.version()
            outcomes, rows = self._append(keys, space, places.starts, places.sizes)
            if outcomes.count(MOVED) == len(rows):
                self._seen.note(version, space, int(places.sizes.sum()), pages.keys, rows)
            return outcomes
        values = zip(keys[:, None], places.each(), strict=True)
        return [self._append(key, space, one.starts, one.sizes)[0][0] for key, one in values]

    def _append(
        self, keys: Words, space: int, starts: np.ndarray, sizes: np.ndarray
    ) -> tuple[list[Outcome], Rows]:
        """Store n pages with pieces of the same sizes, int64 of shape (k,), at addresses of shape (n, k)."""
        rows = np.zeros(len(keys), ROW)
        rows["key"], rows["space"], rows["size"] = keys, space, sizes.sum()
        outcomes, _ = self._write(rows, starts, sizes)
        stored = outcomes.count(MOVED)
        self._store.counters.stored(stored, stored * int(sizes.sum()))
        return outcomes, rows

    def _write(
        self, rows: Rows, starts: np.ndarray, sizes: np.ndarray, replaced: Rows | None = None
    ) -> tuple[list[Outcome], np.ndarray]:
        """Write pages to the own segments, and then list their rows, whose places and checksums are filled in here.

        With ``replaced``, only in place of these rows, which have the same bytes: another version of a page may have
        been stored meanwhile.  Returns the outcomes, and which pages were listed.
        """
        segments, slot = self._store.segments, int(sizes.max())
        in_two = self._transfers.in_two(len(rows), int(sizes.sum()))
        with segments.placed(len(rows), slot * len(sizes), in_two) as places:
            for place in places:
                part = rows[place.pages]
                part["segment"], part["generation"] = place.segment, place.generation
                part["offset"] = place.offset + np.arange(place.count) * slot
                part["step"] = place.count * slot
            outcomes = self._transfers.write(rows, starts, sizes, places)
            listed = np.ones(len(rows), np.bool_)
            if outcomes.count(MOVED) < len(rows):
                listed = np.array([outcome is MOVED for outcome in outcomes])
            with self._store.locks.index():
                if replaced is not None:
                    listed &= self._store.index.listed(replaced)
                self._store.index.put(rows[listed], moved=replaced is not None)
                for place in places:
                    segments.published(place, slot * len(sizes))
        return outcomes, listed

    @healed
    @only_mapped
    def load(self, pages: Named, buffers: Sequence[Buffer]) -> list[Outcome]:
        """Read pages from their segments, which nobody recycles meanwhile, and compare their checksums."""
        places = Addresses.of(buffers, len(pages.endings))
        for _ in range(TRIES):  # between look and lock a segment may be recycled, and its pages stored again
            rows, found = self._find(pages, places.sizes.sum(axis=-1))
            with self._store.locks.reading(set(rows["segment"][found].tolist())):
                if not (found <= self._store.index.valid(rows)).all():
                    continue
                outcomes = self._read(rows, found, places)
            self._store.counters.got(found, places.sizes.sum(axis=-1))
            self._renew(pages, rows, places, outcomes)
            return outcomes
        return [Outcome.not_touched(MissingError("recycled while it was looked up"))] * len(pages.keys)

    def _find(self, pages: Named, sizes: Any) -> tuple[Rows, np.ndarray]:
        """Look pages up: among those seen lately, and if one is not among them, all of them in the index.

        Parameters
        ----------
        pages : Named
        sizes : int, or numpy.ndarray of shape (n,)
            Bytes of a page; 0 for any.

        Returns
        -------
        rows : numpy.ndarray of ROW, (n,)
        found : numpy.ndarray of bool, (n,)
        """
        space, alike = space_of(pages.suffix, pages.endings), not np.ndim(sizes) and int(sizes)
        version = self._seen.version()
        if alike and (rows := self._seen.find(version, space, alike, pages.keys)) is not None:
            return rows, np.ones(len(rows), np.bool_)
        rows, found = self._store.index.find(numbers_of(pages.keys), space)
        found &= (rows["size"] == np.asarray(sizes, np.uint64)) | (np.asarray(sizes) == 0)
        if alike and found.all():
            self._seen.note(version, space, alike, pages.keys, rows)
        return rows, found

    def _read(self, rows: Rows, found: np.ndarray, places: Addresses) -> list[Outcome]:
        """Load the pages that were found."""
        if places.alike:
            which = np.flatnonzero(found)
            if len(which) == len(rows):
                return self._read_alike(rows, places.starts, places.sizes)
            loaded = iter(self._read_alike(rows[which], places.starts[which], places.sizes))
        else:
            each = [(rows[page : page + 1], one) for page, one in enumerate(places.each()) if found[page]]
            loaded = iter([self._read_alike(row, one.starts, one.sizes)[0] for row, one in each])
        missing = Outcome.not_touched(MissingError("not stored, or not with this size"))
        return [next(loaded) if good else missing for good in found.tolist()]

    def _read_alike(self, rows: Rows, starts: np.ndarray, sizes: np.ndarray) -> list[Outcome]:
        """Load n pages with pieces of the same sizes; forget those with other bytes than were stored."""
        if not len(rows):
            return []
        outcomes = self._transfers.read(rows, starts, sizes)
        if outcomes.count(MOVED) < len(rows):
            damaged = [isinstance(outcome.error, DamagedError) for outcome in outcomes]
            if any(damaged):
                self._store.index.remove(rows[damaged])
        return outcomes

    def _renew(self, pages: Named, rows: Rows, places: Addresses, outcomes: list[Outcome]) -> None:
        """Append loaded pages again whose segments are among the next to be recycled: they are in use.

        It comes near to evicting the least recently used page, for a fifth more bytes written; see the notebook
        ``bounded_by_design``.
        """
        old = rows["generation"] < self._store.segments.old_below()
        if not places.alike or not old.any():
            return
        which = [page for page in np.flatnonzero(old).tolist() if outcomes[page] is MOVED]
        if not which:
            return
        version, again = self._seen.version(), rows[which]
        try:
            _, listed = self._write(again, places.starts[which], places.sizes, replaced=rows[which])
        except HiCacheNixlError as error:  # they stay where they are
            logger.debug("%d pages are not renewed: %s", len(which), error)
            return
        if listed.all():
            space, keys = space_of(pages.suffix, pages.endings), [pages.keys[page] for page in which]
            self._seen.note(version, space, int(places.sizes.sum()), keys, again)

    @healed
    def present(self, pages: Named, sizes: Sequence[int] | None) -> list[bool]:
        """Look pages up."""
        found: list[bool] = self._find(pages, sum(sizes or ()))[1].tolist()
        return found

    # -- the rest --------------------------------------------------------------------------------------

    @healed
    def clear(self, names: PageNames) -> int:
        """Forget the pages of a configuration; the room is used again when their segments are recycled."""
        return self._store.index.clear({space_of(own.suffix, own.endings) for own in names.own()})

    def register_buffers(self, buffers: torch.Tensor | Sequence[Buffer]) -> Any:
        """Register host memory until the agent ends."""
        return self.registration.register_buffers(buffers)

    def register_files(self, paths: Sequence[str]) -> Any:
        """Raise: ``pooled`` opens its files itself."""
        raise ConfigError("pooled opens and registers its files itself")

    def register_objects(self, keys: Sequence[str], sizes: Sequence[int]) -> Any:
        """Raise: ``pooled`` has no objects."""
        raise ConfigError("pooled stores no objects")

    def close(self) -> None:
        """End the worker, leave the own segment to others, close all files, and drop the agents."""
        self._end()


def _opened(config: NixlBackendConfig, storage_dir: str) -> Store:
    try:
        return Store(storage_dir, config.pooled, config.allow_shared_folder)
    except OSError as error:
        raise ConfigError(f"storage folder {storage_dir}: {error}") from error
