"""The lifetime ``pooled`` with OBJ."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...config import NixlBackendConfig
from ...errors import ConfigError, DamagedError, MissingError, StoreError
from ...host.addresses import Addresses
from ...names import KV, Named, PageNames
from ...transport.agent import make_backend
from ...transport.lane import Lane, Part, starts_of, windows
from ...transport.objects import ObjectRequests
from ...transport.registration import Buffer, NixlRegistration
from ..outcome import MOVED, Outcome
from ..pooled.checksums import NONE, checksums
from ..pooled.keys import numbers_of, space_of
from .catalogue import Catalogue, Place, Segment
from .segment import Name, head, keys_of, size_of

logger = logging.getLogger(__name__)

MIB, GIB = 1 << 20, 1 << 30
SEGMENT = 4 * MIB  # bytes of pages in a segment; several of them are moved at a time
RANGE = 8 * MIB  # bytes that a request reads
TRIES = 2  # of a load


@dataclass(frozen=True)
class _Run:
    """Pages that are next to each other in a segment, which one request reads.

    Attributes
    ----------
    segment : Segment
    first : int
        Which page of the segment.
    wanted : list of int
        Which pages of the call they are.
    """

    segment: Segment
    first: int
    wanted: list[int]

    @property
    def size(self) -> int:
        return len(self.wanted) * self.segment.name.page_bytes

    def part(self, at: int) -> Part:
        name = self.segment.name
        return Part(name.path, at, self.size, name.head_bytes + self.first * name.page_bytes)


class Lifetime:
    """Pages in segments of a bucket; see ``protocol.Lifetime``.  No file is opened, and nothing stays registered."""

    as_released = direct = even_pieces = False
    stages_copies = True

    def __init__(self, config: NixlBackendConfig, storage_dir: str):
        options = config.pooled
        if "min_free_gb" in options.model_fields_set:
            raise ConfigError("min_free_gb: the free space of an object store is not known; set capacity_gb")
        self._segment = MIB * options.segment_mb if options.segment_mb else SEGMENT
        self._capacity = None if options.capacity_gb is None else int(options.capacity_gb * GIB)
        self._verify = options.verify == "checksum"
        self.registration = NixlRegistration(make_backend(config))
        self._requests = ObjectRequests(self.registration, config)
        self._catalogues: dict[int, Catalogue] = {}
        self._lock = threading.Lock()

    def check_pages(self, *calls: tuple[Sequence[int], int]) -> None:
        """Do nothing: a segment has at least one page of any size."""

    def register_pool(self, memory: Sequence[torch.Tensor], pool: str = KV) -> None:
        """Do nothing: bytes pass through memory that is registered already."""

    def _catalogue(self, space: int) -> Catalogue:
        with self._lock:
            if space not in self._catalogues:
                self._catalogues[space] = Catalogue(space, self._requests.bucket, self._requests)
            return self._catalogues[space]

    # -- storing ---------------------------------------------------------------------------------------

    def store(self, pages: Named, buffers: Sequence[Buffer]) -> list[Outcome]:
        """Store pages in new segments, one for as many as fit; see ``protocol.Lifetime``."""
        places, keys = Addresses.of(buffers, len(pages.endings)), numbers_of(pages.keys)
        catalogue = self._catalogue(space_of(pages.suffix, pages.endings))
        outcomes: list[Outcome] = []
        for first, last, sizes in _alike(places):
            page_bytes = int(sizes.sum())
            step = max(1, self._segment // page_bytes)
            parts = [(at, min(at + step, last)) for at in range(first, last, step)]
            try:
                for some, end in windows([size_of(end - at, page_bytes) for at, end in parts]):
                    outcomes += self._store(catalogue, parts[some:end], keys, places, sizes)
            except StoreError as error:  # what was stored until then is stored
                outcomes += [Outcome.not_touched(error)] * (last - len(outcomes))
        if self._capacity is not None and MOVED in outcomes:
            try:
                catalogue.remove_beyond(self._capacity)
            except StoreError as error:
                logger.warning("segments beyond capacity_gb are not removed: %s", error)
        return outcomes

    def _store(
        self,
        catalogue: Catalogue,
        parts: Sequence[tuple[int, int]],
        keys: np.ndarray,
        places: Addresses,
        sizes: np.ndarray,
    ) -> list[Outcome]:
        """Store some segments at a time."""
        names = [Name.new(catalogue.space, last - first, int(sizes.sum())) for first, last in parts]
        segments, requests = [], []
        with self._requests.lane(sum(name.size for name in names)) as lane:
            for name, (first, last), at in zip(
                names, parts, starts_of([name.size for name in names]), strict=True
            ):
                behind = at + name.head_bytes
                lane.fill(behind, _pieces(places.starts[first:last], sizes))
                checks = self._checks(lane, behind, last - first, name.page_bytes)
                lane.write(at, head(name, keys[first:last], checks))
                segments.append(Segment(name, keys_of(keys[first:last].astype("<u8").tobytes()), checks))
                requests.append(Part(name.path, at, name.size))
            errors = self._requests.run("WRITE", lane, requests)
        errors = self._requests.explain_puts(errors)
        outcomes = []
        for segment, error in zip(segments, errors, strict=True):
            if error is None:
                catalogue.add(segment)
            outcomes += [MOVED if error is None else Outcome.not_touched(error)] * segment.name.pages
        return outcomes

    def _checks(self, lane: Lane, at: int, pages: int, page_bytes: int) -> np.ndarray:
        if not self._verify:
            return np.full(pages, NONE, np.uint64)
        starts = lane.start + at + np.arange(pages, dtype=np.int64)[:, None] * page_bytes
        return checksums(starts, np.array([page_bytes], np.int64))

    # -- loading ---------------------------------------------------------------------------------------

    def load(self, pages: Named, buffers: Sequence[Buffer]) -> list[Outcome]:
        """Load pages; those that are next to each other in a segment with one request."""
        places, keys = Addresses.of(buffers, len(pages.endings)), _listed(pages.keys)
        catalogue = self._catalogue(space_of(pages.suffix, pages.endings))
        outcomes = [_missing()] * len(keys)
        for first, last, sizes in _alike(places):
            wanted = keys[first:last], int(sizes.sum())
            found = self._find(catalogue, *wanted)
            for _ in range(TRIES):
                if self._load(catalogue, _runs(found, first), places.starts, sizes, outcomes):
                    break
                # A segment has been removed; its pages may have been stored again in another one.
                again = zip(range(first, last), self._find(catalogue, *wanted), strict=True)
                found = [None if outcomes[page] is MOVED else place for page, place in again]
        return outcomes

    def _find(self, catalogue: Catalogue, keys: Sequence[bytes], page_bytes: int) -> list[Place | None]:
        """Look pages up, and ask the store for new ones if one is not known."""
        self._requests.check()
        found = catalogue.find(keys, page_bytes)
        if None in found:
            catalogue.refresh()
            found = catalogue.find(keys, page_bytes)
        return found

    def _load(
        self,
        catalogue: Catalogue,
        runs: Sequence[_Run],
        starts: np.ndarray,
        sizes: np.ndarray,
        outcomes: list[Outcome],
    ) -> bool:
        """Load runs of pages and note their outcomes; return False if a segment has been removed."""
        all_there, missing = True, _missing()
        for some, end in windows([run.size for run in runs]):
            few = runs[some:end]
            places = starts_of([run.size for run in few])
            parts = [run.part(at) for run, at in zip(few, places, strict=True)]
            try:
                with self._requests.lane(sum(part.size for part in parts)) as lane:
                    errors = self._requests.run("READ", lane, parts)
                    for run, at, error in zip(few, places, errors, strict=True):
                        if error is None:
                            self._copy(catalogue, run, lane, at, starts, sizes, outcomes)
                ends = [part.offset + part.size for part in parts]
                errors = self._requests.explain([part.name for part in parts], ends, errors)
            except StoreError as failure:  # nothing of the rest is asked for
                few, end = runs[some:], len(runs)
                errors = [failure] * len(few)
            for run, error in zip(few, errors, strict=True):
                if error is None:
                    continue
                if isinstance(error, MissingError):
                    catalogue.forget(run.segment)
                    all_there, told = False, missing
                else:
                    told = Outcome.not_touched(error)
                for page in run.wanted:
                    outcomes[page] = told
            if end == len(runs):
                break
        return all_there

    def _copy(
        self,
        catalogue: Catalogue,
        run: _Run,
        lane: Lane,
        at: int,
        starts: np.ndarray,
        sizes: np.ndarray,
        outcomes: list[Outcome],
    ) -> None:
        """Copy the pages of a run from the lane, but those with other bytes than were stored."""
        run.segment.seen = time.monotonic_ns()
        page_bytes, count = run.segment.name.page_bytes, len(run.wanted)
        stored = run.segment.checks[run.first : run.first + count]
        good = [True] * count
        if self._verify and (stored != NONE).any():
            same = self._checks(lane, at, count, page_bytes) == stored
            good = (same | (stored == NONE)).tolist()
        damaged = Outcome.not_touched(DamagedError("a page has other bytes than were stored"))
        for number, page in enumerate(run.wanted):
            if good[number]:
                lane.copy_to(at + number * page_bytes, _pieces(starts[page : page + 1], sizes))
                outcomes[page] = MOVED
            else:
                catalogue.forget_page((run.segment, run.first + number))
                outcomes[page] = damaged

    def present(self, pages: Named, sizes: Sequence[int] | None) -> Iterator[bool]:
        """Look pages up; without a request if all are known, and their segments were there some seconds ago."""
        catalogue, keys = self._catalogue(space_of(pages.suffix, pages.endings)), _listed(pages.keys)
        found = self._find(catalogue, keys, sum(sizes or ()))
        if not catalogue.check({place[0] for place in found if place is not None}):
            found = self._find(catalogue, keys, sum(sizes or ()))
        return (place is not None for place in found)

    # -- the rest --------------------------------------------------------------------------------------

    def clear(self, names: PageNames) -> int:
        """Remove the segments of a configuration."""
        spaces = {space_of(own.suffix, own.endings) for own in names.own()}
        return sum(self._catalogue(space).clear() for space in spaces)

    def register_buffers(self, buffers: torch.Tensor | Sequence[Buffer]) -> Any:
        """Register host memory until the agent ends."""
        return self.registration.register_buffers(buffers)

    def register_files(self, paths: Sequence[str]) -> Any:
        """Raise: there are no files."""
        raise ConfigError("OBJ stores objects and opens no files; use register_objects")

    def register_objects(self, keys: Sequence[str], sizes: Sequence[int]) -> Any:
        """Register objects until the agent ends."""
        return self.registration.register(self.registration.objects_to_nixl_tuples(keys, sizes), "OBJ")

    def close(self) -> None:
        """Drop the agent; what the store has not answered by then ends later."""
        with closing(self._requests):
            self._catalogues = {}


def _missing() -> Outcome:
    """Return the outcome of all missing pages of a call, which share a line of the log."""
    return Outcome.not_touched(MissingError("not stored, or not with this size"))


def _listed(keys: Sequence[str]) -> list[bytes]:
    return keys_of(numbers_of(keys).astype("<u8").tobytes())


def _pieces(starts: np.ndarray, sizes: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of address and bytes, page by page."""
    return list(zip(starts.ravel().tolist(), sizes.tolist() * len(starts), strict=True))


def _alike(places: Addresses) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield ranges of pages with pieces of the same sizes, and these sizes."""
    if places.alike:
        if len(places.starts):
            yield 0, len(places.starts), places.sizes
        return
    for page, sizes in enumerate(places.sizes):
        yield page, page + 1, sizes


def _runs(found: Sequence[Place | None], first: int) -> list[_Run]:
    """Join pages that follow each other in the call and in a segment."""
    runs: list[_Run] = []
    for page, place in enumerate(found, first):
        if place is None:
            continue
        segment, number = place
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.segment is segment
            and last.first + len(last.wanted) == number
            and last.wanted[-1] + 1 == page
            and last.size < RANGE
        ):
            last.wanted.append(page)
        else:
            runs.append(_Run(segment, number, [page]))
    return runs
