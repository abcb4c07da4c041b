"""Requests to an object store through NIXL's OBJ plugin: each a transfer of its own, for a bounded time.

A request cannot be cancelled, and NIXL may answer one long after its caller gave up.  An answer that is late would be
written into host memory that has other pages by then, and a late upload would store other bytes than were asked for.  So
the bytes are moved in memory of this module, a **lane**, and copied from and to the host pool.  A lane whose requests are
not answered in time is kept until they are; while there is one, further calls fail at once.  That ends by itself when the
store is back, or when NIXL gives up.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import HiCacheNixlError, MissingError, StoreError
from ..host.pools import aligned_tensor
from .registration import NixlRegistration, growing_pause

logger = logging.getLogger(__name__)

IN_FLIGHT = 16  # requests of a call at a time; NIXL has fewer threads, and what waits in its queue cannot be taken back
LANE_BYTES = 32 << 20  # of the requests of a call at a time, or of its largest one
MARK_BYTES = 8
CLOSING = 2.0  # seconds that ``close`` waits for late answers


@dataclass(frozen=True)
class Part:
    """A request: some bytes of a lane, and where they are in an object.

    Attributes
    ----------
    name : str
    at, size : int
        In the lane.
    offset : int
        In the object; 0 to write, which is always a whole object.
    """

    name: str
    at: int
    size: int
    offset: int = 0


class Lane:
    """Registered memory for the requests of one call."""

    def __init__(self, registration: NixlRegistration):
        self._registration = registration
        self._held = ExitStack()
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.running: dict[
            int, Any
        ] = {}  # handles of requests that are not answered, by their place in the call
        self.ends = ExitStack()  # what their call has registered

    @property
    def start(self) -> int:
        """Its address."""
        return self._memory.data_ptr()

    def grow(self, size: int) -> None:
        """Have at least this many bytes."""
        if size > len(self._memory):
            self.close()
            self._memory = aligned_tensor((size,), torch.uint8)
            self._held.enter_context(self._registration.registered_buffers([(self.start, size)]))

    def fill(self, at: int, pieces: Sequence[tuple[int, int]]) -> None:
        """Copy pieces, pairs of address and bytes, into the lane, one behind the other."""
        to = self.start + at
        for address, size in pieces:
            ctypes.memmove(to, address, size)
            to += size

    def copy_to(self, at: int, pieces: Sequence[tuple[int, int]]) -> None:
        """Copy bytes of the lane to pieces, one behind the other."""
        source = self.start + at
        for address, size in pieces:
            ctypes.memmove(address, source, size)
            source += size

    def bytes_at(self, at: int, size: int) -> bytes:
        """Return bytes of the lane."""
        return ctypes.string_at(self.start + at, size)

    def write(self, at: int, content: bytes) -> None:
        """Put bytes into the lane."""
        ctypes.memmove(self.start + at, content, len(content))

    def close(self) -> None:
        """End the registration of its memory."""
        self._held.close()


class ObjectRequests:
    """Puts and gets of one agent.

    Parameters
    ----------
    registration : NixlRegistration
    patience : float
        Seconds without any answer after which a call fails.
    """

    def __init__(self, registration: NixlRegistration, patience: float):
        self._registration, self._patience = registration, patience
        self._lock = threading.Lock()
        self._free: list[Lane] = []
        self._late: list[Lane] = []
        self._asked: set[Future[list[Any]]] = set()  # lookups that are not answered

    def check(self) -> None:
        """Raise ``StoreError`` while a request of an earlier call is not answered."""
        with self._lock:
            for lane in list(self._late):
                self._settle(lane)
                if not lane.running:
                    self._late.remove(lane)
                    self._free.append(lane)
            late = sum(len(lane.running) for lane in self._late)
            self._asked = {asked for asked in self._asked if not asked.done()}
            late += len(self._asked)
        if late:
            raise StoreError(
                f"the object store has not answered {late} requests yet; until then, none is made"
            )

    @contextmanager
    def lane(self, size: int) -> Iterator[Lane]:
        """Lend memory for one call; raise ``StoreError`` at once while the store does not answer."""
        self.check()
        with self._lock:
            lane = self._free.pop() if self._free else Lane(self._registration)
        try:
            lane.grow(size)
            yield lane
        finally:
            with self._lock:
                (self._late if lane.running else self._free).append(lane)

    def run(self, direction: str, lane: Lane, parts: Sequence[Part]) -> list[Exception | None]:
        """Make requests, ``"WRITE"`` or ``"READ"``; return the error of each, None for those that were answered well."""
        tuples = self._registration.objects_to_nixl_tuples(
            [part.name for part in parts], [part.offset + part.size for part in parts]
        )
        lane.ends.enter_context(self._registration.registered(tuples, "OBJ"))
        errors: dict[int, Exception | None] = {}
        waiting = deque(enumerate(zip(parts, tuples, strict=True)))
        started = answered = time.monotonic()
        try:
            while waiting or lane.running:
                while waiting and len(lane.running) < IN_FLIGHT:
                    which, (part, stored) = waiting.popleft()
                    errors[which] = self._post(direction, lane, which, part, stored[2])
                before = len(lane.running)
                self._settle(lane, errors)
                now = time.monotonic()
                if len(lane.running) < before:
                    answered = now
                elif now - answered > self._patience:
                    break
                elif lane.running:
                    growing_pause(now - started)
        finally:
            if not lane.running:
                lane.ends.close()
        late = StoreError(f"the object store did not answer for {self._patience:g} s")
        return [errors.get(which, late) if which not in lane.running else late for which in range(len(parts))]

    def _post(self, direction: str, lane: Lane, which: int, part: Part, number: int) -> Exception | None:
        """Post a request; return an error that it ended with at once."""
        agent, registration = self._registration.agent, self._registration
        try:
            host = agent.get_xfer_descs([(lane.start + part.at, part.size, 0)], "DRAM")
            stored = agent.get_xfer_descs([(part.offset, part.size, number)], "OBJ")
            handle = registration.initialize(direction, host, stored)
        except HiCacheNixlError as error:
            return error
        lane.running[which] = handle
        try:
            agent.transfer(handle)
        except Exception as error:  # the handle has ended, too
            del lane.running[which]
            agent.release_xfer_handle(handle)
            return StoreError(f"the request failed in NIXL: {error}")
        return None

    def _settle(self, lane: Lane, errors: dict[int, Exception | None] | None = None) -> None:
        """Release the handles of requests that are answered, and note their errors."""
        agent = self._registration.agent
        for which, handle in list(lane.running.items()):
            error = None
            try:
                if (state := agent.check_xfer_state(handle)) == "PROC":
                    continue
                if state != "DONE":
                    error = StoreError(f"the request failed in NIXL: state {state}")
            except Exception as failure:
                error = StoreError(f"the request failed in NIXL: {failure}")
            del lane.running[which]
            agent.release_xfer_handle(handle)
            if errors is not None:
                errors[which] = error
        if errors is None and not lane.running:
            lane.ends.close()

    def present(self, names: Sequence[str]) -> list[bool]:
        """Return which objects there are.

        Raises
        ------
        StoreError
            When the store refuses, or does not answer in time.
        """
        self.check()
        asked: Future[list[Any]] = Future()
        # A thread of its own, since NIXL waits for the answers; it ends with the last of them, or with the process.
        threading.Thread(target=self._ask, args=(asked, names), daemon=True).start()
        try:
            return [answer is not None for answer in asked.result(self._patience)]
        except LateError:
            with self._lock:
                self._asked.add(asked)
            raise StoreError(f"the object store did not answer for {self._patience:g} s") from None

    def _ask(self, asked: Future[list[Any]], names: Sequence[str]) -> None:
        try:
            asked.set_result(self._registration.query(names))
        except BaseException as error:
            asked.set_exception(error)

    def leading(self, names: Sequence[str]) -> Iterator[bool]:
        """Yield whether each object is there, asking for more and more of them at a time."""
        first, count = 0, IN_FLIGHT
        while first < len(names):
            yield from self.present(names[first : first + count])
            first, count = first + count, 2 * count

    def explain(self, names: Sequence[str], errors: list[Exception | None]) -> list[Exception | None]:
        """Tell objects that are missing from a store that refuses or is away: NIXL reports both alike."""
        failed = [which for which, error in enumerate(errors) if isinstance(error, StoreError)]
        if not failed:
            return errors
        try:
            there = self.present([names[which] for which in failed])
        except HiCacheNixlError:
            return errors
        for which, found in zip(failed, there, strict=True):
            if not found:
                errors[which] = MissingError(f"{names[which]}: there is no such object")
        return errors

    def put(self, names: Sequence[str], pieces: Sequence[tuple[int, int]]) -> list[Exception | None]:
        """Store each piece, a pair of address and bytes, as an object; return the error of each."""
        return self._in_windows(self._put, names, pieces, 0)

    def get(self, names: Sequence[str], pieces: Sequence[tuple[int, int]]) -> list[Exception | None]:
        """Load objects of exactly the size of each piece into it; return the error of each."""
        return self.explain(names, self._in_windows(self._get, names, pieces, MARK_BYTES))

    @staticmethod
    def _in_windows(
        move: Callable[..., list[Exception | None]],
        names: Sequence[str],
        pieces: Sequence[tuple[int, int]],
        more: int,
    ) -> list[Exception | None]:
        errors: list[Exception | None] = []
        try:
            for first, last in windows([size + more for _, size in pieces]):
                errors += move(names[first:last], pieces[first:last])
        except StoreError as error:  # what was moved until then was moved
            errors += [error] * (len(names) - len(errors))
        return errors

    def _put(self, names: Sequence[str], pieces: Sequence[tuple[int, int]]) -> list[Exception | None]:
        sizes = [size for _, size in pieces]
        places = starts_of(sizes)
        with self.lane(sum(sizes)) as lane:
            for at, piece in zip(places, pieces, strict=True):
                lane.fill(at, [piece])
            return self.run("WRITE", lane, list(map(Part, names, places, sizes)))

    def _get(self, names: Sequence[str], pieces: Sequence[tuple[int, int]]) -> list[Exception | None]:
        """Load objects, and compare their sizes by marks around the end of each, since NIXL does not tell sizes.

        A few bytes more are asked for than expected.  The last byte of an object that is too small stays as it was, and
        so do not those behind an object that is too large.  A last byte that is as it was is loaded again over another.
        """
        sizes = [size for _, size in pieces]
        with self.lane(sum(sizes) + MARK_BYTES * len(sizes)) as lane:
            places = starts_of([size + MARK_BYTES for size in sizes])
            parts = [
                Part(name, at, size + MARK_BYTES) for name, at, size in zip(names, places, sizes, strict=True)
            ]
            marks = [os.urandom(1 + MARK_BYTES) for _ in parts]
            errors = self._marked(lane, parts, marks)
            again = [
                which
                for which, part in enumerate(parts)
                if errors[which] is None and _last(lane, part)[:1] == marks[which][:1]
            ]
            if again:
                others = [bytes(255 - byte for byte in marks[which]) for which in again]
                repeated = self._marked(lane, [parts[which] for which in again], others)
                for which, mark, error in zip(again, others, repeated, strict=True):
                    marks[which], errors[which] = mark, error
            for which, (part, mark) in enumerate(zip(parts, marks, strict=True)):
                if errors[which] is not None:
                    continue
                if (last := _last(lane, part))[:1] == mark[:1] or last[1:] != mark[1:]:
                    errors[which] = MissingError(
                        f"{part.name}: the object has another size than {sizes[which]} bytes"
                    )
                else:
                    lane.copy_to(part.at, [pieces[which]])
            return errors

    def _marked(self, lane: Lane, parts: Sequence[Part], marks: Sequence[bytes]) -> list[Exception | None]:
        for part, mark in zip(parts, marks, strict=True):
            lane.write(part.at + part.size - len(mark), mark)
        return self.run("READ", lane, parts)

    def close(self) -> None:
        """End all registrations and the agent; what the store has not answered by then ends later, in a thread."""
        deadline = time.monotonic() + CLOSING
        while self._is_late():
            if time.monotonic() > deadline:
                logger.warning("the object store has not answered all requests; its agent ends when it has")
                threading.Thread(target=self._end_later, daemon=True).start()
                return
            time.sleep(0.05)
        self._end()

    def _is_late(self) -> bool:
        try:
            self.check()
        except StoreError:
            return True
        return False

    def _end_later(self) -> None:
        while self._is_late():
            time.sleep(1)
        self._end()

    def _end(self) -> None:
        while self._free:
            self._free.pop().close()
        self._registration.close()


def _last(lane: Lane, part: Part) -> bytes:
    """Return the last byte that an object should have, and those behind it."""
    return lane.bytes_at(part.at + part.size - MARK_BYTES - 1, 1 + MARK_BYTES)


def windows(sizes: Sequence[int], most: int = LANE_BYTES) -> Iterator[tuple[int, int]]:
    """Yield ranges that are moved at a time: of at most so many bytes, or a single one.

    Examples
    --------
    >>> list(windows([4, 4, 4, 20, 4], 8))
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    first = total = 0
    for which, size in enumerate(sizes):
        if which > first and total + size > most:
            yield first, which
            first, total = which, 0
        total += size
    if sizes:
        yield first, len(sizes)


def starts_of(sizes: Sequence[int]) -> list[int]:
    """Return where things of these sizes start, one behind the other.

    Examples
    --------
    >>> starts_of([4, 8, 2])
    [0, 4, 12]
    """
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += size
    return starts
