"""Moving the bytes of pages between host memory and segments, with their checksums.

A second agent in a thread of its own moves the other half of large batches: on libaio the copy between page cache and
host memory takes place in the thread that submits it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from typing import Any

import numpy as np
import torch

from ...config import NixlBackendConfig
from ...errors import DamagedError, FileError, RegistrationError, TransferError
from ..outcome import MOVED, Outcome
from .checksums import NONE, checksums
from .helper import Helper
from .lanes import Lane, Range, range_of
from .opening import Store
from .pieces import Pieces, joined
from .row import Rows
from .segments import ALIGNED, Place, Segments
from .staging import InPool, Stage

logger = logging.getLogger(__name__)

LARGE = 2 << 20  # bytes of a batch beyond which two threads are faster than one

Part = Callable[[Lane, Rows, np.ndarray, np.ndarray], list[Outcome]]


class Transfers:
    """Two lanes to the segments of a store; ``close`` drops their agents.

    Parameters
    ----------
    config : NixlBackendConfig
    """

    def __init__(self, config: NixlBackendConfig):
        with ExitStack() as stack:
            self._stages = {direction: Stage() for direction in ("WRITE", "READ")}
            own = [stage.memory for stage in self._stages.values()]
            self.lanes = [Lane(config, own) for _ in range(2)]
            for lane in self.lanes:
                stack.callback(lane.close)
            self._pools: dict[str, list[Range]] = {}
            self._helpers = {
                direction: stack.enter_context(closing(Helper())) for direction in ("WRITE", "READ")
            }
            self._verify = config.pooled.verify == "checksum"
            self._end = stack.pop_all()

    def attach(self, store: Store, direct: Segments | None) -> None:
        """Set the store, and its segments opened with O_DIRECT."""
        self._store, self._direct = store, direct

    def detach(self) -> None:
        """End what is registered of the store, before it is closed."""
        for lane in self.lanes:
            lane.forget_files()

    def register_memory(self, memory: Sequence[torch.Tensor], pool: str) -> None:
        """Register the memory of a host pool, in place of what was registered of it before."""
        self._pools = {name: ranges for name, ranges in self._pools.items() if name != pool}
        for lane in self.lanes:
            lane.register_memory(memory, pool)
        self._pools = {**self._pools, pool: list(map(range_of, memory))}

    @property
    def pools(self) -> list[Range]:
        """Start and end of the memory of all host pools."""
        return list(chain(*self._pools.values()))

    @staticmethod
    def in_two(pages: int, page_bytes: int) -> bool:
        """Return whether a batch is moved in two halves at once."""
        return pages > 1 and pages * page_bytes > LARGE

    def write(
        self, rows: Rows, starts: np.ndarray, sizes: np.ndarray, places: Sequence[Place]
    ) -> list[Outcome]:
        """Write n pages with pieces of the same sizes to the places in their rows.

        Parameters
        ----------
        rows : numpy.ndarray of ROW, (n,)
            Their checksums are filled in, unless they have one.
        starts, sizes : numpy.ndarray
            int64, (n, k) and (k,): address and bytes of each piece.
        places : sequence of Place
            Those of the second writer come last, and are written at the same time as the others.
        """
        half = sum(place.count for place in places if not place.writer)
        if half == len(rows):
            return self._write_part(self.lanes[0], rows, starts, sizes)
        return self._in_halves("WRITE", half, self._write_part, rows, starts, sizes)

    def _write_part(self, lane: Lane, rows: Rows, starts: np.ndarray, sizes: np.ndarray) -> list[Outcome]:
        with self._near("WRITE", starts, sizes) as near:
            near.gather()
            outcomes = self._move(lane, "WRITE", rows, near.starts, sizes)
            if rows["checksum"][0] == NONE:
                rows["checksum"] = checksums(near.starts, sizes)
        return outcomes

    def read(self, rows: Rows, starts: np.ndarray, sizes: np.ndarray) -> list[Outcome]:
        """Load n pages with pieces of the same sizes from where their rows say; parameters as in ``write``.

        Pages whose bytes are not those that were stored fail with a ``DamagedError``.
        """
        if self.in_two(len(rows), int(sizes.sum())):
            return self._in_halves("READ", len(rows) // 2, self._read_part, rows, starts, sizes)
        return self._read_part(self.lanes[0], rows, starts, sizes)

    def _read_part(self, lane: Lane, rows: Rows, starts: np.ndarray, sizes: np.ndarray) -> list[Outcome]:
        with self._near("READ", starts, sizes) as near:
            outcomes = self._move(lane, "READ", rows, near.starts, sizes)
            self._compare(rows, near.starts, sizes, outcomes)
            if outcomes.count(MOVED) == len(rows):
                near.scatter(np.arange(len(rows)))
            else:
                near.scatter(np.flatnonzero([outcome is MOVED for outcome in outcomes]))
        return outcomes

    def _compare(self, rows: Rows, starts: np.ndarray, sizes: np.ndarray, outcomes: list[Outcome]) -> None:
        """Compare pages with their checksums, and say in their outcomes which hold other bytes."""
        if self._verify:
            equal = checksums(starts, sizes) == rows["checksum"]
        else:  # only what was written before the machine was booted
            doubted = np.flatnonzero(rows["generation"] < self._store.state["verified_below"])
            if not len(doubted):
                return
            equal = np.ones(len(rows), np.bool_)
            equal[doubted] = checksums(starts[doubted], sizes) == rows["checksum"][doubted]
        if equal.all():
            return
        errors: dict[int, DamagedError] = {}  # by segment; a line is logged for each
        for page in np.flatnonzero(~equal).tolist():
            if outcomes[page] is MOVED:
                error = errors.setdefault(int(rows["segment"][page]), DamagedError(describe(rows[page])))
                outcomes[page] = Outcome.failed(error)

    def _in_halves(
        self, direction: str, half: int, part: Part, rows: Rows, starts: np.ndarray, sizes: np.ndarray
    ) -> list[Outcome]:
        """Move pages in two parts at once, each with a lane of its own."""
        second = self._helpers[direction].start(part, self.lanes[1], rows[half:], starts[half:], sizes)
        try:
            first = part(self.lanes[0], rows[:half], starts[:half], sizes)
        finally:
            rest = second.result()  # the buffers are in use until then
        return first + rest

    def _near(self, direction: str, starts: np.ndarray, sizes: np.ndarray) -> InPool:
        return self._stages[direction].near(self.pools, starts, sizes)

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
        try:
            pieces = joined(rows, starts, sizes)
            fd = self._past_the_cache(segment, fd, pieces)
            lane.move(direction, fd, self._store.segments.bytes, pieces)
        except (RegistrationError, TransferError) as error:
            if len(rows) == 1:
                return [Outcome.failed(error)]
            logger.warning("%s of %d failed, each is tried alone now: %s", direction, len(rows), error)
            alone = [slice(page, page + 1) for page in range(len(rows))]
            return [
                self._move_in(lane, direction, segment, rows[one], starts[one], sizes)[0] for one in alone
            ]
        return [MOVED] * len(rows)

    def _past_the_cache(self, segment: int, fd: int, pieces: Pieces) -> int:
        """Return a descriptor with O_DIRECT if that is enabled and all addresses and sizes allow it, or ``fd``."""
        if self._direct is None or pieces.bits % ALIGNED:
            return fd
        try:
            return self._direct.fd(segment)
        except FileError:  # too many open files, for example
            return fd

    def close(self) -> None:
        """End the threads, and drop the agents.  May be called twice."""
        self._end.close()


def describe(row: Any) -> str:
    """Say where the first of some damaged pages was."""
    return (
        f"segment {row['segment']} holds other bytes than were stored, first in the page of {row['size']} bytes "
        f"at {row['offset']}"
    )
