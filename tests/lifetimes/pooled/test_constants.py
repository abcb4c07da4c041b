"""What ``pooled`` keeps open and registered: a constant for the life of the store, whatever the calls."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from pooled_store import Records
from support import keys_of, make_pool, names_open, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import ConfigError
from hicache_nixl.lifetimes.pooled import lifetime as pooled
from hicache_nixl.lifetimes.pooled import transfers

PAGES, LANES, HELPERS = 8, 2, 2
SEGMENTS = [f"pooled/segment-{number:04}" for number in range(LANES)]  # each lane writes to one
IDLE = ["pooled", "pooled/index.0", "pooled/index.0", "pooled/locks", "pooled/state", "pooled/state"]


@pytest.fixture
def pool():
    return make_pool(False, "page_first", PAGES)


@pytest.fixture
def alive(regions_alive):
    """Count the registrations of both agents of a store."""

    def watch(store):
        each = [
            regions_alive(SimpleNamespace(registration=lane.registration))
            for lane in store.lifetime._transfers.lanes
        ]
        return lambda: sum(each, Counter())

    return watch


def test_descriptors_and_registrations_after_every_call(make_store, pool, folder, alive, monkeypatch):
    monkeypatch.setattr(transfers, "LARGE", 1)  # bytes from which both agents take part
    store = make_store("pooled")
    registered = alive(store)
    assert (names_open(folder), registered()) == (IDLE, Counter())
    store.register_mem_pool_host(pool)
    memory = Counter(DRAM_SEG=len(store.pages.memory) * LANES)
    assert registered() == memory
    for number in range(3):
        assert all(store.batch_set_v1(keys_of(PAGES, f"{number}-"), pool.page_indices(0, PAGES)))
        assert all(store.batch_get_v1(keys_of(PAGES, f"{number}-"), pool.page_indices(0, PAGES)))
        assert names_open(folder) == sorted([*IDLE, *SEGMENTS])
        assert registered() == memory + Counter(FILE_SEG=LANES)
    threads = threading.active_count()
    assert store.set("value", torch.zeros(4)), "registered for the call"
    assert torch.equal(store.get("value", torch.ones(4)), torch.zeros(4))
    assert store.batch_exists(keys_of(PAGES, "0-")) == PAGES
    store.register_mem_pool_host(pool)
    assert names_open(folder) == sorted([*IDLE, *SEGMENTS])
    assert registered() == memory + Counter(FILE_SEG=LANES)
    assert threading.active_count() == threads
    store.close()
    assert names_open(folder) == []
    assert threading.active_count() == threads - HELPERS


def test_each_segment_is_opened_and_registered_once_also_when_it_is_recycled(make_store, pool, folder, alive):
    store = make_store("pooled", pool=pool, capacity_gb=3 / 1024)
    registered = alive(store)
    for number in range(100):  # 4.8 MB through 3 MiB
        assert all(store.batch_set_v1(keys_of(PAGES, f"{number}-"), pool.page_indices(0, PAGES)))
        assert all(store.batch_get_v1(keys_of(PAGES, f"{number}-"), pool.page_indices(0, PAGES)))
    assert names_open(folder) == sorted([*IDLE, *(f"pooled/segment-{number:04}" for number in range(3))])
    assert registered() == Counter(FILE_SEG=3)
    assert store.lifetime.recycled >= 2


def test_stores_that_nobody_closes_end_with_their_objects(make_store, folder, pool):
    """After an interrupt, or in a program that forgets it."""
    threads = threading.active_count()
    store = HiCacheNixl(storage_config("pooled"), str(folder))
    store.register_mem_pool_host(pool)
    assert store.set("value", torch.zeros(4))
    del store
    assert (names_open(folder), threading.active_count()) == ([], threads)
    assert torch.equal(make_store("pooled").get("value", torch.ones(4)), torch.zeros(4))


def test_what_pooled_does_not_register_is_none_with_a_line(make_store, folder, log):
    store = make_store("pooled")
    assert store.register_files([str(folder / "a")]) is None
    assert "pooled opens and registers its files itself" in log.line()
    assert store.register_objects(["key"]) is None
    assert "pooled stores no objects" in log.line()
    assert store.register_buffers([torch.zeros(4)]) is not None
    assert log.lines() == []
    assert Records(folder).handles() == []


def test_with_a_plugin_for_objects_the_configuration_is_refused(make_store, monkeypatch, folder):
    monkeypatch.setattr(pooled, "OBJ_PLUGINS", ("POSIX",))  # no agent with OBJ without a bucket
    with pytest.raises(
        ConfigError, match="no plugin for files works here; to keep them in objects, name the plugin"
    ):
        make_store("pooled")
    assert names_open(folder) == []
    assert not folder.exists()
