"""What a connector counts is what was done, in every lifetime; nothing is left of it after ``close()``."""

from __future__ import annotations

import ast
import gc
import os
import sys
import types
import zipfile

import pytest
import torch
from counting import PAGE_BYTES, PIECES, set_pages
from faults import err_once_it_is_over
from prometheus_client import REGISTRY
from several import hashed, page_of, register, several_pools, transfer
from support import (
    LEFT,
    free_descriptors,
    keys_of,
    make_pool,
    names_open,
)

from hicache_nixl.lab.worker.releases import fetch, known_releases
from hicache_nixl.metrics import SGLANG, StorageMetrics

# -- counts ----------------------------------------------------------------------------------------------


def test_pages_and_bytes_that_were_stored_and_loaded(store, pool, value):
    assert all(set_pages(store, pool, 3))
    assert all(store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)))
    assert (value("pages_total", operation="set"), value("pages_total", operation="get")) == (3, 2)
    assert value("bytes_total", operation="set") == 3 * PAGE_BYTES
    assert value("bytes_total", operation="get") == 2 * PAGE_BYTES


@pytest.mark.parametrize("layout", ["layer_first", "page_first_direct"])
def test_bytes_do_not_depend_on_the_layout(make_store, lifetime, layout, value):
    pool = make_pool(False, layout)
    store = make_store(lifetime, pool=pool, metrics=True)
    assert all(set_pages(store, pool, 3))
    assert all(store.batch_get_v1(keys_of(3), pool.page_indices(0, 3)))
    assert value("bytes_total", operation="set") == value("bytes_total", operation="get") == 3 * PAGE_BYTES


def test_values_are_pages_too(store, value):
    assert store.batch_set(["a", "b"], [torch.zeros(4), torch.zeros(8)])
    assert store.get("a", torch.zeros(4)) is not None
    assert (value("pages_total", operation="set"), value("bytes_total", operation="set")) == (2, 48)
    assert (value("pages_total", operation="get"), value("bytes_total", operation="get")) == (1, 16)


def test_hits_and_misses_of_a_get(store, pool, value, lifetime):
    set_pages(store, pool, 2)
    answers = store.batch_get_v1(["page0", "nowhere", "page1"], pool.page_indices(0, 3))
    assert answers == LEFT[lifetime].answers(True, False, True)
    hits = sum(answers)
    assert (value("hits_total", operation="get"), value("misses_total", operation="get")) == (hits, 3 - hits)
    assert value("bytes_total", operation="get") == hits * PAGE_BYTES
    assert [name for name in samples("failures_total") if name] == [], (
        "a page that is not stored is no failure"
    )


def test_hits_and_misses_of_a_lookup(store, pool, value):
    set_pages(store, pool, 2)
    assert store.batch_exists(["page0", "page1", "nowhere", "page0"]) == 2
    assert store.exists("page0")
    assert (value("hits_total", operation="exists"), value("misses_total", operation="exists")) == (3, 2)


def test_each_call_is_timed_by_its_name(store, pool, value):
    for _ in range(3):
        set_pages(store, pool, 1)
    store.batch_exists(keys_of(1))
    store.clear()
    counts = {
        name: value("seconds_count", operation=name) for name in ("batch_set_v1", "batch_exists", "clear")
    }
    assert counts == {"batch_set_v1": 3, "batch_exists": 1, "clear": 1}
    assert value("seconds_sum", operation="batch_set_v1") > 0


def test_pages_of_every_host_pool_count(make_store, lifetime, value):
    pools, keys = several_pools(), hashed(3)
    store = make_store(lifetime, metrics=True)
    register(store, pools)
    transfers = [transfer(name, pool, keys) for name, pool in pools.items()]
    assert all(map(all, store.batch_set_v2(transfers).values()))
    assert all(map(all, store.batch_get_v2(transfers).values()))
    assert store.batch_exists_v2([*keys, "nowhere"], transfers[1:]).kv_hit_pages == 3
    assert value("pages_total", operation="set") == value("hits_total", operation="get") == 3 * len(pools)
    size = sum(len(page_of(pool, 0)) for pool in pools.values())
    assert value("bytes_total", operation="set") == value("bytes_total", operation="get") == 3 * size
    assert (value("hits_total", operation="exists"), value("misses_total", operation="exists")) == (3, 1)
    for call in ("batch_set_v2", "batch_get_v2", "batch_exists_v2"):
        assert value("seconds_count", operation=call) == 1, "one call of all pools"


# -- failures --------------------------------------------------------------------------------------------


def samples(name):
    """Return the samples of a metric in the registry: the value by its own labels."""
    return {
        tuple(sample.labels[label] for label in ("operation", "reason")): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == f"hicache_nixl_{name}"
    }


def test_no_descriptor_left_is_a_failure_of_each_page(store, pool):
    with free_descriptors(0):
        assert set_pages(store, pool, 2) == [False, False]
    assert samples("failures_total") == {("set", "EMFILE"): 2}


def test_a_transfer_that_fails_in_nixl_is_a_failure_of_its_pages(store, pool, replace_method):
    set_pages(store, pool, 2)
    agent = store.lifetime.registration.agent
    poll = agent.check_xfer_state
    replace_method(agent, "transfer", lambda handle: "ERR")
    replace_method(agent, "check_xfer_state", lambda handle: err_once_it_is_over(poll, handle))
    assert store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
    assert samples("failures_total") == {("get", "TransferError"): 2}


def test_wrong_arguments_are_failures_with_the_class_of_the_error(make_store, lifetime, pool):
    store = make_store(lifetime, metrics=True)
    assert store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)) == [False] * 3
    store.register_mem_pool_host(pool)
    assert store.batch_get_v1(["a/b"], pool.page_indices(0, 1)) == [False]
    assert store.batch_exists("no list") == 0
    assert samples("failures_total") == {
        ("set", "PageIndexError"): 3,
        ("get", "KeyRefusedError"): 1,
        ("exists", "KeyRefusedError"): 1,
    }


@pytest.mark.parametrize("lifetime", ["pooled"])
def test_a_damaged_page_is_a_failure_not_a_miss(store, pool, folder, value):
    set_pages(store, pool, 1)
    (segment,) = (folder / "pooled").glob("segment-*")
    with segment.open("r+b") as file:
        file.write(os.urandom(16))
    assert store.batch_get_v1(keys_of(1), pool.page_indices(0, 1)) == [False]
    assert samples("failures_total") == {("get", "DamagedError"): 1}
    assert value("misses_total", operation="get") == 0


def test_where_it_cannot_be_counted_the_call_goes_on_and_one_line_says_so(store, pool, monkeypatch, log):
    def failing(*args):
        raise OSError("made to fail")

    monkeypatch.setattr(store._calls.metrics, "moved", failing)
    monkeypatch.setattr(store._calls.metrics, "called", failing)
    assert all(set_pages(store, pool, 2))
    assert store.batch_exists(keys_of(2)) == 2
    assert log.line() == "metrics are not complete from now on"


# -- what is open ----------------------------------------------------------------------------------------


def test_open_descriptors_and_registrations_are_what_the_lifetime_leaves(
    store, pool, value, folder, lifetime
):
    left = LEFT[lifetime]
    before, held = value("open_fds"), value("registrations")
    set_pages(store, pool, 3)
    files = 3 * PIECES
    expected = left.fds * files + left.opened_once
    assert value("open_fds") - before == expected
    assert value("open_fds") == len(names_open(folder)) + (lifetime == "scoped")  # that holds the folder, too
    expected = (left.file_registrations + left.buffer_registrations) * files
    lanes = 1 if lifetime == "pooled" else 0  # small batches use one of two
    assert value("registrations") - held == expected + lanes


@pytest.mark.parametrize("lifetime", ["scoped"])
def test_a_registration_that_fails_is_not_counted(store, pool, value, replace_method):
    held = value("registrations")
    kind = type(store.lifetime.registration.agent)
    original = kind.register_memory

    def failing(*args):
        raise RuntimeError("made to fail")

    kind.register_memory = failing
    try:
        assert set_pages(store, pool, 1) == [False]
    finally:
        kind.register_memory = original
    assert value("registrations") == held > 0


@pytest.mark.parametrize("lifetime", ["scoped"])
def test_an_agent_that_is_replaced_takes_its_registrations_with_it(make_store, lifetime, pool, value):
    store = make_store(lifetime, pool=pool, metrics=True, posix={"queue": "posix_aio"})
    assert all(set_pages(store, pool, 1))
    before, replaced = value("registrations"), store.lifetime.registration.agent
    replaced.transfer = lambda handle: "ERR"
    store.batch_get_v1(keys_of(1), pool.page_indices(0, 1))
    assert store.lifetime.registration.agent is not replaced
    del replaced
    gc.collect()
    assert value("registrations") == before


@pytest.mark.parametrize("lifetime", ["pooled"])
def test_the_size_of_a_store_is_in_bytes_beside_its_capacity(store, pool, value):
    assert value("store_bytes") == 0
    set_pages(store, pool, 3)
    assert value("store_bytes") == 3 * PAGE_BYTES
    assert value("store_capacity_bytes") == 20 << 20


# -- for SGLang ------------------------------------------------------------------------------------------


def test_the_stats_are_the_transfers_since_the_last_look(store, pool):
    set_pages(store, pool, 3)
    set_pages(store, pool, 1)
    store.batch_get_v1(keys_of(2), pool.page_indices(0, 2))
    stats = store.get_stats()
    assert (stats.backup_pgs, stats.prefetch_pgs) == ([3, 1], [2])
    assert len(stats.backup_bandwidth) == 2
    assert all(0 < each < 1000 for each in stats.backup_bandwidth + stats.prefetch_bandwidth)
    again = store.get_stats()
    assert (again.backup_pgs, again.prefetch_pgs, again.prefetch_bandwidth) == ([], [], [])


@pytest.mark.parametrize("lifetime", ["scoped"])
@pytest.mark.parametrize("version", sorted(known_releases()))
def test_in_a_server_the_stats_are_sglang_s_own(released, version, store, pool, monkeypatch):
    """Its class, from the source of the release; ``log_storage_metrics`` of the server asserts it."""
    released(f"sglang=={version}")
    source = zipfile.ZipFile(fetch(version)).read(f"{SGLANG.replace('.', '/')}.py")
    (made,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == "StorageMetrics"]
    module = types.ModuleType(SGLANG)
    monkeypatch.setitem(sys.modules, SGLANG, module)
    text = "from dataclasses import dataclass, field\nfrom typing import List\n" + ast.unparse(made)
    exec(compile(text, SGLANG, "exec", dont_inherit=True), vars(module))
    set_pages(store, pool, 2)
    stats = store.get_stats()
    assert type(stats) is module.StorageMetrics
    assert stats.backup_pgs == [2]
    assert list(vars(stats)) == list(vars(StorageMetrics()))
