"""Every way out of ``_execute_transfer``: what stays open, what is closed once, what the next call does."""

from __future__ import annotations

import ast
import contextlib
import errno
import inspect
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support import LEFT, as_bytes, files_in, keys_of, make_pool, names_open, scramble

from hicache_nixl import lifetimes
from hicache_nixl.config import LIFETIMES
from hicache_nixl.errors import FileError

PAGES = 2  # four files: <key>_k and <key>_v, twice
NAMES = sorted(f"{key}_org-model_0_1{ending}" for key in keys_of(PAGES) for ending in ("_k", "_v"))


def raising(error: BaseException) -> Callable[..., Any]:
    def outcome(original: Callable[..., Any], *args: Any) -> Any:
        raise error

    return outcome


def answering_nothing(original: Callable[..., Any], *args: Any) -> Any:
    return None


def err_once_it_is_over(original: Callable[..., Any], handle: Any) -> str:
    while original(handle) == "PROC":
        pass
    return "ERR"


@dataclass(frozen=True)
class Fault:
    """One method of the live agent or file manager fails, on the given calls of it (from 1)."""

    target: str
    method: str
    outcome: Callable[..., Any]
    calls: tuple[int, ...] = (1,)

    @property
    def all_open(self) -> bool:
        """Whether every file of the call is open when it strikes."""
        return self.target == "agent"


IN_NIXL = RuntimeError("made to fail in place of NIXL")
NO_DESCRIPTOR = FileError(errno.EMFILE, os.strerror(errno.EMFILE), "made to fail")
FAULTS = {
    "open of the first file": Fault("file_manager", "open_file", raising(NO_DESCRIPTOR)),
    "open of the second file": Fault("file_manager", "open_file", raising(NO_DESCRIPTOR), (2,)),
    "open of the last file": Fault("file_manager", "open_file", raising(NO_DESCRIPTOR), (4,)),
    "register files": Fault("agent", "register_memory", raising(IN_NIXL)),
    "register buffers": Fault("agent", "register_memory", raising(IN_NIXL), (2,)),
    "host list None": Fault("agent", "get_xfer_descs", answering_nothing),
    "storage list None": Fault("agent", "get_xfer_descs", answering_nothing, (2,)),
    "list raises": Fault("agent", "get_xfer_descs", raising(IN_NIXL)),
    "initialize, twice": Fault("agent", "initialize_xfer", raising(IN_NIXL), (1, 2)),
    "register again": Fault("agent", "initialize_xfer", raising(IN_NIXL)),
    "post raises": Fault("agent", "transfer", raising(IN_NIXL)),
    "post ERR": Fault("agent", "transfer", lambda original, handle: "ERR"),
    "poll raises": Fault("agent", "check_xfer_state", raising(IN_NIXL)),
    "poll ERR": Fault("agent", "check_xfer_state", err_once_it_is_over),
    "nobody expects": Fault("agent", "check_xfer_state", raising(ZeroDivisionError("made to fail"))),
}
RECOVERED = "register again"  # the buffers are registered once more, and the transfer goes through
FAILING = [name for name in FAULTS if name != RECOVERED]
INTERRUPTS = {
    "open": Fault("file_manager", "open_file", raising(KeyboardInterrupt()), (2,)),
    "register": Fault("agent", "register_memory", raising(KeyboardInterrupt())),
    "poll": Fault("agent", "check_xfer_state", raising(KeyboardInterrupt())),
}


class Observed:
    """Records what a store opens, closes, posts and releases, on the real agent and the real files."""

    def __init__(self, store, replace):
        self._store, self._replace = store, replace
        self.opened, self.closed, self.released, self.posted = [], [], [], []
        self.released_in_flight = False
        agent, manager = store.registration.agent, store.file_manager
        self._poll = agent.check_xfer_state
        self._record(manager, "open_file", lambda result, *args: self.opened.append(result))
        self._record(manager, "close_file", lambda result, fd: self.closed.append(fd))
        self._record(agent, "transfer", lambda result, handle: self.posted.append(handle))
        release = agent.release_xfer_handle

        def observed_release(handle):
            if handle in self.posted and self._poll(handle) == "PROC":
                self.released_in_flight = True
            self.released.append(handle)
            return release(handle)

        replace(agent, "release_xfer_handle", observed_release)

    def _record(self, target, method, note):
        original = getattr(target, method)

        def recorded(*args):
            result = original(*args)
            note(result, *args)
            return result

        self._replace(target, method, recorded)

    def arm(self, fault):
        """Put a fault in place; return the function that takes it back."""
        target = self._store.registration.agent if fault.target == "agent" else self._store.file_manager
        original, calls = getattr(target, fault.method), []

        def failing(*args, **kwargs):
            calls.append(args)
            if len(calls) in fault.calls:
                return fault.outcome(original, *args, **kwargs)
            return original(*args, **kwargs)

        self._replace(target, fault.method, failing)

        def disarm():
            assert len(calls) >= max(fault.calls), f"{fault.method} was never reached"
            setattr(target, fault.method, original)

        return disarm


@pytest.fixture
def pool():
    return make_pool(False, "page_first", PAGES)


@pytest.fixture
def store(make_store, lifetime, pool):
    return make_store(lifetime, pool=pool)


@pytest.fixture
def observed(store, replace_method):
    return Observed(store, replace_method)


def closed_by_the_call(left, opened):
    """Descriptors that a call which opened all its files has closed at its end."""
    return Counter() if left.fds else Counter(opened)


# -- success ---------------------------------------------------------------------------------------------


def test_success_closes_each_descriptor_once_through_close_file(store, left, pool, folder, observed):
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert len(observed.opened) == len(NAMES)
    assert Counter(observed.closed) == closed_by_the_call(left, observed.opened)
    assert names_open(folder) == NAMES * left.fds
    assert len(observed.released) == 1
    assert not observed.released_in_flight


def test_buffers_are_registered_once_more_when_the_request_is_refused(
    store, left, pool, folder, observed, regions_alive, log
):
    alive = regions_alive(store)
    disarm = observed.arm(FAULTS[RECOVERED])
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    disarm()
    assert alive["DRAM_SEG"] == 2 * len(NAMES) * left.buffer_registrations
    assert names_open(folder) == NAMES * left.fds
    assert log.lines() == []


# -- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAILING)
def test_a_failed_set_leaves_what_the_lifetime_predicts(store, left, pool, folder, observed, log, name):
    fault = FAULTS[name]
    disarm = observed.arm(fault)
    assert store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)) == [False] * PAGES
    assert names_open(folder) == (NAMES * left.fds if fault.all_open else []), f"fd leak after {name}"
    if fault.all_open:
        assert Counter(observed.closed) == closed_by_the_call(left, observed.opened)
    else:
        assert Counter(observed.closed) == Counter(observed.opened), "those opened before are closed, once"
    assert files_in(folder) == [], "nothing half-written stays"
    assert "batch_set_v1" in (line := log.line()) or "WRITE" in line
    disarm()
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert files_in(folder) == NAMES
    assert log.lines() == []


@pytest.mark.parametrize("name", FAILING)
def test_a_failed_get_leaves_what_the_lifetime_predicts(store, left, pool, folder, observed, log, name):
    fault = FAULTS[name]
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    original, stored = pool.kv_buffer.clone(), NAMES * left.fds
    disarm = observed.arm(fault)
    assert store.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)) == [False] * PAGES
    leaked = NAMES * left.fds if fault.all_open else []
    assert names_open(folder) == sorted(stored + leaked), f"fd leak after {name}"
    assert files_in(folder) == NAMES, "a page that could not be read stays"
    assert "READ" in log.line()
    disarm()
    scramble(pool)
    assert all(store.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))


@pytest.mark.parametrize("name", [name for name in FAILING if FAULTS[name].all_open])
def test_the_handle_is_released_once_and_never_in_flight(store, pool, observed, name):
    disarm = observed.arm(FAULTS[name])
    store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES))
    made = FAULTS[name].method in ("transfer", "check_xfer_state")
    assert len(observed.released) == (1 if made else 0)
    assert not observed.released_in_flight
    disarm()


def test_a_write_that_fails_takes_an_older_page_of_the_same_key_with_it(store, pool, folder, observed):
    """Some of the new bytes may be in the file, so it is no page any more."""
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    disarm = observed.arm(FAULTS["poll ERR"])
    assert not any(store.batch_set_v1(keys_of(1), pool.page_indices(1, 1)))
    disarm()
    assert store.batch_exists(keys_of(PAGES)) == 0
    assert files_in(folder) == [name for name in NAMES if name.startswith("page1")]


def test_a_write_that_never_began_leaves_the_older_page(store, pool, folder, observed):
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    disarm = observed.arm(FAULTS["register files"])
    assert not any(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    disarm()
    original = pool.kv_buffer.clone()
    scramble(pool)
    assert all(store.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))


# -- Ctrl-C ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTERRUPTS)
def test_an_interrupt_goes_through_and_leaves_what_the_lifetime_predicts(
    store, left, pool, folder, observed, name
):
    fault = INTERRUPTS[name]
    disarm = observed.arm(fault)
    with pytest.raises(KeyboardInterrupt):
        store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES))
    disarm()
    leaked = NAMES * left.fds if fault.all_open else NAMES[:1] * left.interrupted_opens
    assert names_open(folder) == leaked, f"fd leak after {name}"
    assert files_in(folder) == [], "nothing half-written stays"
    assert len(observed.released) == (1 if name == "poll" else 0)
    assert not observed.released_in_flight
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), IN_NIXL], ids=["interrupt", "exception"])
def test_a_transfer_in_flight_is_waited_for_before_its_handle_is_released(store, pool, replace_method, error):
    """To release a handle in flight is a use after free (nixl #1955)."""
    agent, seen = store.registration.agent, []
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
        assert store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)) == [False] * PAGES
    assert seen[:4] == ["PROC"] * 4
    assert seen[-2:] == ["DONE", "released"]
    assert seen.count("released") == 1


# -- the modules themselves ------------------------------------------------------------------------------


def outline(lifetime: str) -> list[str]:
    tree = ast.parse(inspect.getsource(getattr(lifetimes, lifetime)))
    definitions = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in ast.walk(tree) if isinstance(node, definitions)]


def test_lifetimes_have_one_outline_so_that_their_diff_is_the_patch():
    shared = ["Lifetime", "__init__", "register_files", "_execute_transfer", "close"]
    assert {lifetime: outline(lifetime) for lifetime in LIFETIMES} == dict.fromkeys(LIFETIMES, shared)


def test_every_lifetime_has_a_module_and_a_line_in_the_table_of_these_tests():
    assert list(lifetimes.BY_NAME) == list(LIFETIMES)
    assert list(LEFT) == list(LIFETIMES)


def test_close_leaves_a_leak_to_the_end_of_the_process(make_store, pool, folder):
    """Nobody owns what leaky opened, so closing the connector closes none of it."""
    store = make_store("leaky", pool=pool)
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    store.close()
    assert names_open(folder) == NAMES
