"""Every step of a call of ``pooled`` fails: what is answered and logged, what stays, and what the next call does.

No page is ever overwritten, so one that was stored before under the same key is still there, and right.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from types import SimpleNamespace

import pytest
from faults import ALWAYS, FAULTS, PAGES, Observed, get_pages, raising, set_pages
from pooled_store import Records, note_names
from support import (
    keys_of,
    make_pool,
    page_files,
    scramble,
)

from hicache_nixl.errors import DamagedError, FileError
from hicache_nixl.lifetimes.pooled import locks, transfers
from hicache_nixl.lifetimes.pooled.locks import Locks

IN_NIXL = {name: fault for name, fault in FAULTS.items() if fault.method != "open"}
MADE = ZeroDivisionError("made")


@pytest.fixture
def pool():
    return make_pool(False, "page_first", 2 * PAGES)


@pytest.fixture
def store(make_store, pool, original):
    """A store that has opened nothing yet, with the pages of the pool in it, which then hold other bytes."""
    with make_store("pooled", pool=pool) as first:
        assert all(set_pages(first, pool))
    scramble(pool)
    return make_store("pooled", pool=pool)


@pytest.fixture
def works(store, pool, original, folder, log):
    """Check that the older pages are right, that new ones can be stored, and that nothing else is open."""

    def check():
        log.lines()
        elsewhere = pool.page_indices(PAGES, PAGES)
        assert store.batch_get_v1(keys_of(PAGES), elsewhere) == [True] * PAGES
        assert [page_files(pool, False, PAGES + page) for page in range(PAGES)] == original
        assert all(store.batch_set_v1(keys_of(PAGES, "new"), elsewhere))
        scramble(pool)
        assert store.batch_get_v1(keys_of(PAGES, "new"), elsewhere) == [True] * PAGES
        assert [page_files(pool, False, PAGES + page) for page in range(PAGES)] == original
        assert log.lines() == []
        assert Records(folder).handles() == []

    return check


def observed_lane(store, lane, folder, replace_method, monkeypatch):
    """Observe one of the two agents."""
    one = SimpleNamespace(
        lifetime=SimpleNamespace(registration=store.lifetime._transfers.lanes[lane].registration)
    )
    return Observed(one, folder, replace_method, monkeypatch)


def passes(fault):
    """Whether a fault is over when each page is tried again alone."""
    return fault.calls != ALWAYS


def failures(direction, keys):
    """Return how the lines begin that are logged when each of some pages has failed alone."""
    return [f"{direction} of 1, first '{key}'" for key in keys]


def beginnings(log):
    return [line.split(":")[0] for line in log.lines()]


# -- NIXL ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_NIXL)
def test_a_failed_set_leaves_the_older_pages(
    store, pool, folder, replace_method, monkeypatch, log, works, name
):
    observed, good = observed_lane(store, 0, folder, replace_method, monkeypatch), passes(IN_NIXL[name])
    keys = [*keys_of(1), "failing"]
    disarm = observed.arm(IN_NIXL[name])
    assert store.batch_set_v1(keys, pool.page_indices(0, PAGES)) == [good] * PAGES
    disarm()
    assert beginnings(log) == failures("WRITE", keys) * (not good)
    assert store.exists("failing") is good
    assert observed.registered <= 1, "the segment"
    assert len(set(map(id, observed.released))) == len(observed.released)
    assert not observed.released_in_flight
    if not good:
        works()


@pytest.mark.parametrize("lane", [0, 1])
@pytest.mark.parametrize("name", IN_NIXL)
def test_a_failed_get_fails_its_pages_and_keeps_them(
    store, pool, folder, replace_method, monkeypatch, log, works, name, lane
):
    """The second agent loads the second half of what is loaded in two threads."""
    monkeypatch.setattr(transfers, "LARGE", 1)
    observed, good = observed_lane(store, lane, folder, replace_method, monkeypatch), passes(IN_NIXL[name])
    keys = ["page0", "page0", "page1", "page1"]
    disarm = observed.arm(IN_NIXL[name])
    expected = [page // 2 != lane or good for page in range(4)]
    assert store.batch_get_v1(keys, pool.page_indices(0, 4)) == expected
    disarm()
    assert beginnings(log) == failures("READ", [f"page{lane}"] * 2) * (not good)
    assert len(set(map(id, observed.released))) == len(observed.released)
    assert not observed.released_in_flight
    assert observed.registered <= 1, "the segment"
    works()


def test_a_get_returns_when_the_second_thread_has_ended_though_the_first_has_failed(
    store, pool, replace_method, monkeypatch, works
):
    """Its transfer still writes into the pages."""
    monkeypatch.setattr(transfers, "LARGE", 1)
    agents = [lane.registration.agent for lane in store.lifetime._transfers.lanes]
    go_on, polled, answers = threading.Event(), threading.Event(), []
    poll = agents[1].check_xfer_state

    def slow_poll(handle):
        polled.set()
        return poll(handle) if go_on.is_set() else "PROC"

    replace_method(agents[0], "initialize_xfer", lambda *args: raising(MADE)(None))
    replace_method(
        agents[1], "transfer", lambda handle: type(agents[1]).transfer(agents[1], handle) and "PROC"
    )
    replace_method(agents[1], "check_xfer_state", slow_poll)
    getting = threading.Thread(target=lambda: answers.extend(get_pages(store, pool)))
    getting.start()
    assert polled.wait(10)
    closing = threading.Thread(target=store._calls.close)  # what ``close`` begins with
    closing.start()
    time.sleep(0.05)
    assert getting.is_alive()
    assert closing.is_alive()
    go_on.set()
    getting.join(10)
    closing.join(10)
    assert answers == [False, True]
    store.close()


@pytest.mark.parametrize("lane", [0, 1])
def test_on_posix_aio_an_agent_that_failed_is_replaced_and_both_lanes_work_on(
    make_store, pool, original, folder, replace_method, monkeypatch, log, lane
):
    """One page for each lane is loaded, so it is not tried again."""
    monkeypatch.setattr(transfers, "LARGE", 1)
    store = make_store("pooled", pool=pool, posix={"queue": "posix_aio"})
    assert all(set_pages(store, pool))
    assert all(get_pages(store, pool))
    lanes = store.lifetime._transfers.lanes
    before = [one.registration.agent for one in lanes]
    replace_method(before[lane], "transfer", lambda handle: "ERR")
    assert get_pages(store, pool) == [page != lane for page in range(PAGES)]
    assert "READ of 1" in log.line()
    assert [one.registration.agent is agent for one, agent in zip(lanes, before, strict=True)] == [
        number != lane for number in (0, 1)
    ]
    scramble(pool)
    assert all(get_pages(store, pool))
    assert [page_files(pool, False, page) for page in range(PAGES)] == original
    assert all(store.batch_set_v1(keys_of(PAGES, "new"), pool.page_indices(0, PAGES)))
    assert Records(folder).handles() == []
    assert log.lines() == []


def test_memory_that_a_new_agent_refuses_is_registered_with_each_call(
    make_store, pool, original, replace_method, log
):
    store = make_store("pooled", pool=pool, posix={"queue": "posix_aio"})
    assert all(set_pages(store, pool))
    lane = store.lifetime._transfers.lanes[0]
    register = lane.registration.register
    replace_method(lane.registration.agent, "transfer", lambda handle: "ERR")
    replace_method(lane.registration, "register", lambda *args: raising(MADE)(None))
    assert get_pages(store, pool) == [False, False]
    replace_method(lane.registration, "register", register)
    log.lines()
    scramble(pool)
    assert all(get_pages(store, pool))
    assert [page_files(pool, False, page) for page in range(PAGES)] == original
    assert log.lines() == []


# -- checksums, the index and its lock, the second thread --------------------------------------------------


@pytest.mark.parametrize("large", [1, 1 << 30], ids=["second thread", "one thread"])
def test_checksums_that_cannot_be_computed_fail_the_call(store, pool, monkeypatch, log, works, large):
    with monkeypatch.context() as patch:
        patch.setattr(transfers, "LARGE", large)
        patch.setattr(transfers, "checksums", lambda *args: raising(MADE)(None))
        assert set_pages(store, pool) == [False] * PAGES
        assert "unexpected error" in log.line()
        assert get_pages(store, pool) == [False] * PAGES
        assert "unexpected error" in log.line()
    works()


@pytest.mark.parametrize("direction", ["set", "get"])
def test_without_its_second_thread_large_batches_fail_and_small_ones_do_not(
    store, pool, monkeypatch, log, works, direction
):
    store.lifetime._transfers._helpers["WRITE" if direction == "set" else "READ"].close()
    with monkeypatch.context() as patch:
        patch.setattr(transfers, "LARGE", 1)
        assert (set_pages if direction == "set" else get_pages)(store, pool) == [False] * PAGES
    assert "unexpected error" in log.line()
    works()


def test_pages_that_cannot_be_listed_are_not_stored(store, pool, monkeypatch, log, works):
    full = FileError(errno.ENOSPC, os.strerror(errno.ENOSPC), "index.1")
    with monkeypatch.context() as patch:
        patch.setattr(store.lifetime._store.index, "put", lambda *args, **kwargs: raising(full)(None))
        assert set_pages(store, pool) == [False] * PAGES
    assert "WRITE of 2, first 'page0': [Errno 28] No space left on device: 'index.1'" in log.line()
    works()


def test_while_another_process_holds_the_lock_of_the_index_pages_are_loaded_and_not_stored(
    store, pool, folder, monkeypatch, log, works
):
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    dir_fd = os.open(folder / "pooled", os.O_RDONLY)
    other = Locks(dir_fd)
    with other.index():
        assert set_pages(store, pool) == [False] * PAGES
        assert "another process has held a lock" in log.line()
        assert get_pages(store, pool) == [True] * PAGES
        assert store.batch_exists(keys_of(PAGES)) == PAGES
        store.clear()
        assert "clear: " in log.line()
    other.close()
    os.close(dir_fd)
    works()


@pytest.mark.parametrize("error", [FileError(errno.ENOSPC, "full"), DamagedError("state was removed")])
def test_pages_that_cannot_be_renewed_are_loaded_all_the_same(store, pool, monkeypatch, works, error):
    segments = store.lifetime._store.segments
    with monkeypatch.context() as patch:
        patch.setattr(segments, "old_below", lambda: 2**62)
        patch.setattr(segments, "placed", lambda *args: raising(error)(None))
        assert get_pages(store, pool) == [True] * PAGES
    works()


# -- damage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["_k", "_v"])
def test_a_page_of_which_a_byte_changed_fails_once_and_is_missing_then(
    store, pool, original, folder, monkeypatch, log, ending
):
    note_names(monkeypatch)
    assert store.batch_exists(keys_of(PAGES)) == PAGES
    records = Records(folder)
    records.flip(f"page1_org-model_0_1{ending}")
    assert get_pages(store, pool) == [True, False]
    line = log.line()
    assert "READ of 1, first 'page1'" in line
    assert "holds other bytes than were stored" in line
    assert page_files(pool, False, 0) == original[0]
    assert store.batch_exists(keys_of(PAGES)) == 1
    assert get_pages(store, pool) == [True, False]
    assert "not stored" in log.line()
    assert set_pages(store, pool) == [True] * PAGES
    assert get_pages(store, pool) == [True] * PAGES
