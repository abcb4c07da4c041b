"""Hits and misses of all processes on a store, and what counting costs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from small_store import PAGE, SmallStore
from support import answer_of, run_python

from hicache_nixl.lifetimes.pooled import counters
from hicache_nixl.lifetimes.pooled.counters import Counters
from hicache_nixl.lifetimes.pooled.inspection import Inspection

OTHER = """
import sys
from pathlib import Path
from small_store import SmallStore
with SmallStore(Path(sys.argv[1])) as store:
    for _ in range(5):
        store.set(range(8))
        store.get(range(4, 12))
print(1)
"""


def counted(folder: Path) -> dict[str, int]:
    with Inspection(folder) as inspection:
        return inspection.facts().counters


def test_gets_and_sets_are_counted_with_their_pages_and_bytes(folder):
    with SmallStore(folder) as store:
        store.set(range(10))
        store.get(range(5, 15))
        store.get(range(10))
    assert counted(folder) == {
        "gets": 2,
        "pages_asked": 20,
        "pages_found": 15,
        "bytes_found": 15 * PAGE,
        "sets": 1,
        "pages_stored": 10,
        "bytes_stored": 10 * PAGE,
        "segments_recycled": 0,
    }


def test_recycled_segments_are_counted(folder):
    with SmallStore(folder) as store:
        for call in range(12):
            store.set(range(call * 128, call * 128 + 128))
    with Inspection(folder) as inspection:
        facts = inspection.facts()
    assert facts.counters["segments_recycled"] == facts.segments[-1].generation - len(facts.segments) > 0


def test_processes_add_to_the_same_counters(folder):
    with SmallStore(folder) as store:
        store.set(range(8))
    for _ in range(2):
        answer_of(run_python("-c", OTHER, str(folder)))
    total = counted(folder)
    assert (total["sets"], total["gets"], total["pages_asked"], total["pages_found"]) == (11, 10, 80, 40)


def test_a_running_process_adds_its_counts_about_once_a_second(folder, monkeypatch):
    monkeypatch.setattr(counters, "INTERVAL", 0.05)
    with SmallStore(folder) as store:
        store.set(range(8))
        time.sleep(0.1)
        store.get(range(8))
        time.sleep(0.1)
        store.get(range(8))
        assert counted(folder)["gets"] >= 1


def test_no_call_waits_for_a_process_that_adds_its_own(folder):
    with SmallStore(folder) as store, SmallStore(folder) as other:
        store.set(range(8))
        with other.connector.lifetime._store.locks.counters() as mine:
            assert mine
            assert not store.connector.lifetime._store.counters.add()
        assert store.connector.lifetime._store.counters.add()
    assert counted(folder)["sets"] == 1


@pytest.mark.parametrize("alike", [True, False])
def test_counting_a_get_costs_microseconds(folder, alike):
    with SmallStore(folder) as store:
        mine = store.connector.lifetime._store
        measured = Counters(mine.state, mine.locks, mine.segments)
        found = np.ones(128, np.bool_)
        sizes = np.array(PAGE, np.uint64) if alike else np.full(128, PAGE, np.uint64)
        times = []
        for _ in range(2000):
            start = time.perf_counter()
            measured.got(found, sizes)
            times.append(time.perf_counter() - start)
    assert np.median(times) < (5e-6 if alike else 20e-6)  # 1 microsecond on an idle machine
