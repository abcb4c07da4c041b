"""The v2 interface: pools and transfers that are refused or fail, with every lifetime."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import several
import torch
from faults import raising
from several import OTHERS, each, hashed, pages_of, register, several_pools, transfer, transfers_of
from stores import ALONE

from hicache_nixl.contract import PoolTransfer
from hicache_nixl.errors import ConfigError, RegistrationError


@pytest.fixture
def store(make_store, lifetime, pools):
    store = make_store(lifetime)
    register(store, pools)
    return store


def test_a_pool_that_is_not_registered_is_false_and_the_others_go_on(store, pools, log):
    keys = hashed(2)
    asked = [transfer("no such", pools["swa"], keys), *transfers_of(pools, keys)]
    answer = each(pools, [True, True]) | {"no such": [False, False]}
    assert store.batch_set_v2(asked) == answer
    assert "no host pool no such: call register_mem_host_pool_v2 first" in log.line()
    assert store.batch_get_v2(asked) == answer
    assert "no such" in log.line()
    found = store.batch_exists_v2(keys, asked)
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (0, [])
    assert found.extra_pool_hit_pages == dict.fromkeys(pools, 2)
    assert "no such" in log.line()


def test_a_policy_that_is_unknown_finds_nothing_in_that_pool(store, pools, log):
    keys = hashed(2)
    store.batch_set_v2(transfers_of(pools, keys))
    asked = [PoolTransfer("swa", hit_policy="every_other_page"), PoolTransfer("indexer")]
    found = store.batch_exists_v2(keys, asked)
    assert (found.kv_hit_pages, found.extra_pool_hit_pages) == (0, {"kv": 2, "indexer": 2})
    assert "'every_other_page' is unknown; expected one of all_pages" in log.line()


@pytest.mark.parametrize(
    "pool", [None, object(), torch.zeros(3), 7], ids=["none", "object", "tensor", "number"]
)
def test_what_is_no_host_pool_is_logged_when_it_is_registered(store, pools, log, pool):
    store.register_mem_host_pool_v2(pool, "swa2")
    assert "expected a host pool" in log.line()
    assert store.batch_set_v2([transfer("swa2", pools["swa"], hashed(1))]) == {"swa2": [False]}


@pytest.mark.parametrize("name", ["a/b", "", "a b", "../x", "k\0", 7.5])
def test_a_pool_whose_name_is_no_name_is_logged(make_store, pools, log, name):
    store = make_store("scoped", pool=pools["kv"])
    store.register_mem_host_pool_v2(pools["swa"], name)
    assert log.line().startswith(f"register pool {name}: pool {str(name)!r}: expected a name")
    assert list(store.host_pools.by_name) == ["kv"]


@pytest.mark.parametrize(
    "bad",
    [
        lambda pool, keys: PoolTransfer("swa", keys=keys),
        lambda pool, keys: transfer("swa", pool, keys, range(1)),
        lambda pool, keys: transfer("swa", pool, keys, [7, 8]),
        lambda pool, keys: transfer("swa", pool, ["good", "../bad"], range(2)),
        lambda pool, keys: PoolTransfer("swa", host_indices="?", keys=keys),
        lambda pool, keys: transfer("swa", pool, [1, 2], range(2)),
    ],
    ids=["no indices", "too few indices", "outside", "refused key", "no tensor", "no strings"],
)
def test_a_bad_transfer_is_false_and_affects_no_other_pool(store, pools, log, bad):
    keys = hashed(2)
    asked = [bad(pools["swa"], keys), transfer("indexer", pools["indexer"], keys)]
    for call in (store.batch_set_v2, store.batch_get_v2):
        assert call(asked) == {"swa": [False, False], "indexer": [True, True]}
        log.line()


@pytest.mark.parametrize("transfers", [7, "swa", object(), (transfer for transfer in ())])
def test_what_is_no_list_of_transfers_is_logged(store, log, transfers):
    assert store.batch_set_v2(transfers) == {}
    assert "expected a list of transfers" in log.line()
    assert store.batch_exists_v2([], transfers).kv_hit_pages == 0
    assert store.batch_exists_v2(None).kv_hit_pages == 0
    assert store.batch_set_v2([None, 3]) == {"None": []}


@pytest.mark.parametrize("lifetime", ALONE)
def test_a_damaged_page_is_false_in_its_pool_only(store, pools, raw, log, lifetime):
    keys = hashed(3)
    store.batch_set_v2(transfers_of(pools, keys))
    bad = next(name for name in raw.names() if keys[1] in name and name.endswith("_swa_k"))
    if lifetime == "pooled":
        raw.flip(bad)
    else:
        raw.resize(bad, 3)
    answers = store.batch_get_v2(transfers_of(pools, keys))
    assert answers == each(pools, [True] * 3) | {"swa": [True, False, True]}
    assert "READ" in log.line()
    asked = [PoolTransfer(name) for name in OTHERS]
    found = store.batch_exists_v2(keys, asked)
    assert found.extra_pool_hit_pages == dict.fromkeys(pools, 3) | {"swa": 1}
    assert found.restorable_prefix_pages == [1]


@pytest.mark.parametrize("name", ["draft", "kv"])
def test_a_pool_that_cannot_be_registered_again_is_not_served(store, pools, log, replace_method, name):
    """The server goes on with the new one: neither that nor the earlier one is read or written."""
    keys, new, lifetime = hashed(2), several_pools()[name], store.lifetime
    store.batch_set_v2(transfers_of(pools, keys))
    both = {"old": pools[name], "new": new}
    stored = pages_of(both, 2)
    replace_method(lifetime, "register_pool", raising(RegistrationError("made to fail")))
    store.register_mem_host_pool_v2(new, name)
    assert log.line() == f"register pool {name}: made to fail"
    answer = each(pools, [True, True]) | {name: [False, False]}
    assert store.batch_get_v2(transfers_of(pools, keys)) == answer
    assert f"{name}: it could not be registered".removeprefix("kv") in log.line()
    assert store.batch_set_v2(transfers_of(pools, keys)) == answer
    assert store.batch_exists_v2(keys, [PoolTransfer("draft")]).kv_hit_pages == 0
    assert pages_of(both, 2) == stored
    if name == "kv":
        assert store.batch_get_v1(keys, new.page_indices(0, 2)) == [False, False]
        assert store.batch_exists(keys) == 0
    del lifetime.register_pool
    store.register_mem_host_pool_v2(pools[name], name)
    assert store.batch_get_v2(transfers_of(pools, keys)) == each(pools, [True, True])


@pytest.mark.parametrize(
    ("name", "size_per_token"), [("swa", 0), ("swa", 128), ("kv", 128)], ids=["anchor", "other pool", "kv"]
)
def test_a_pool_without_memory_is_refused_unless_it_is_the_anchor(
    store, pools, log, name, size_per_token, replace_method
):
    """Such as the pool of a rank that has none, because another rank loads its pages, too."""
    empty, keys = several.LogicalPool(), hashed(2)
    empty.size_per_token = size_per_token
    store.register_mem_host_pool_v2(empty, name)
    assert "LogicalPool" in log.line()
    indices = several.indices_of(empty, range(2))
    assert store.batch_set_v2([PoolTransfer(name, indices, keys=keys)]) == {name: [False, False]}
    if name == "kv":
        with pytest.raises(ConfigError, match="LogicalPool without memory"):
            store.register_mem_pool_host(empty)


@pytest.mark.parametrize("lifetime", ALONE)
def test_the_group_of_pools_that_older_releases_register_is_its_kv_pool(
    make_store, lifetime, pools, replace_method
):
    """SGLang 0.5.11 to 0.5.13: its type of numbers is unknown, and the pool itself is registered after it."""
    (key,), kv = hashed(1), pools["kv"]
    kv.dtype, kv.device_pool = torch.uint8, SimpleNamespace(dtype=torch.float8_e4m3fn)
    group = SimpleNamespace(
        anchor_entry=SimpleNamespace(host_pool=kv),
        layout=kv.layout,
        page_size=64,
        size=kv.size,
        dtype=kv.dtype,
    )
    store, registered = make_store(lifetime), []
    store.register_mem_pool_host(group)
    assert store.batch_set_v1([key], kv.page_indices(0, 1)) == [True]
    replace_method(store.lifetime, "register_pool", lambda memory, pool="kv": registered.append(pool))
    register_v2 = store.register_mem_host_pool_v2
    register_v2(kv, "kv")
    register_v2(pools["swa"], "swa")
    assert registered == ["swa"], "the KV pool is registered"
    assert store.batch_exists([key]) == 1
    assert "+float8_e4m3fn" in store.names.page_suffix


@pytest.mark.parametrize("indices", [[0, 1], torch.arange(2).numpy(), torch.zeros(2), torch.zeros(1, 2)])
def test_host_indices_are_a_tensor_of_integers(store, pools, log, indices):
    asked = [PoolTransfer("mamba", host_indices=indices, keys=hashed(2))]
    assert store.batch_set_v2(asked) == {"mamba": [False, False]}
    assert "host indices: expected" in log.line()


def test_log_lines_name_the_pool(store, pools, log, replace_method):
    (key,) = hashed(1)
    replace_method(store.lifetime, "store", raising(RegistrationError("made to fail")))
    store.batch_set_v2([transfer("swa", pools["swa"], [key])])
    assert log.line() == f"WRITE (pool swa) of 1, first '{key}': made to fail"
    store.batch_set_v2([PoolTransfer("nowhere", keys=[key])])
    assert log.line().startswith(
        f"batch_set_v2 (pool nowhere) of 1, first '{key}': no host pool nowhere: call"
    )


def test_after_close_every_pool_is_false(store, pools, log):
    store.close()
    assert store.batch_set_v2(transfers_of(pools, hashed(1))) == each(pools, [False])
    assert store.batch_exists_v2(hashed(1), [PoolTransfer("swa")]).kv_hit_pages == 0
    store.register_mem_host_pool_v2(pools["swa"], "swa")
    assert all("is closed" in line for line in log.lines())
