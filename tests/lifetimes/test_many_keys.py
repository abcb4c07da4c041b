"""A call of any number of keys holds few files open at a time, and takes as long for each as a call of few."""

from __future__ import annotations

import resource
import time

import pytest
import torch
from faults import Observed
from pooled_store import Records
from support import (
    SMALL_STORE,
    as_bytes,
    files_in,
    free_descriptors,
    keys_of,
    make_pool,
    names_open,
    scramble,
)

from hicache_nixl.host.pools import pool_for_page_bytes
from hicache_nixl.transport.files import MOST_FILES, most_files

PAGES = 8


@pytest.fixture
def soft_limit():
    """Lower this process's soft limit of descriptors until the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def pool():
    return make_pool(False, "page_first", PAGES)


@pytest.fixture
def store(make_store, pool):
    return make_store("scoped", pool=pool)


def most_open(events):
    """Return the most page files that were open at a time."""
    most = now = 0
    for event in events:
        now += (event == "open") - (event == "close")
        most = max(most, now)
    return most


def repeated(pool, count):
    return pool.page_indices(0, PAGES).repeat(count // PAGES)


@pytest.mark.parametrize(("limit", "most"), [(400, 100), (403, 100), (4096, MOST_FILES)])
def test_a_call_opens_a_quarter_of_the_limit_or_512_files_at_a_time(
    store, pool, folder, soft_limit, replace_method, monkeypatch, limit, most
):
    count = 2 * MOST_FILES
    soft_limit(limit)
    assert most_files() == most
    for call in (store.batch_set_v1, store.batch_get_v1):
        with monkeypatch.context() as patch:
            observed = Observed(store, folder, replace_method, patch)
            assert call(keys_of(count), repeated(pool, count)) == [True] * count
        assert len(observed.opened) == len(observed.closed) == 2 * count
        assert most_open(observed.events) == most
    assert store.batch_exists(keys_of(count)) == count


def test_pages_of_every_part_hold_their_bytes(store, pool, soft_limit):
    original = pool.kv_buffer.clone()
    soft_limit(400)
    keys = [f"{number}" for number in range(400)]
    assert all(store.batch_set_v1(keys, repeated(pool, 400)))
    scramble(pool)
    assert all(store.batch_get_v1(keys[-PAGES:], pool.page_indices(0, PAGES)))
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))


def test_an_error_in_one_part_affects_no_other(store, pool, folder, soft_limit, log):
    soft_limit(400)
    folder.joinpath("200_org-model_0_1_k").mkdir()
    keys = [f"{number}" for number in range(400)]
    assert [
        number for number, stored in enumerate(store.batch_set_v1(keys, repeated(pool, 400))) if not stored
    ] == [200]
    assert "Is a directory" in log.line()
    assert len(files_in(folder)) == 2 * 399 + 1
    assert names_open(folder) == []


def test_values_are_stored_in_parts_too(store, soft_limit):
    soft_limit(400)
    values = [torch.tensor([number]) for number in range(300)]
    assert store.batch_set(keys_of(300), values)
    targets = [torch.zeros(1, dtype=torch.int64) for _ in values]
    assert store.batch_get(keys_of(300), targets) == values


def test_a_call_of_pooled_opens_segments_and_nothing_for_each_key(make_store, pool, folder, log):
    store, count = make_store("pooled", pool=pool), 2 * MOST_FILES
    with free_descriptors(int(SMALL_STORE["capacity_gb"] * 1024)):  # for segments of 1 MiB
        for call in (store.batch_set_v1, store.batch_get_v1):
            assert call(keys_of(count), repeated(pool, count)) == [True] * count
        assert store.batch_exists(keys_of(count)) == count
    assert Records(folder).handles() == []
    assert log.lines() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lifetime", "config"),
    [("scoped", {}), ("pooled", {"capacity_gb": 0.5, "segment_mb": 16})],
    ids=["scoped", "pooled"],
)
def test_a_hundred_thousand_keys_take_as_long_for_each_as_a_thousand(make_store, lifetime, config):
    """Before, key 9996 and all after it failed: each page has two files, and the limit was 20 000."""
    pool = pool_for_page_bytes(1024, pages=PAGES)
    store, seconds = make_store(lifetime, pool=pool, **config), {}
    for count in (1_000, 100_000):
        keys, indices = [f"{count}_{number}" for number in range(count)], repeated(pool, count)
        start = time.perf_counter()
        assert all(store.batch_set_v1(keys, indices))
        assert store.batch_exists(keys) == count
        assert all(store.batch_get_v1(keys, indices))
        seconds[count] = time.perf_counter() - start
    assert seconds[100_000] < 500 * seconds[1_000]  # linear is 100 times, quadratic 10 000 times
