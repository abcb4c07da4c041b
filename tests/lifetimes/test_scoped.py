"""The lifetime ``scoped``: whatever happens, what a call opened and registered ends with it, once, in order."""

from __future__ import annotations

import ast
import gc
import os
import weakref
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faults import FAULTS, IN_NIXL, INTERRUPTS, NAMES, Fault, Observed, get_pages, raising, set_pages
from support import (
    as_bytes,
    file_size_limit,
    files_in,
    keys_of,
    make_pool,
    names_open,
    page_files,
    scramble,
)

import hicache_nixl
from hicache_nixl.config import NixlBackendConfig
from hicache_nixl.lifetimes import file_per_piece, scoped
from hicache_nixl.lifetimes.outcome import MOVED
from hicache_nixl.transport.agent import NixlBackend
from hicache_nixl.transport.objects import ObjectRequests

REGIONS = {"page_first": 1, "page_first_direct": 1, "layer_first": 2}  # the pool; a stage for each direction


@pytest.fixture
def pool():
    return make_pool(False, "page_first")


@pytest.fixture
def store(make_store, pool):
    return make_store("scoped", pool=pool)


@pytest.fixture
def observed(store, folder, replace_method, monkeypatch):
    return Observed(store, folder, replace_method, monkeypatch)


# -- teardown: deregister, then close ----------------------------------------------------------------------


@pytest.mark.parametrize("call", [set_pages, get_pages], ids=["set", "get"])
def test_files_are_deregistered_before_they_are_closed(store, pool, observed, call):
    assert all(set_pages(store, pool))
    observed.events.clear()
    assert all(call(store, pool))
    files = len(NAMES)
    assert observed.events == [
        *["open"] * files,
        *["register FILE_SEG", "post", "release", "deregister FILE_SEG"],
        *["close"] * files,
    ]


def test_buffers_outside_the_pool_are_registered_for_the_call_inside_its_files(store, observed):
    assert store.set("value", torch.zeros(4))
    assert observed.events == [
        *["open", "register FILE_SEG", "register DRAM_SEG", "post", "release"],
        *["deregister DRAM_SEG", "deregister FILE_SEG", "close"],
    ]


WAYS_OUT = {f"fails: {name}": fault for name, fault in FAULTS.items()} | {
    f"interrupt: {name}": fault for name, fault in INTERRUPTS.items()
}


@pytest.mark.parametrize("call", [set_pages, get_pages], ids=["set", "get"])
@pytest.mark.parametrize("name", WAYS_OUT)
def test_every_way_out_ends_everything_once_and_in_order(
    store, pool, folder, replace_method, monkeypatch, name, call
):
    assert all(set_pages(store, pool))
    observed = Observed(store, folder, replace_method, monkeypatch)
    disarm = observed.arm(WAYS_OUT[name])
    with suppress(KeyboardInterrupt):
        assert not all(call(store, pool))
    disarm()
    assert names_open(folder) == []
    assert Counter(observed.closed) == Counter(observed.opened), "each closed once"
    assert observed.refused == [], "closed twice"
    assert observed.registered == 0, "left registered"
    assert not observed.deregistered_twice
    assert closed_while_registered(observed.events) == 0


def closed_while_registered(events):
    registered = closed = 0
    for event in events:
        registered += (event == "register FILE_SEG") - (event == "deregister FILE_SEG")
        closed += event == "close" and registered > 0
    return closed


@pytest.mark.parametrize("error", [IN_NIXL, KeyboardInterrupt()], ids=["exception", "interrupt"])
@pytest.mark.parametrize("step", [1, 2], ids=["register files", "register buffers"])
def test_values_end_what_they_began_when_a_registration_fails(store, observed, folder, error, step):
    disarm = observed.arm(Fault("register_memory", raising(error), (step,)))
    with suppress(KeyboardInterrupt):
        assert store.batch_set(keys_of(2), [torch.zeros(4), torch.ones(4)]) is False
    disarm()
    assert Counter(observed.closed) == Counter(observed.opened)
    assert len(observed.opened) == 2
    assert observed.registered == 0
    assert files_in(folder) == []


def test_a_deregistration_that_fails_is_false_with_a_line_and_closes_the_files(
    store, pool, observed, folder, log
):
    disarm = observed.arm(Fault("deregister_memory", raising(IN_NIXL)))
    assert not any(set_pages(store, pool))
    disarm()
    assert "cannot deregister" in log.line()
    assert Counter(observed.closed) == Counter(observed.opened)
    assert files_in(folder) == []
    assert all(set_pages(store, pool))


# -- the pool's memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mla", [False, True], ids=["multi_head", "mla"])
def test_host_memory_is_registered_once_for_any_number_of_calls(
    make_store, layout, mla, folder, replace_method, monkeypatch
):
    pool = make_pool(mla, layout)
    store = make_store("scoped", mla=mla)
    observed = Observed(store, folder, replace_method, monkeypatch)
    store.register_mem_pool_host(pool)
    for _ in range(5):
        assert all(set_pages(store, pool))
        assert all(get_pages(store, pool))
    assert observed.events.count("register DRAM_SEG") == REGIONS[layout]
    assert observed.events.count("deregister DRAM_SEG") == 0
    store.close()
    assert observed.events.count("deregister DRAM_SEG") == REGIONS[layout]
    assert not observed.deregistered_twice
    assert observed.registered == 0


def test_the_memory_of_another_pool_takes_the_place_of_the_first_one_s(make_store, regions_alive):
    store = make_store("scoped")
    alive = regions_alive(store)
    for layout in ("layer_first", "page_first", "page_first", "layer_first", "page_first_direct"):
        pool = make_pool(False, layout)
        store.register_mem_pool_host(pool)
        assert alive["DRAM_SEG"] == REGIONS[layout]
        original = pool.kv_buffer.clone()
        assert all(store.batch_set_v1(keys_of(8), pool.page_indices(0, 8)))
        scramble(pool)
        assert all(store.batch_get_v1(keys_of(8), pool.page_indices(0, 8)))
        assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))
        assert alive == {"DRAM_SEG": REGIONS[layout], "FILE_SEG": 0}
    store.close()
    assert alive["DRAM_SEG"] == 0


def test_calls_register_their_own_memory_when_that_of_the_pool_could_not_be_exchanged(store, pool, observed):
    def ends_and_raises(original, *args):
        original(*args)
        raise IN_NIXL

    disarm = observed.arm(Fault("deregister_memory", ends_and_raises))
    with pytest.raises(hicache_nixl.HiCacheNixlError):
        store.register_mem_pool_host(make_pool(False, "page_first"))
    disarm()
    assert all(set_pages(store, pool))
    assert all(get_pages(store, pool))


@pytest.mark.parametrize("layout", REGIONS)
def test_on_posix_aio_the_agent_that_follows_a_failed_transfer_knows_the_pool(
    make_store, regions_alive, monkeypatch, folder, layout
):
    """Its queue keeps a failed I/O, so the agent is replaced, and host memory is registered with the new one."""
    really, agents = file_per_piece.make_backend, []

    def watched(config):
        backend = really(config)
        agents.append(regions_alive(SimpleNamespace(registration=backend)))
        return backend

    monkeypatch.setattr(file_per_piece, "make_backend", watched)
    pool = make_pool(False, layout)
    store = make_store("scoped", pool=pool, posix={"queue": "posix_aio"})
    with file_size_limit(1000):
        assert not any(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    assert len(agents) > 1
    for _ in range(2):
        assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
        expected = page_files(pool, False, 0), page_files(pool, False, 1)
        assert all(store.batch_get_v1(keys_of(2), pool.page_indices(4, 2)))
        assert (page_files(pool, False, 4), page_files(pool, False, 5)) == expected
        alive = [agent["DRAM_SEG"] for agent in agents]
        assert alive == [0] * (len(agents) - 1) + [REGIONS[layout]]
        assert [agent["FILE_SEG"] for agent in agents] == [0] * len(agents)
    assert names_open(folder) == []


# -- register_files hands back an owner --------------------------------------------------------------------


@pytest.fixture
def paths(store, pool, folder):
    assert all(set_pages(store, pool))
    return [str(folder / name) for name in NAMES]


def test_the_owner_of_registered_files_is_a_context_manager(store, paths, folder, regions_alive):
    alive = regions_alive(store)
    with store.register_files(paths) as owner:
        assert names_open(folder) == NAMES
        assert owner.registration.descCount() == alive["FILE_SEG"] == len(paths)
    assert names_open(folder) == []
    assert alive["FILE_SEG"] == 0


def test_an_owner_deregisters_then_closes_and_may_be_closed_twice(store, paths, observed):
    owner = store.register_files(paths)
    observed.events.clear()
    owner.close()
    owner.close()
    assert observed.events == ["deregister FILE_SEG", *["close"] * len(paths)]
    assert observed.refused == []


def test_owners_are_apart(store, paths, folder, regions_alive):
    alive = regions_alive(store)
    first, second = store.register_files(paths[:1]), store.register_files(paths[1:])
    second.close()
    assert names_open(folder) == NAMES[:1]
    assert alive["FILE_SEG"] == 1
    first.close()
    assert names_open(folder) == []


def test_nothing_remembers_an_owner_that_was_closed(store, paths):
    owner = store.register_files(paths)
    remembered = weakref.ref(owner)
    owner.close()
    del owner
    gc.collect()
    assert remembered() is None


def test_an_owner_that_was_dropped_is_closed_with_the_connector(store, paths, folder):
    store.register_files(paths)
    gc.collect()
    assert names_open(folder) == NAMES
    store.close()
    assert names_open(folder) == []


def test_close_of_the_connector_closes_what_was_not_closed(store, paths, folder, observed):
    owners = [store.register_files(paths) for _ in range(3)]
    owners[1].close()
    observed.events.clear()
    store.close()
    assert observed.events == [*["deregister FILE_SEG", *["close"] * len(paths)] * 2, "deregister DRAM_SEG"]
    assert names_open(folder) == []
    for owner in owners:
        owner.close()
    assert observed.refused == []
    assert not observed.deregistered_twice


def test_a_missing_file_closes_those_that_were_opened_and_says_which(store, paths, folder, observed, log):
    missing = str(folder / "missing")
    assert store.register_files([*paths, missing, *paths]) is None
    assert missing in log.line()
    assert Counter(observed.closed) == Counter(observed.opened)
    assert observed.registered == 0


def test_files_that_cannot_be_registered_are_closed(store, paths, folder, observed, log):
    disarm = observed.arm(Fault("register_memory", raising(IN_NIXL)))
    assert store.register_files(paths) is None
    disarm()
    assert "cannot register" in log.line()
    assert names_open(folder) == []


# -- the review of PR #24671 -------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["WRITE", "READ"])
def test_objects_never_enter_the_part_that_deals_with_files(monkeypatch, direction):
    """Second remark: there is no file manager, and nothing is opened or closed."""
    asked = []
    monkeypatch.setattr(os, "open", raising(AssertionError("a file was opened")))
    monkeypatch.setattr(os, "close", raising(AssertionError("a file was closed")))
    backend = NixlBackend(agent=None, agent_name="", plugin="OBJ", mem_type="OBJ", keeps_failed_io=False)
    monkeypatch.setattr(file_per_piece, "make_backend", lambda config: backend)
    for name in ("put", "get"):
        monkeypatch.setattr(
            ObjectRequests, name, lambda self, *what, name=name: asked.append((name, *what)) or [None, None]
        )
    section = {"active": True, "bucket": "bucket"}
    config = NixlBackendConfig({"lifetime": "scoped", "plugin": {"obj": section}})
    lifetime = scoped.Lifetime(config, "unused")
    tensor = torch.zeros(4)
    outcomes = lifetime._move([tensor, (1000, 24)], ["a", "b"], direction)
    monkeypatch.undo()
    assert outcomes == [MOVED, MOVED]
    pieces = [(tensor.data_ptr(), 16), (1000, 24)]
    assert asked == [("put" if direction == "WRITE" else "get", ["a", "b"], pieces)]


def test_nothing_imports_traceback():
    """First remark."""
    modules = sorted(Path(hicache_nixl.__file__).parent.rglob("*.py"))
    imported = {
        (module.name, name)
        for module in modules
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (alias.name for alias in node.names)
    }
    assert ("connector.py", "logging") in imported
    assert [module for module, name in imported if name == "traceback"] == []


# -- threads -----------------------------------------------------------------------------------------------


def test_owners_of_registered_files_come_and_go_in_threads(make_store, run_together, folder, regions_alive):
    store = make_store()
    assert store.batch_set(keys_of(4), [torch.zeros(4)] * 4)
    alive = regions_alive(store)
    paths = [str(folder / f"{key}_org-model_0_1") for key in keys_of(4)]

    def owning():
        for _ in range(30):
            with store.register_files(paths) as owner:
                assert owner.registration.descCount() == 4

    run_together(owning, owning, owning)
    assert names_open(folder) == []
    assert alive["FILE_SEG"] == 0
