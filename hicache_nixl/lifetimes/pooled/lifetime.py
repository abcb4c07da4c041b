"""The lifetime ``pooled``: pages in a store of few large files, opened and registered once."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np
import torch

from ...config import OBJ_PLUGINS, NixlBackendConfig
from ...errors import (
    ConfigError,
    DamagedError,
    FileError,
    HiCacheNixlError,
    MissingError,
    RegistrationError,
    TransferError,
)
from ...host.addresses import Addresses
from ...interrupts import deferred
from ...names import Named, PageNames
from ...transport.registration import Buffer
from ..outcome import MOVED, Outcome
from .checksums import checksums
from .folder import open_file
from .keys import numbers_of, space_of
from .lanes import Lane
from .mapped import only_mapped
from .opening import Store
from .row import ROW, Rows, Words
from .seen import Seen
from .segments import ALIGNED, Segments

logger = logging.getLogger(__name__)

LARGE = 2 << 20  # bytes of a batch from which two threads are faster than one


class Lifetime:
    """A fixed number of descriptors and registrations for the life of the store; see ``protocol.Lifetime``."""

    as_released = False
    stages_copies = True
    pool_ranges: Sequence[tuple[int, int]] = ()  # start and end of the memory of the pool

    def __init__(self, config: NixlBackendConfig, storage_dir: str):
        with ExitStack() as stack:
            self._lanes = [Lane(config) for _ in range(2)]
            for lane in self._lanes:
                stack.callback(lane.close)
            self.registration = self._lanes[0].registration
            if self.registration.plugin in OBJ_PLUGINS:
                raise ConfigError("lifetime: pooled keeps pages in files; with OBJ use scoped")
            self._store = stack.enter_context(_opened(config, storage_dir))
            self._direct = self._opened_direct(stack) if config.use_direct_io else None
            self._worker = stack.enter_context(ThreadPoolExecutor(1, "hicache-nixl"))
            # Without ``close()``, after an interrupt or in a program that forgets it, the object ends it all.  At
            # the end of the process a thread may still be in a transfer, so there it does not.
            self._end = weakref.finalize(self, deferred, stack.pop_all().close)
            self._end.atexit = False
        self._seen = Seen(self._store.state, self._store.index)
        self.direct = self._direct is not None
        self._verify = config.pooled.verify == "checksum"

    def _opened_direct(self, stack: ExitStack) -> Segments | None:
        """Return the segments once more, opened with O_DIRECT; None where the file system does not support it."""
        store = self._store
        try:
            os.close(open_file(store.dir_fd, "state", os.O_RDWR | os.O_DIRECT))
        except FileError as error:
            logger.warning("use_direct_io falls back to the page cache: %s", error)
            return None
        return stack.enter_context(closing(Segments(store.dir_fd, store.state, store.locks, os.O_DIRECT, 0)))

    @property
    def recycled(self) -> int:
        """How many segments this store has recycled."""
        return self._store.segments.recycled

    def check_pages(self, sizes: Sequence[int], most: int) -> None:
        """Raise ``ConfigError`` if a page is larger than a segment, or a call larger than the store."""
        self._store.check_pages(max(sizes) * len(sizes), most)

    def register_pool(self, memory: Sequence[torch.Tensor]) -> None:
        """Register the host memory of all pages, in place of what was registered before."""
        self.pool_ranges = []
        for lane in self._lanes:
            lane.register_memory(memory)
        self.pool_ranges = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in memory]

    # -- pages -----------------------------------------------------------------------------------------

    @only_mapped
    def store(self, pages: Named, buffers: Sequence[Buffer]) -> list[Outcome]:
        """Append pages to the own segment, and list them when all their bytes are there."""
        places, keys = Addresses.of(buffers, len(pages.endings)), numbers_of(pages.keys)
        space = space_of(pages.suffix, pages.endings)
        if places.alike:
            version = self._seen.version()
            outcomes, rows = self._append(keys, space, places.starts, places.sizes)
            if all(outcome is MOVED for outcome in outcomes):
                size = int(places.sizes.sum())
                self._seen.note(version, space, size, pages.keys, rows["generation"].tolist())
            return outcomes
        values = zip(keys[:, None], places.each(), strict=True)
        return [self._append(key, space, one.starts, one.sizes)[0][0] for key, one in values]

    def _append(
        self, keys: Words, space: int, starts: np.ndarray, sizes: np.ndarray
    ) -> tuple[list[Outcome], Rows]:
        """Store n pages with pieces of the same sizes, int64 of shape (k,), at addresses of shape (n, k)."""
        rows = np.zeros(len(keys), ROW)
        rows["key"], rows["space"], rows["size"] = keys, space, sizes.sum()
        outcomes = self._write(rows, starts, sizes, self._hashing(starts, sizes))
        stored = outcomes.count(MOVED)
        self._store.counters.stored(stored, stored * int(sizes.sum()))
        return outcomes, rows

    def _write(
        self,
        rows: Rows,
        starts: np.ndarray,
        sizes: np.ndarray,
        hashing: Callable[[], Words],
        replaced: Rows | None = None,
    ) -> list[Outcome]:
        """Write pages to the own segment, and then list their rows, whose places and checksums are filled in here.

        With ``replaced``, only in place of these rows: another version of a page may have been stored meanwhile.
        """
        slot = int(sizes.max())
        with self._store.segments.placed(len(rows), slot * len(sizes)) as places:
            for place in places:
                part = rows[place.pages]
                part["segment"], part["generation"] = place.segment, place.generation
                part["offset"], part["step"] = (
                    place.offset + np.arange(place.count) * slot,
                    place.count * slot,
                )
            try:
                outcomes = self._move(self._lanes[0], "WRITE", rows, starts, sizes)
            finally:
                rows["checksum"] = hashing()
            with self._store.locks.index():
                written = np.array([outcome is MOVED for outcome in outcomes])
                if replaced is not None:
                    written &= self._store.index.listed(replaced)
                self._store.index.put(rows[written])
                for place in places:
                    self._store.segments.published(place, slot * len(sizes))
        return outcomes

    def _hashing(self, starts: np.ndarray, sizes: np.ndarray) -> Callable[[], Words]:
        """Return what returns the checksums of pages; those of large batches are computed meanwhile."""
        if starts.shape[0] * int(sizes.sum()) < LARGE:
            return partial(checksums, starts, sizes)
        return self._worker.submit(checksums, starts, sizes).result

    @only_mapped
    def load(self, pages: Named, buffers: Sequence[Buffer]) -> list[Outcome]:
        """Read pages from their segments, which nobody recycles meanwhile, and compare their checksums."""
        places, keys = Addresses.of(buffers, len(pages.endings)), numbers_of(pages.keys)
        space = space_of(pages.suffix, pages.endings)
        sizes = places.sizes.sum(axis=-1).astype(np.uint64)
        for _ in range(3):  # between look and lock a segment may be recycled, and its pages stored again
            rows, found = self._store.index.find(keys, space)
            found &= rows["size"] == sizes
            with self._store.locks.reading(set(rows["segment"][found].tolist())):
                if not (found <= self._store.index.valid(rows)).all():
                    continue
                outcomes = self._read(rows, found, places)
            self._store.counters.got(found, sizes)
            self._renew(rows, places, outcomes)
            return outcomes
        return [Outcome.not_touched(MissingError("recycled while it was looked up"))] * len(keys)

    def _read(self, rows: Rows, found: np.ndarray, places: Addresses) -> list[Outcome]:
        """Load the pages that were found."""
        if found.all() and places.alike:
            return self._read_alike(rows, places.starts, places.sizes)
        missing = Outcome.not_touched(MissingError("not stored, or not with this size"))
        if places.alike:
            which = np.flatnonzero(found)
            loaded = iter(self._read_alike(rows[which], places.starts[which], places.sizes))
            return [next(loaded) if good else missing for good in found.tolist()]
        values = zip(found, rows[:, None], places.each(), strict=True)
        return [
            self._read_alike(row, one.starts, one.sizes)[0] if good else missing for good, row, one in values
        ]

    def _read_alike(self, rows: Rows, starts: np.ndarray, sizes: np.ndarray) -> list[Outcome]:
        """Load n pages with pieces of the same sizes, large batches in two halves, each in a thread of its own."""
        half = len(rows) // 2
        if not half or len(rows) * int(sizes.sum()) < LARGE:
            return self._read_part(self._lanes[0], rows, starts, sizes)
        second = self._worker.submit(self._read_part, self._lanes[1], rows[half:], starts[half:], sizes)
        try:
            first = self._read_part(self._lanes[0], rows[:half], starts[:half], sizes)
        finally:
            rest = second.result()  # the buffers are in use until then
        return first + rest

    def _read_part(self, lane: Lane, rows: Rows, starts: np.ndarray, sizes: np.ndarray) -> list[Outcome]:
        outcomes = self._move(lane, "READ", rows, starts, sizes)
        if self._verify:
            doubted = np.arange(len(rows))
        else:  # what was written before the machine was booted
            doubted = np.flatnonzero(rows["generation"] < self._store.state["verified_below"])
        if len(doubted):
            equal = checksums(starts[doubted], sizes) == rows["checksum"][doubted]
            if not equal.all():
                self._forget(rows, doubted[~equal], outcomes)
        return outcomes

    def _forget(self, rows: Rows, damaged: np.ndarray, outcomes: list[Outcome]) -> None:
        """Remove pages from the index whose bytes are not those that were stored, and say so in their outcomes."""
        pages = [page for page in damaged.tolist() if outcomes[page] is MOVED]
        errors: dict[int, DamagedError] = {}  # by segment; a line is logged for each
        for page in pages:
            segment = int(rows["segment"][page])
            outcomes[page] = Outcome.failed(errors.setdefault(segment, DamagedError(describe(rows[page]))))
        self._store.index.remove(rows[pages])

    def _renew(self, rows: Rows, places: Addresses, outcomes: list[Outcome]) -> None:
        """Append loaded pages again whose segments are among the next to be recycled: they are in use.

        It comes near to evicting the least recently used page, for a fifth more bytes written; see the notebook
        ``bounded_by_design``.
        """
        old = rows["generation"] < self._store.segments.old_below()
        if not places.alike or not old.any():
            return
        which = [page for page in np.flatnonzero(old).tolist() if outcomes[page] is MOVED]
        if which:
            again = rows[which]
            try:
                checksum = again["checksum"].copy
                self._write(again, places.starts[which], places.sizes, checksum, replaced=rows[which])
            except HiCacheNixlError as error:  # they stay where they are
                logger.debug("%d pages are not renewed: %s", len(which), error)

    def present(self, pages: Named, sizes: Sequence[int] | None) -> list[bool]:
        """Look pages up: among those seen lately, and if one is not among them, all of them in the index."""
        space, size = space_of(pages.suffix, pages.endings), sum(sizes or ())
        version = self._seen.version()
        if size and self._seen.has_all(version, space, size, pages.keys):
            return [True] * len(pages.keys)
        rows, found = self._store.index.find(numbers_of(pages.keys), space)
        if size:
            found &= rows["size"] == size
            if found.all():
                self._seen.note(version, space, size, pages.keys, rows["generation"].tolist())
        answers: list[bool] = found.tolist()
        return answers

    # -- transfers -------------------------------------------------------------------------------------

    def _move(
        self, lane: Lane, direction: str, rows: Rows, starts: np.ndarray, sizes: np.ndarray
    ) -> list[Outcome]:
        """Move pages between memory and their segments; after a failure each page alone."""
        segments = set(rows["segment"].tolist())
        if len(segments) == 1:
            return self._move_in(lane, direction, segments.pop(), rows, starts, sizes)
        outcomes = [MOVED] * len(rows)
        for segment in segments:
            which = np.flatnonzero(rows["segment"] == segment)
            moved = self._move_in(lane, direction, segment, rows[which], starts[which], sizes)
            for page, outcome in zip(which.tolist(), moved, strict=True):
                outcomes[page] = outcome
        return outcomes

    def _move_in(
        self, lane: Lane, direction: str, segment: int, rows: Rows, starts: np.ndarray, sizes: np.ndarray
    ) -> list[Outcome]:
        try:
            fd = self._store.segments.fd(segment)
        except FileError as error:
            self._store.segments.lose(segment, int(rows["generation"][0]), error)
            return [Outcome.not_touched(error)] * len(rows)
        pieces = np.arange(len(sizes))[:, None]  # all first pieces of the pages, then all second
        offsets = (rows["offset"].astype(np.int64) + pieces * rows["step"].astype(np.int64)).ravel()
        repeated = np.repeat(sizes, len(rows))
        try:
            fd = self._past_the_cache(segment, fd, starts, offsets, sizes)
            lane.move(direction, fd, self._store.segments.bytes, starts.T.ravel(), offsets, repeated)
        except (RegistrationError, TransferError) as error:
            if len(rows) == 1:
                return [Outcome.failed(error)]
            logger.warning("%s of %d failed, each is tried alone now: %s", direction, len(rows), error)
            alone = [slice(page, page + 1) for page in range(len(rows))]
            return [
                self._move_in(lane, direction, segment, rows[one], starts[one], sizes)[0] for one in alone
            ]
        return [MOVED] * len(rows)

    def _past_the_cache(self, segment: int, fd: int, *numbers: np.ndarray) -> int:
        """Return a descriptor with O_DIRECT if that is enabled and all addresses and sizes allow it, or ``fd``."""
        if self._direct is None or any((array % ALIGNED).any() for array in numbers):
            return fd
        try:
            return self._direct.fd(segment)
        except FileError:  # too many open files, for example
            return fd

    # -- the rest --------------------------------------------------------------------------------------

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


def describe(row: Any) -> str:
    """Say where the first of some damaged pages was."""
    return (
        f"segment {row['segment']} holds other bytes than were stored, first in the page of {row['size']} bytes "
        f"at {row['offset']}"
    )
