"""Requests to an object store through NIXL's OBJ plugin: each a transfer of its own, for a bounded time.

A request cannot be cancelled, and NIXL may answer one long after its caller gave up.  An answer that is late would be
written into host memory that has other pages by then, and a late upload would store other bytes than were asked for.  So
the bytes are moved in memory of this module, a **lane**, and copied from and to the host pool.  A lane whose requests are
not answered in time is kept until they are; while there is one, further calls fail at once.  That ends by itself when the
store is back, or when NIXL gives up.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import zip_longest

from ..config import NixlBackendConfig
from ..errors import AwayError, HiCacheNixlError, MissingError, StoreError
from .bucket import Bucket
from .lane import Lane, Lanes, Part, starts_of, windows
from .registration import NixlRegistration, growing_pause

logger = logging.getLogger(__name__)

IN_FLIGHT = 16  # requests of a call at a time; NIXL has fewer threads, and what waits in its queue cannot be taken back
MARK_BYTES = 8
FAILURES = 8  # after which the store is asked whether it is there
CLOSING = 2.0  # seconds that ``close`` waits for late answers


class ObjectRequests:
    """Puts and gets of one agent.

    Parameters
    ----------
    registration : NixlRegistration
    config : NixlBackendConfig

    Attributes
    ----------
    bucket : Bucket
    """

    def __init__(self, registration: NixlRegistration, config: NixlBackendConfig):
        self._registration, self._patience = registration, config.object_timeout
        self.bucket = Bucket(config.object_params(), config.object_timeout)
        self._lanes = Lanes(registration)
        # Also without ``close()`` NIXL still writes into the lanes of requests that are late, so they must stay.
        self._end = weakref.finalize(self, _end, self._lanes)
        self._end.atexit = False

    def check(self) -> None:
        """Raise ``AwayError`` while a request of an earlier call is not answered."""
        self._lanes.check()

    def lane(self, size: int) -> AbstractContextManager[Lane]:
        """Lend memory for one call; raise ``AwayError`` at once while the store does not answer."""
        return self._lanes.lend(size)

    def run(self, direction: str, lane: Lane, parts: Sequence[Part]) -> list[Exception | None]:
        """Make requests, ``"WRITE"`` or ``"READ"``; return the error of each, None for those that were answered well."""
        assert not lane.running, "a lane has the requests of one call"
        tuples = self._registration.objects_to_nixl_tuples(
            [part.name for part in parts], [part.offset + part.size for part in parts]
        )
        lane.ends.enter_context(self._registration.registered(tuples, "OBJ"))
        errors: dict[int, Exception | None] = {}
        failed, ask_at, away = 0, FAILURES, None
        waiting = deque(enumerate(zip(parts, tuples, strict=True)))
        started = answered = time.monotonic()
        try:
            while waiting or lane.running:
                while waiting and len(lane.running) < IN_FLIGHT:
                    which, (part, stored) = waiting.popleft()
                    errors[which] = self._post(direction, lane, which, part, stored[2])
                    failed += errors[which] is not None
                settled = lane.settle()
                errors |= settled
                now = time.monotonic()
                if settled:
                    answered = now
                    good = list(settled.values()).count(None)
                    failed += len(settled) - good
                    if good:
                        self.bucket.answered()
                    if waiting and failed >= ask_at:
                        ask_at, away = 2 * ask_at, self._cause()
                        if away is not None:
                            waiting.clear()
                elif now - answered > self._patience:
                    break
                elif lane.running:
                    growing_pause(now - started)
        finally:
            if not lane.running:
                lane.ends.close()
        late = away or AwayError(f"the object store did not answer for {self._patience:g} s")
        return [errors.get(which, late) if which not in lane.running else late for which in range(len(parts))]

    def _cause(self) -> StoreError | None:
        """Ask the store why requests failed, which NIXL does not tell; None if it answers."""
        try:
            self.bucket.ask()
        except StoreError as error:
            return error
        return None

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

    def explain(
        self, names: Sequence[str], sizes: Sequence[int], errors: list[Exception | None]
    ) -> list[Exception | None]:
        """Tell why gets failed: objects that are missing, or too small, or a store that refuses or is away.

        ``sizes`` are the bytes that each object has at least.  Errors with the same reason are one object, which is logged
        once.
        """
        failed = [which for which, error in enumerate(errors) if isinstance(error, StoreError)]
        if not failed:
            return errors
        if one := self._one_for_all(errors):
            return _with(one, errors)
        try:
            found = self.bucket.sizes([names[which] for which in failed])
        except StoreError as error:
            return _with(error, errors)
        lost = StoreError("the object store lists objects that NIXL cannot load")
        for which, size in zip(failed, found, strict=True):
            if size is None:
                errors[which] = MissingError(f"{names[which]}: there is no such object")
            elif size < sizes[which]:
                errors[which] = MissingError(
                    f"{names[which]}: the object holds {size} of {sizes[which]} bytes"
                )
            else:
                errors[which] = lost
        return errors

    def explain_puts(self, errors: list[Exception | None]) -> list[Exception | None]:
        """Tell why puts failed, in one error."""
        if not any(isinstance(error, StoreError) for error in errors):
            return errors
        refused = "NIXL could not store objects, though the store answers; it may be full or refuse to be written to"
        return _with(self._one_for_all(errors) or self._cause() or StoreError(refused), errors)

    def _one_for_all(self, errors: Sequence[Exception | None]) -> Exception | None:
        """Return an error of these requests, or of late ones of another call, that tells that the store is away.

        Then it is not asked why others failed: it may be back by now, and would blame something else.
        """
        away = next((error for error in errors if isinstance(error, AwayError)), None)
        return away or _late(self._lanes)

    def put(self, names: Sequence[str], pieces: Sequence[tuple[int, int]]) -> list[Exception | None]:
        """Store each piece, a pair of address and bytes, as an object; return the error of each."""
        return self.explain_puts(self._in_windows(self._put, names, pieces, 0))

    def get(self, names: Sequence[str], pieces: Sequence[tuple[int, int]]) -> list[Exception | None]:
        """Load objects of exactly the size of each piece into it; return the error of each."""
        errors = self._in_windows(self._get, names, pieces, MARK_BYTES)
        return self.explain(names, [size for _, size in pieces], errors)

    def read(self, objects: Sequence[tuple[str, int]]) -> list[bytes | Exception]:
        """Return so many of the first bytes of objects, or the error of one that could not be read."""
        names, sizes = [name for name, _ in objects], [size for _, size in objects]
        contents: list[bytes] = []

        def read_some(some: Sequence[str], pieces: Sequence[tuple[int, int]]) -> list[Exception | None]:
            wanted = [size for _, size in pieces]
            parts = list(map(Part, some, starts_of(wanted), wanted))
            with self.lane(sum(wanted)) as lane:
                errors = self.run("READ", lane, parts)
                contents.extend(lane.bytes_at(part.at, part.size) for part in parts)
            return errors

        errors = self._in_windows(read_some, names, [(0, size) for size in sizes], 0)
        told = self.explain(names, sizes, errors)
        return [content if error is None else error for content, error in zip_longest(contents, told)]

    def write(self, name: str, content: bytes) -> Exception | None:
        """Store an object; return an error."""
        with self.lane(len(content)) as lane:
            lane.write(0, content)
            return self.run("WRITE", lane, [Part(name, 0, len(content))])[0]

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
            if again and not lane.running:
                others = [bytes(255 - byte for byte in marks[which]) for which in again]
                repeated = self._marked(lane, [parts[which] for which in again], others)
                for which, mark, error in zip(again, others, repeated, strict=True):
                    marks[which], errors[which] = mark, error
            elif again:  # the store does not answer any more
                late = next(error for error in errors if error is not None)
                errors = [late if which in again else error for which, error in enumerate(errors)]
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
        self.bucket.close()
        deadline = time.monotonic() + CLOSING
        while self._end.alive and _late(self._lanes) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._end()


def _with(one: Exception, errors: Sequence[Exception | None]) -> list[Exception | None]:
    """Return errors with one in place of all of the store, so that it is logged once."""
    return [one if isinstance(error, StoreError) else error for error in errors]


def _late(lanes: Lanes) -> Exception | None:
    """Return the error of calls while requests are late, also one of NIXL when they end; None when all have ended."""
    try:
        lanes.check()
    except Exception as error:
        return error
    return None


def _end(lanes: Lanes) -> None:
    """End lanes and their agent, in a thread if requests are late."""
    if _late(lanes):
        logger.warning("the object store has not answered all requests; its agent ends when it has")
        threading.Thread(target=_end_later, args=(lanes,), name="hicache-nixl-late", daemon=True).start()
    else:
        lanes.close()


def _end_later(lanes: Lanes) -> None:
    while _late(lanes):
        time.sleep(0.1)
    try:
        lanes.close()
    except HiCacheNixlError as error:
        logger.warning("after the last answers: %s", error)


def _last(lane: Lane, part: Part) -> bytes:
    """Return the last byte that an object should have, and those behind it."""
    return lane.bytes_at(part.at + part.size - MARK_BYTES - 1, 1 + MARK_BYTES)
