"""Our count of registrations beside NIXL's own: the telemetry that its agent writes into a file.

The file of NIXL 1.5 is a ring: a header of 40 bytes (write and read position, version twice, capacity, mask)
and events of 16 bytes (type, value).  A registration and its end are one event each, with the sum of bytes.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hicache_nixl.lab.worker.client import Worker
from hicache_nixl.lab.worker.setup import Setup

HEADER, EVENT = struct.Struct("<QQIIQQ"), struct.Struct("<IxxxxQ")
VERSION = 4
REGISTERED, DEREGISTERED = 4, 5
PIECE = 2048  # bytes of the keys, or values, of a page
PAGES = 8
CALLS = [("set", 8), ("get", 8), ("set", 3), ("get", 5)]
PIECES = 2 * sum(keys for _, keys in CALLS)
PATIENCE = 20.0


@dataclass(frozen=True)
class Measured:
    """What NIXL says of the bytes in each of its calls, and what our counter says of regions alive."""

    registered: list[int]
    deregistered: list[int]
    regions: int


def events(folder: Path) -> dict[int, list[int]]:
    """Return the values by type of event, as far as they are in the file of the only agent."""
    (path,) = folder.iterdir()
    content = path.read_bytes()
    written, read, version, _, capacity, _ = HEADER.unpack_from(content)
    assert (version, read) == (VERSION, 0), "NIXL writes its telemetry in another form"
    assert written < capacity, "the ring has begun again"
    found: dict[int, list[int]] = {REGISTERED: [], DEREGISTERED: []}
    for kind, value in EVENT.iter_unpack(content[HEADER.size : HEADER.size + written * EVENT.size]):
        found.setdefault(kind, []).append(value)
    return found


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Measured]:
    """Run the calls on a connector, in a process whose NIXL writes telemetry, until so many events are told."""
    folder = tmp_path / "telemetry"
    folder.mkdir()
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", "y")
    monkeypatch.setenv("NIXL_TELEMETRY_DIR", str(folder))

    def run(connector: str, registered: int, deregistered: int) -> Measured:
        with Worker(Setup(connector, page_bytes=2 * PIECE, pages=PAGES)) as worker:
            rows = [worker.call(operation, keys) for operation, keys in CALLS]
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:  # NIXL writes from time to time
                found = events(folder)
                if len(found[REGISTERED]) >= registered and len(found[DEREGISTERED]) >= deregistered:
                    break
                time.sleep(0.05)
            time.sleep(0.3)  # what is too much should be seen too
            found = events(folder)
        assert [row.pages_ok for row in rows] == [keys for _, keys in CALLS]
        return Measured(found[REGISTERED], found[DEREGISTERED], rows[-1].registrations)

    return run


@pytest.mark.parametrize("connector", ["leaky", "sglang==0.5.12"])
def test_nothing_is_deregistered_and_every_buffer_counts(measure, released, connector):
    """Files are registered with no length, so that the bytes are those of the buffers, half of the regions."""
    measured = measure(released(connector), registered=2 * len(CALLS), deregistered=0)
    assert measured.deregistered == []
    assert len(measured.registered) == 2 * len(CALLS)
    assert sum(measured.registered) == PIECES * PIECE
    assert measured.regions == 2 * PIECES == 2 * sum(measured.registered) // PIECE


def test_all_but_the_pool_is_deregistered_by_scoped(measure):
    measured = measure("scoped", registered=1 + len(CALLS), deregistered=len(CALLS))
    pool, files = measured.registered[:1], measured.registered[1:]
    assert pool == [(PAGES + PAGES // 4 + 3) * 2 * PIECE]  # the host pool is larger than a call
    assert files == [2 * keys * PIECE for _, keys in CALLS]
    assert measured.deregistered == files
    assert measured.regions == 1
