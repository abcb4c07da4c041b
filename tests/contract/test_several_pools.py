"""The v2 interface: the pages of several host pools, with every lifetime."""

from __future__ import annotations

import pytest
import several
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from several import PAGES, hashed, page_of, register, several_pools, transfer
from stores import ALONE, BY_PIECE, STORES
from support import LEFT, close_below, names_open

from hicache_nixl.contract import PoolHitPolicy, PoolTransfer
from hicache_nixl.errors import RegistrationError
from hicache_nixl.host.pools import LAYOUTS

OTHERS = ("mamba", "swa", "indexer", "draft")
ALL, TRAILING, GROUPS = PoolHitPolicy
BOUNDED = ("scoped", "pooled")


def transfers_of(pools, keys, **more):
    return [transfer(name, pool, keys, **more) for name, pool in pools.items()]


def each(names, answer):
    return {name: list(answer) for name in names}


def pages_of(pools, count):
    return {name: [page_of(pool, page) for page in range(count)] for name, pool in pools.items()}


@pytest.fixture
def pools():
    return several_pools()


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
def test_of_an_mla_model_only_a_mamba_state_belongs_to_a_rank(make_store, lifetime, pools, raw):
    (key,) = hashed(1)
    pools["kv"] = several.make_pool(True, "page_first", PAGES)
    store = make_store(lifetime, mla=True, tp_rank=1, tp_size=2)
    register(store, pools)
    store.batch_set_v2(transfers_of(pools, [key]))
    names = [f"_org-model_1_2{end}" for end in PIECES["mamba"]] + ["_org-model_k"]
    names += [f"_org-model{end}" for name in ("swa", "indexer", "draft") for end in PIECES[name]]
    assert raw.names() == sorted(key + name for name in names)


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
    if 0 < group <= block:
        assert store.batch_exists_v2(keys, asked).restorable_prefix_pages == [1, 2, 3, 4, 5]


# -- what is unknown, or fails ---------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["a/b", "", "a b", "../x", "k\0", None, 7.5])
def test_a_pool_whose_name_is_no_name_is_logged(make_store, pools, log, name):
    store = make_store("scoped", pool=pools["kv"])
    store.register_mem_host_pool_v2(pools["swa"], name)
    assert name in (None,) or "expected a name" in log.line()


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


def test_a_pool_whose_memory_cannot_be_registered_is_not_served(store, pools, log, replace_method):
    really = store.lifetime.register_pool

    def refused(memory, pool="kv"):
        if pool == "draft":
            raise RegistrationError("made to fail")
        really(memory, pool)

    replace_method(store.lifetime, "register_pool", refused)
    store.register_mem_host_pool_v2(several_pools("page_first_direct")["draft"], "draft")
    assert "register pool draft" in log.line()
    assert store.batch_set_v2(transfers_of(pools, hashed(2))) == each(pools, [True, True])
    assert store.host_pools.by_name["draft"].pages.pool is pools["draft"], "the earlier one"


def test_after_close_every_pool_is_false(store, pools, log):
    store.close()
    assert store.batch_set_v2(transfers_of(pools, hashed(1))) == each(pools, [False])
    assert store.batch_exists_v2(hashed(1), [PoolTransfer("swa")]).kv_hit_pages == 0
    store.register_mem_host_pool_v2(pools["swa"], "swa")
    assert all("is closed" in line for line in log.lines())


# -- what is held ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lifetime", BOUNDED)
def test_fifty_calls_leave_no_descriptor_and_no_registration(
    make_store, lifetime, pools, folder, regions_alive
):
    one_segment = {"segment_mb": 8} if lifetime == "pooled" else {}
    store, keys = make_store(lifetime, **one_segment), hashed(4)
    alive = regions_alive(store)
    register(store, pools)
    held = alive["DRAM_SEG"]
    assert held >= 6, "the memory of the KV pool, tensors of states or copies of them, and three other pools"
    store.batch_set_v2(transfers_of(pools, keys))
    open_after_one, files = names_open(folder), alive["FILE_SEG"]
    for _ in range(50):
        assert store.batch_set_v2(transfers_of(pools, keys)) == each(pools, [True] * 4)
        assert store.batch_get_v2(transfers_of(pools, keys)) == each(pools, [True] * 4)
        store.batch_exists_v2(keys, [PoolTransfer(name) for name in OTHERS])
    assert names_open(folder) == open_after_one
    assert (alive["DRAM_SEG"], alive["FILE_SEG"]) == (held, files)


@pytest.mark.parametrize("lifetime", BOUNDED)
def test_a_pool_that_is_registered_again_replaces_its_own_memory_only(
    make_store, lifetime, pools, regions_alive
):
    store = make_store(lifetime)
    alive = regions_alive(store)
    register(store, pools)
    held = alive["DRAM_SEG"]
    for _ in range(3):
        store.register_mem_host_pool_v2(several_pools()["swa"], "swa")
        store.register_mem_host_pool_v2(several.StatePool(), "mamba")
        assert alive["DRAM_SEG"] == held
    store.register_mem_pool_host(several_pools()["kv"])
    assert alive["DRAM_SEG"] == held
    assert store.batch_set_v2([transfer("draft", pools["draft"], hashed(1))]) == {"draft": [True]}


@pytest.mark.parametrize("lifetime", BOUNDED)
def test_no_call_registers_memory_of_a_pool(make_store, lifetime, pools, replace_method):
    """Not even for a page that is in several tensors."""
    store, keys = make_store(lifetime), hashed(2)
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
