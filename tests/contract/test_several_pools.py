"""The v2 interface: the pages of several host pools, with every lifetime."""

from __future__ import annotations

import pytest
import several
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from several import (
    OTHERS,
    PAGES,
    each,
    hashed,
    page_of,
    pages_of,
    register,
    several_pools,
    transfer,
    transfers_of,
)
from stores import ALONE, BY_PIECE, STORES
from support import LEFT, close_below, names_open

from hicache_nixl.contract import PoolHitPolicy, PoolTransfer
from hicache_nixl.host.pools import LAYOUTS

ALL, TRAILING, GROUPS = PoolHitPolicy
BOUNDED = ("scoped", "pooled")


@pytest.fixture
def store(make_store, lifetime, pools):
    store = make_store(lifetime)
    register(store, pools)
    return store


# -- set and get -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mla", [False, True], ids=["multi-head", "mla"])
@pytest.mark.parametrize("states", [several.StatePool, several.StatePoolWithMore])
def test_pages_of_all_pools_come_back_byte_for_byte(make_store, lifetime, layout, mla, states, log):
    """Also to other places of the pools."""
    pools, keys = several_pools(layout) | {"mamba": states()}, hashed(4)
    several.scramble_all(pools)
    store = make_store(lifetime, mla=mla)
    register(store, pools if not mla else pools | {"kv": several.make_pool(True, pools["kv"].layout, PAGES)})
    pools = {name: pool for name, pool in pools.items() if name != "kv" or not mla}
    stored = pages_of(pools, 4)
    assert store.batch_set_v2(transfers_of(pools, keys)) == each(pools, [True] * 4)
    several.scramble_all(pools)
    moved = [transfer(name, pool, keys, range(4, 8)) for name, pool in pools.items()]
    assert store.batch_get_v2(moved) == each(pools, [True] * 4)
    for name, pool in pools.items():
        assert [page_of(pool, page) for page in range(4, 8)] == stored[name], name
    assert log.lines() == []


def test_the_kv_pool_is_the_same_in_both_interfaces(store, pools):
    kv, keys = pools["kv"], hashed(3)
    assert all(store.batch_set_v1(keys, kv.page_indices(0, 3)))
    before = pages_of({"kv": kv}, 3)
    several.scramble_all(pools)
    assert store.batch_get_v2([transfer("kv", kv, keys)]) == {"kv": [True] * 3}
    assert pages_of({"kv": kv}, 3) == before
    assert store.batch_set_v2([transfer("kv", kv, hashed(3, "other"))]) == {"kv": [True] * 3}
    assert store.batch_exists(hashed(3, "other")) == 3


def test_a_page_that_is_missing_in_one_pool_is_there_in_the_others(store, left, pools):
    keys = hashed(3)
    store.batch_set_v2([transfer(name, pool, keys) for name, pool in pools.items() if name != "swa"])
    store.batch_set_v2([transfer("swa", pools["swa"], keys[:1])])
    answers = store.batch_get_v2(transfers_of(pools, keys))
    assert answers == each(pools, [True] * 3) | {"swa": left.answers(True, False, False)}


def test_more_pages_than_a_call_of_the_server_are_moved(make_store, lifetime):
    pool, keys = several.StatePool(300), hashed(300)
    several.scramble_all({"mamba": pool})
    store = make_store(lifetime, pool=several_pools()["kv"])
    store.register_mem_host_pool_v2(pool, "mamba")
    stored = [page_of(pool, page) for page in range(300)]
    assert store.batch_set_v2([transfer("mamba", pool, keys)]) == {"mamba": [True] * 300}
    several.scramble_all({"mamba": pool})
    assert store.batch_get_v2([transfer("mamba", pool, keys)]) == {"mamba": [True] * 300}
    assert [page_of(pool, page) for page in range(300)] == stored


def test_no_keys_are_no_pages(store, pools):
    assert store.batch_set_v2([PoolTransfer("swa"), PoolTransfer("mamba", keys=[])]) == {
        "swa": [],
        "mamba": [],
    }
    assert store.batch_set_v2([]) == store.batch_get_v2([]) == {}
    assert store.batch_exists_v2([]).kv_hit_pages == 0


def test_a_state_takes_the_room_of_its_bytes(make_store, pools):
    """Its tensors differ much, and where a page is one record each piece has the room of the largest."""
    sizes = [tensor[0].nbytes for tensor in pools["mamba"].get_hybrid_pool_buffer()]
    for lifetime, pieces in (("scoped", sizes), ("pooled", [sum(sizes)])):
        store = make_store(lifetime)
        register(store, pools)
        assert store.host_pools.by_name["mamba"].pages.piece_sizes == pieces
        assert store.host_pools.by_name["swa"].pages.zero_copy


# -- names -----------------------------------------------------------------------------------------------

# What the connector for NIXL of SGLang 0.5.23 names them.
PIECES = {
    "kv": ["_k", "_v"],
    "mamba": ["_mamba_temporal", "_mamba_conv_0", "_mamba_conv_1"],
    "swa": ["_swa_k", "_swa_v"],
    "indexer": ["_indexer"],
    "draft": ["_draft_k", "_draft_v"],
}


@pytest.mark.parametrize("lifetime", BY_PIECE)
def test_files_are_named_as_in_sglang_0_5_23(store, pools, raw):
    (key,) = hashed(1)
    store.batch_set_v2(transfers_of(pools, [key]))
    assert raw.names() == sorted(f"{key}_org-model_0_1{end}" for ends in PIECES.values() for end in ends)


@pytest.mark.parametrize("lifetime", BY_PIECE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_an_mla_model_only_a_mamba_state_belongs_to_a_rank(make_store, lifetime, layout, raw, log):
    """Rank 0 stores all other pages, so heads of each rank, as those of a draft model may be, are refused."""
    (key,), pools = hashed(1), several_pools(layout)
    pools["kv"] = several.make_pool(True, layout, PAGES)
    store = make_store(lifetime, mla=True, tp_rank=1, tp_size=2)
    register(store, pools)
    lines = log.lines()
    assert [line.split(":")[0] for line in lines] == ["register pool swa", "register pool draft"]
    assert "draft has the heads of one rank" in lines[1]
    answers = store.batch_set_v2(transfers_of(pools, [key]))
    assert answers == {name: [name not in ("swa", "draft")] for name in pools}
    if layout == "page_first":
        names = [f"_org-model_1_2{end}" for end in PIECES["mamba"]] + ["_org-model_k"]
        assert raw.names() == sorted(key + name for name in [*names, "_org-model_indexer"])


@pytest.mark.parametrize("lifetime", BY_PIECE)
def test_with_a_single_rank_an_mla_model_may_have_pools_with_heads(make_store, lifetime, pools, raw):
    (key,) = hashed(1)
    pools["kv"] = several.make_pool(True, "page_first", PAGES)
    store = make_store(lifetime, mla=True)
    register(store, pools)
    store.batch_set_v2(transfers_of(pools, [key]))
    names = [f"_org-model_0_1{end}" for end in PIECES["mamba"]] + ["_org-model_k"]
    names += [f"_org-model{end}" for name in ("swa", "indexer", "draft") for end in PIECES[name]]
    assert raw.names() == sorted(key + name for name in names)


@pytest.mark.parametrize("lifetime", ALONE)
def test_states_of_another_type_of_the_same_size_are_not_found(make_store, lifetime, pools):
    """SGLang's pool has the type of the convolutions in ``dtype``, and that of the temporal state elsewhere."""
    keys = hashed(1)
    types = {"temporal": torch.float16, "beside": (torch.int32,)}, {"temporal": torch.bfloat16}, {}
    states = [several.StatePool(**given) for given in types]
    for state in states:
        store = make_store(lifetime, pool=pools["kv"])
        store.register_mem_host_pool_v2(state, "mamba")
        assert store.batch_get_v2([transfer("mamba", state, keys)]) == {"mamba": [False]}
        assert store.batch_set_v2([transfer("mamba", state, keys)]) == {"mamba": [True]}


@pytest.mark.parametrize("lifetime", ALONE)
@pytest.mark.parametrize("other", ["layer_first", "page_first_direct"])
def test_pages_of_another_layout_are_not_found(make_store, lifetime, pools, other):
    keys, others = hashed(2), several_pools(other)
    stores = make_store(lifetime), make_store(lifetime)
    for store, own in zip(stores, (pools, others), strict=True):
        register(store, own)
    stores[0].batch_set_v2(transfers_of(pools, keys))
    names = ["kv", "swa", "indexer", "draft"]  # Mamba states have one layout
    answers = stores[1].batch_get_v2([transfer(name, others[name], keys) for name in names])
    assert answers == each(names, [False, False])


@pytest.mark.parametrize("mla", [False, True], ids=["multi-head", "mla"])
@pytest.mark.parametrize("lifetime", ALONE)
def test_no_pool_is_taken_for_a_model_or_another_pool(make_store, lifetime, mla):
    """Model ``m`` with pool ``draft_swa``, and model ``m_draft`` with pool ``swa``; and so on."""
    keys, pool, stored = hashed(1), several_pools()["indexer"], {}
    for model in ("m", "m_draft", "m_swa", "m_draft_swa", "m_odd", "m_page32"):
        store = make_store(lifetime, model=model, mla=mla, pool=several.make_pool(mla, "layer_first", PAGES))
        names = ("draft", "swa", "draft_swa", "odd", "page32")
        for name in names:
            store.register_mem_host_pool_v2(pool, name)
            assert store.batch_get_v2([transfer(name, pool, keys)]) == {name: [False]}, (model, name)
            several.scramble(pool)
            stored[store, name] = page_of(pool, 0)
            assert store.batch_set_v2([transfer(name, pool, keys)]) == {name: [True]}
        kv = store.mem_pool_host
        assert store.batch_exists(keys) == 0, model
        assert store.batch_set_v1(keys, kv.page_indices(0, 1)) == [True]
    for (store, name), page in stored.items():
        assert store.batch_get_v2([transfer(name, pool, keys)]) == {name: [True]}
        assert page_of(pool, 0) == page


def test_clear_removes_the_pages_of_all_own_pools_and_no_others(make_store, lifetime, pools, raw):
    keys, others = hashed(2), []
    for config in (
        {"model": "org/other_org-model"},
        {"tp_rank": 1, "tp_size": 2},
        {"model": "org/model_swa"},
    ):
        others.append(make_store(lifetime, **config))
        register(others[-1], pools)
        others[-1].batch_set_v2(transfers_of(pools, keys))
    kept = raw.names()
    assert len({name.partition("org")[2] for name in kept}) >= 3 * len(pools)
    store = make_store(lifetime)
    register(store, pools)
    store.batch_set_v2(transfers_of(pools, keys))
    assert len(raw.names()) > len(kept)
    store.clear()
    assert raw.names() == kept
    assert store.batch_get_v2(transfers_of(pools, keys)) == each(pools, [False, False])
    assert others[0].batch_get_v2(transfers_of(pools, keys)) == each(pools, [True, True])


# -- a logical anchor ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lifetime", STORES)
def test_a_pool_without_memory_says_which_pages_there_are(make_store, lifetime, raw, pools):
    anchor, keys = several.LogicalPool(), hashed(3)
    store = make_store(lifetime)
    register(store, {"kv": anchor, "swa": pools["swa"]})
    assert store.batch_set_v1(keys[:2], several.indices_of(anchor, range(2))) == [True, True]
    assert [raw.get(name) for name in raw.names()] == [b"\1", b"\1"]
    assert raw.names() == sorted(f"{key}_org-model_0_1" for key in keys[:2])
    assert store.batch_exists(keys) == 2
    assert store.batch_get_v1(keys[:2], several.indices_of(anchor, range(2))) == [True, True]
    store.batch_set_v2([transfer("swa", pools["swa"], keys)])
    found = store.batch_exists_v2(keys, [PoolTransfer("swa")])
    assert (found.kv_hit_pages, found.extra_pool_hit_pages) == (2, {"kv": 2, "swa": 2})


# -- exists ----------------------------------------------------------------------------------------------


def restorable(stored, policies, count):
    """Return what a prefix needs, said once more and without haste."""
    lengths = [end for end in range(1, count + 1) if set(range(end)) <= stored["kv"]]
    hits = {"kv": lengths[-1]} if lengths else {}
    possible = list(lengths)
    for name, (policy, window) in policies.items():
        if not possible:
            break
        first = {ALL: lambda end: 0, TRAILING: lambda end, window=window: max(0, end - window)}[policy]
        own = [end for end in lengths if set(range(first(end), end)) <= stored[name]]
        hits |= {name: own[-1]} if own else {}
        possible = [end for end in possible if end in own]
    return possible[-1] if possible else 0, hits, possible


@pytest.mark.parametrize("lifetime", BOUNDED)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_policy_finds_what_it_says(lifetime, data, tmp_path_factory):
    """Random holes in random pools."""
    count, pools = data.draw(st.integers(1, PAGES)), several_pools()
    numbers = st.sets(st.integers(0, count - 1))
    stored = {
        name: data.draw(numbers if name != "kv" else numbers.map(lambda some: {*range(count)} - some))
        for name in pools
    }
    policy = st.tuples(st.sampled_from([ALL, TRAILING]), st.integers(1, count))
    policies = data.draw(st.dictionaries(st.sampled_from(OTHERS), policy, max_size=3))
    keys, folder = hashed(count), tmp_path_factory.mktemp("pages")
    with several.opened(lifetime, folder) as store:
        register(store, pools)
        for name, pages in stored.items():
            held = [transfer(name, pools[name], [keys[page] for page in sorted(pages)], sorted(pages))]
            assert store.batch_set_v2(held) == {name: [True] * len(pages)}
        asked = [
            PoolTransfer(name, keys=keys[:window], hit_policy=policy)
            for name, (policy, window) in policies.items()
        ]
        found = store.batch_exists_v2(keys, asked)
    answer = found.kv_hit_pages, found.extra_pool_hit_pages, found.restorable_prefix_pages
    assert answer == restorable(stored, policies, count)


@pytest.mark.parametrize("lifetime", ALONE)
@pytest.mark.parametrize(
    ("stored", "block", "group", "pages"),
    [
        ([1, 3, 7], 2, 1, 4),
        ([1, 3, 5, 7], 2, 1, 8),
        ([2, 3, 6, 7], 4, 2, 8),
        ([2, 3, 7], 4, 2, 4),
        ([3, 6, 7], 4, 2, 0),
        (range(8), 3, 3, 6),
        (range(8), 9, 1, 0),
        (range(8), 0, 0, 0),
        (range(8), 2, 3, 0),
    ],
)
def test_block_groups_count_whole_groups_and_limit_nothing(store, pools, log, stored, block, group, pages):
    """Also where no page of the KV pool is stored: the pool has these blocks in another form."""
    keys = hashed(8)
    store.batch_set_v2([transfer("indexer", pools["indexer"], [keys[page] for page in stored], list(stored))])
    asked = [PoolTransfer("indexer", hit_policy=GROUPS, block_pages=block, group_pages=group)]
    found = store.batch_exists_v2(keys, asked)
    assert found.extra_pool_hit_pages == ({"indexer": pages} if pages else {})
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (0, [])
    assert [line for line in log.lines() if "block_groups" not in line] == []
    store.batch_set_v1(keys[:5], pools["kv"].page_indices(0, 5))
    assert store.batch_exists_v2(keys, asked).restorable_prefix_pages == [1, 2, 3, 4, 5]
    missing = [PoolTransfer("no such", hit_policy=GROUPS, block_pages=2, group_pages=1)]
    assert store.batch_exists_v2(keys, [*asked, *missing]).restorable_prefix_pages == [1, 2, 3, 4, 5]


# -- what is held ----------------------------------------------------------------------------------------


# Regions of host memory: four pools with one each, and the states in three tensors, or as copies for each direction.
REGIONS = {("scoped", "page_first"): 7, ("pooled", "page_first"): 6}
# Of copies only: registered for each pool, and in a store once.
REGIONS |= {("scoped", "layer_first"): 4 * 2 + 3, ("pooled", "layer_first"): 2}


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
@pytest.mark.parametrize("lifetime", BOUNDED)
def test_fifty_calls_leave_no_descriptor_and_no_registration(
    make_store, lifetime, layout, folder, regions_alive
):
    one_segment = {"segment_mb": 8} if lifetime == "pooled" else {}
    store, keys, pools = make_store(lifetime, **one_segment), hashed(4), several_pools(layout)
    alive = regions_alive(store)
    register(store, pools)
    held = alive["DRAM_SEG"]
    assert held == REGIONS[lifetime, layout]
    store.batch_set_v2(transfers_of(pools, keys))
    open_after_one, files = names_open(folder), alive["FILE_SEG"]
    for _ in range(50):
        assert store.batch_set_v2(transfers_of(pools, keys)) == each(pools, [True] * 4)
        assert store.batch_get_v2(transfers_of(pools, keys)) == each(pools, [True] * 4)
        store.batch_exists_v2(keys, [PoolTransfer(name) for name in OTHERS])
    assert names_open(folder) == open_after_one
    assert (alive["DRAM_SEG"], alive["FILE_SEG"]) == (held, files)


@pytest.mark.parametrize("lifetime", BOUNDED)
@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_a_pool_that_is_registered_again_replaces_its_own_memory_only(
    make_store, lifetime, layout, regions_alive
):
    store, pools = make_store(lifetime), several_pools(layout)
    alive = regions_alive(store)
    register(store, pools)
    held = alive["DRAM_SEG"]
    for _ in range(3):
        store.register_mem_host_pool_v2(several_pools(layout)["swa"], "swa")
        store.register_mem_host_pool_v2(several.StatePool(), "mamba")
        assert alive["DRAM_SEG"] == held
    store.register_mem_pool_host(several_pools(layout)["kv"])
    assert alive["DRAM_SEG"] == held
    assert store.batch_set_v2([transfer("draft", pools["draft"], hashed(1))]) == {"draft": [True]}


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
@pytest.mark.parametrize("lifetime", BOUNDED)
def test_no_call_registers_memory_of_a_pool(make_store, lifetime, layout, replace_method):
    """Not even for a page that is in several tensors."""
    store, keys, pools = make_store(lifetime), hashed(2), several_pools(layout)
    register(store, pools)
    store.batch_set_v2(transfers_of(pools, keys))
    asked = []
    replace_method(store.lifetime.registration, "register_buffers", asked.append)
    assert store.batch_get_v2(transfers_of(pools, keys)) == each(pools, [True, True])
    assert asked == []


def test_leaky_leaks_in_every_pool(make_store, pools, folder):
    """A descriptor for each piece."""
    store = make_store("leaky")
    register(store, pools)
    store.batch_set_v2(transfers_of(pools, hashed(2)))
    assert len(names_open(folder)) == 2 * sum(map(len, PIECES.values())) * LEFT["leaky"].fds
    close_below(folder)
