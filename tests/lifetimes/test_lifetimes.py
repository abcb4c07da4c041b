"""Every way out of ``_execute_transfer``: what stays open, what is closed once, what the next call does."""

from __future__ import annotations

import ast
import contextlib
import inspect
from collections import Counter

import in_memory
import pytest
import torch
from faults import (
    FAULTS,
    IN_NIXL,
    INTERRUPTS,
    NAMES,
    PAGES,
    Fault,
    Observed,
    err_once_it_is_over,
    get_pages,
    raising,
    set_pages,
)
from support import LEFT, as_bytes, files_in, keys_of, make_pool, names_open, scramble, storage_config

from hicache_nixl import HiCacheNixl, lifetimes
from hicache_nixl.config import FILE_PER_PIECE, RELEASED
from hicache_nixl.errors import ConfigError
from hicache_nixl.transport import agent


@pytest.fixture
def pool():
    return make_pool(False, "page_first", PAGES)


@pytest.fixture
def store(make_store, lifetime, pool):
    return make_store(lifetime, pool=pool)


@pytest.fixture
def observed(store, folder, replace_method, monkeypatch):
    return Observed(store, folder, replace_method, monkeypatch)


def lines_of(left, fault):
    """How many lines a call logs that this fault strikes."""
    if fault.in_transfer:
        return left.lines(PAGES)
    return 1


def names_of(key):
    return [f"{key}_org-model_0_1{ending}" for ending in ("_k", "_v")]


def closed_by_the_call(left, opened):
    """Descriptors that a call which opened all its files has closed at its end."""
    return Counter() if left.fds else Counter(opened)


# -- success ---------------------------------------------------------------------------------------------


def test_success_closes_each_descriptor_once(store, left, pool, folder, observed):
    assert all(set_pages(store, pool))
    assert sorted(observed.opened) == NAMES
    assert Counter(observed.closed) == closed_by_the_call(left, observed.opened)
    assert observed.refused == []
    assert names_open(folder) == NAMES * left.fds
    assert len(observed.released) == 1
    assert not observed.released_in_flight


@pytest.mark.parametrize("lifetime", RELEASED)
def test_a_release_registers_buffers_once_more_when_the_request_is_refused(
    store, left, pool, folder, observed, regions_alive, log
):
    alive = regions_alive(store)
    disarm = observed.arm(Fault("initialize_xfer", raising(IN_NIXL)))
    assert all(set_pages(store, pool))
    disarm()
    assert alive["DRAM_SEG"] == 2 * len(NAMES) * left.buffer_registrations
    assert names_open(folder) == NAMES * left.fds
    assert log.lines() == []


# -- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_set_leaves_what_the_lifetime_predicts(store, left, pool, folder, observed, log, name):
    fault = FAULTS[name]
    disarm, answers = observed.arm(fault), left.answers(*fault.good)
    assert set_pages(store, pool) == answers
    disarm()
    assert names_open(folder) == (NAMES * left.fds if fault.all_open else []), f"fd leak after {name}"
    if fault.all_open:
        assert Counter(observed.closed) == closed_by_the_call(left, observed.opened)
    else:
        assert Counter(observed.closed) == Counter(observed.opened), "those opened before are closed, once"
    assert observed.refused == []
    stored = [
        name for page, good in zip(keys_of(PAGES), answers, strict=True) if good for name in names_of(page)
    ]
    assert files_in(folder) == stored, "nothing half-written stays"
    lines = log.lines()
    assert len(lines) == lines_of(left, fault)
    assert all("batch_set_v1" in line or "WRITE" in line for line in lines)
    assert all(set_pages(store, pool))
    assert files_in(folder) == NAMES
    assert log.lines() == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_get_leaves_what_the_lifetime_predicts(store, left, pool, folder, observed, log, name):
    fault = FAULTS[name]
    assert all(set_pages(store, pool))
    original, stored = pool.kv_buffer.clone(), NAMES * left.fds
    disarm = observed.arm(fault)
    assert get_pages(store, pool) == left.answers(*fault.good)
    disarm()
    leaked = NAMES * left.fds if fault.all_open else []
    assert names_open(folder) == sorted(stored + leaked), f"fd leak after {name}"
    assert files_in(folder) == NAMES, "a page that could not be read stays"
    lines = log.lines()
    assert len(lines) == lines_of(left, fault)
    assert all("READ" in line for line in lines)
    scramble(pool)
    assert all(get_pages(store, pool))
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))


def test_buffers_that_cannot_be_registered_fail_the_call(store, left, folder, observed, log):
    """Values lie anywhere in memory, so that every lifetime registers them in the call."""
    disarm = observed.arm(Fault("register_memory", raising(IN_NIXL), (2,)))
    assert store.batch_set(keys_of(2), [torch.zeros(4), torch.ones(4)]) is False
    disarm()
    names = [f"{key}_org-model_0_1" for key in keys_of(2)]
    assert names_open(folder) == names * left.fds
    assert Counter(observed.closed) == closed_by_the_call(left, names)
    assert files_in(folder) == []
    assert "cannot register" in log.line()


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name].all_open])
def test_the_handle_is_released_once_and_never_in_flight(store, left, pool, observed, name):
    disarm = observed.arm(FAULTS[name])
    set_pages(store, pool)
    disarm()
    transfers = 1 if left.fails_together else 1 + len(NAMES)  # all of them, then each alone
    assert len(observed.released) == (transfers if FAULTS[name].in_transfer else 0)
    assert len(set(map(id, observed.released))) == len(observed.released)
    assert not observed.released_in_flight


def test_a_write_that_fails_takes_an_older_page_of_the_same_key_with_it(store, pool, folder, observed):
    """Some of the new bytes may be in the file, so it is no page any more."""
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    disarm = observed.arm(FAULTS["poll ERR"])
    assert not any(store.batch_set_v1(keys_of(1), pool.page_indices(1, 1)))
    disarm()
    assert store.batch_exists(keys_of(PAGES)) == 0
    assert files_in(folder) == [name for name in NAMES if name.startswith("page1")]


@pytest.mark.parametrize("lifetime", RELEASED)
def test_in_a_release_a_write_that_never_began_leaves_the_older_page(store, pool, folder, observed):
    assert all(set_pages(store, pool))
    disarm = observed.arm(FAULTS["register files"])
    assert not any(set_pages(store, pool))
    disarm()
    original = pool.kv_buffer.clone()
    scramble(pool)
    assert all(get_pages(store, pool))
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))


def test_scoped_leaves_no_older_page_once_it_has_emptied_its_files(make_store, pool, replace_method, folder):
    store = make_store("scoped", pool=pool)
    assert all(set_pages(store, pool))
    replace_method(store.lifetime.registration.agent, "register_memory", lambda *args: raising(IN_NIXL)(None))
    assert not any(set_pages(store, pool))
    assert files_in(folder) == []


@pytest.mark.parametrize("direction", ["set", "get"])
def test_scoped_tries_a_transfer_that_failed_again_file_by_file(
    make_store, pool, replace_method, folder, monkeypatch, log, direction
):
    """NIXL does not say which of its files made it fail."""
    store = make_store("scoped", pool=pool)
    assert all(set_pages(store, pool))
    original = pool.kv_buffer.clone()
    observed = Observed(store, folder, replace_method, monkeypatch)
    disarm = observed.arm(Fault("check_xfer_state", err_once_it_is_over))
    assert all(set_pages(store, pool) if direction == "set" else get_pages(store, pool))
    disarm()
    assert len(observed.posted) == 1 + len(NAMES)
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))
    assert store.batch_exists(keys_of(PAGES)) == PAGES
    assert log.lines() == []


# -- Ctrl-C ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTERRUPTS)
def test_an_interrupt_goes_through_and_leaves_what_the_lifetime_predicts(
    store, left, pool, folder, observed, name
):
    fault = INTERRUPTS[name]
    disarm = observed.arm(fault)
    with pytest.raises(KeyboardInterrupt):
        set_pages(store, pool)
    disarm()
    leaked = NAMES * left.fds if fault.all_open else NAMES[:1] * left.interrupted_opens
    assert names_open(folder) == leaked, f"fd leak after {name}"
    assert observed.refused == []
    assert files_in(folder) == [], "nothing half-written stays"
    assert len(observed.released) == (1 if fault.in_transfer else 0)
    assert not observed.released_in_flight
    assert all(set_pages(store, pool))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), IN_NIXL], ids=["interrupt", "exception"])
def test_a_transfer_in_flight_is_waited_for_before_its_handle_is_released(
    store, left, pool, replace_method, error
):
    """To release a handle in flight is a use after free (nixl #1955)."""
    agent, seen = store.lifetime.registration.agent, []
    poll, release = agent.check_xfer_state, agent.release_xfer_handle

    def slow_poll(handle):
        seen.append("PROC" if len(seen) < 4 else poll(handle))
        if len(seen) == 1:
            raise error
        return seen[-1]

    def observed_release(handle):
        seen.append("released")
        return release(handle)

    replace_method(agent, "check_xfer_state", slow_poll)
    replace_method(agent, "release_xfer_handle", observed_release)
    with contextlib.suppress(KeyboardInterrupt):
        assert set_pages(store, pool) == [not left.fails_together] * PAGES, "where it is not tried again"
    first = seen[: seen.index("released") + 1]
    assert first[:4] == ["PROC"] * 4
    assert first[-2:] == ["DONE", "released"]


# -- the modules themselves ------------------------------------------------------------------------------


def outline(lifetime: str) -> list[str]:
    """Return the public and the shared definitions of a lifetime's class, in order."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(lifetimes.load(lifetime))))
    (lifetime_class,) = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Lifetime"
    ]
    return [node.name for node in lifetime_class.body if isinstance(node, ast.FunctionDef)]


def test_lifetimes_have_one_outline_so_that_their_diff_is_the_patch():
    shared = ["register_pool", "register_files", "_execute_transfer", "close"]
    for lifetime in FILE_PER_PIECE:
        assert [name for name in outline(lifetime) if name in shared] == shared
    assert outline("leaky") == outline("try_finally") == shared


def test_every_lifetime_has_a_module_and_a_line_in_the_table_of_these_tests():
    assert list(lifetimes.BY_NAME) == list(lifetimes.LIFETIMES)
    assert set(LEFT) == {*lifetimes.LIFETIMES, "scoped_objects", "pooled_objects", "in_memory"}


def test_a_name_is_enough_to_add_a_lifetime_that_needs_neither_nixl_nor_a_folder(monkeypatch, folder):
    """The contract suite runs with it, too; nothing in the connector names a lifetime."""
    monkeypatch.setattr(agent, "load_nixl", raising(AssertionError("NIXL was loaded")))
    monkeypatch.setitem(lifetimes.BY_NAME, "in_memory", "in_memory")
    with HiCacheNixl(storage_config("in_memory"), str(folder)) as store:
        assert isinstance(store.lifetime, in_memory.Lifetime)
        assert store.set("key", torch.arange(4))
        assert store.get("key", torch.zeros(4, dtype=torch.int64)).tolist() == [0, 1, 2, 3]
    assert not folder.exists()
    with pytest.raises(ConfigError, match=r"'eternal'.*in_memory"):
        HiCacheNixl(storage_config("eternal"), str(folder))


def test_the_diffable_lifetimes_stay_short():
    for lifetime in FILE_PER_PIECE:
        source = inspect.getsource(inspect.getmodule(lifetimes.load(lifetime)))
        assert len(source.splitlines()) <= 120, lifetime


def test_close_leaves_a_leak_to_the_end_of_the_process(make_store, pool, folder):
    """leaky records no descriptor, so closing the connector closes none."""
    store = make_store("leaky", pool=pool)
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    store.close()
    assert names_open(folder) == NAMES
