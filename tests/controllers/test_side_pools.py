"""The pools beside the KV pool, which ``HybridCacheController`` of SGLang 0.5.23 moves by the v2 interface.

Real host pools: a draft model's, one of layers with a sliding window (four pages are kept), one of Mamba states (one for each
prompt).
"""

from __future__ import annotations

import pytest
from server_python import NEW, OLD, cache_arguments, lasting, together

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
POOLS = ("draft", "swa", "mamba")
HYBRID = {"controller": "HybridCacheController", "side_pools": POOLS}


def whole(pages):
    """Return what is found of a prompt that is stored in all pools."""
    return {"kv": (pages, pages), "draft": (0, pages), "swa": (4, 4), "mamba": (1, 1)}


@pytest.fixture
def process(shared):
    return shared(NEW)


@pytest.fixture(params=["scoped", "pooled"])
def lifetime(request):
    return request.param


@pytest.mark.parametrize("kind", ["multi_head", "mla"])
@pytest.mark.parametrize("layout", ["page_first", "page_first_direct"])
def test_pages_of_all_pools_come_back_bit_for_bit(process, kind, layout, lifetime, tmp_path):
    before = process.call("held")
    with process.cache(tmp_path, lifetime, kind=kind, layout=layout, **HYBRID):
        assert process.call("back_up", prompt=1, pages=130, side=7) == 130
        process.call("wipe")
        assert process.call("prefetch_all", prompt=1, pages=130, side=7) == whole(130)
    assert process.call("held") == before


@pytest.mark.parametrize("layout", ["layer_first", "page_head"])
def test_pools_of_layouts_that_mamba_does_not_have(process, layout, lifetime, tmp_path):
    cache = {**HYBRID, "layout": layout, "side_pools": ("draft", "swa")}
    with process.cache(tmp_path, lifetime, **cache):
        assert process.call("back_up", prompt=1, pages=130) == 130
        process.call("wipe")
        found = whole(130)
        del found["mamba"]
        assert process.call("prefetch_all", prompt=1, pages=130) == found


def test_a_prefix_ends_where_there_is_a_state(process, lifetime, tmp_path):
    with process.cache(tmp_path, lifetime, **HYBRID):
        process.call("back_up", prompt=1, pages=20)
        process.call("back_up", prompt=1, pages=30, without=["mamba"])
        process.call("wipe")
        assert process.call("prefetch_all", prompt=1, pages=30) == whole(20)


@pytest.mark.parametrize("without", POOLS)
def test_pages_that_one_pool_lacks_are_not_loaded(process, without, lifetime, tmp_path):
    with process.cache(tmp_path, lifetime, **HYBRID):
        process.call("back_up", prompt=1, pages=20, without=[without])
        process.call("wipe")
        assert process.call("prefetch_all", prompt=1, pages=20) == dict.fromkeys(["kv", *POOLS], (0, 0))


@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct"])
def test_pages_of_a_draft_model_come_back_in_0_5_11(shared, layout, lifetime, tmp_path):
    """By ``batch_set`` and ``batch_get``, under ``d:KEY``."""
    process = shared(OLD)
    before = process.call("held")
    with process.cache(tmp_path, lifetime, layout=layout, side_pools=["draft"]):
        assert process.call("back_up", prompt=1, pages=130, side=7) == 130
        process.call("wipe")
        expected = {"kv": (130, 130), "draft": (0, 130)}
        assert process.call("prefetch_all", prompt=1, pages=130, side=7) == expected
    assert process.call("held") == before


def test_calls_for_all_pools_leave_no_descriptor(process, lifetime, tmp_path):
    with process.cache(tmp_path, lifetime, **HYBRID):
        held = []
        for prompt in range(4):
            process.call("back_up", prompt=prompt, pages=20)
            process.call("prefetch_all", prompt=prompt, pages=20)
            held.append(lasting(process.call("held")))
    assert held == [held[0]] * 4


def test_ranks_of_an_mla_model_share_pages_and_have_a_mamba_state_each(server_python, lifetime, tmp_path):
    with server_python(NEW).processes(ranks=2) as ranks:
        arguments = cache_arguments(tmp_path, lifetime, kind="mla", **{**HYBRID, "side_pools": ("mamba",)})
        together(ranks, "open", **arguments)
        for number, rank in enumerate(ranks):
            rank.send("back_up", prompt=1, pages=20, side=number)
        assert [rank.answer() for rank in ranks] == [20, 20]
        together(ranks, "wipe")
        for number, rank in enumerate(ranks):
            rank.send("prefetch_all", prompt=1, pages=20, side=number)
        assert [rank.answer() for rank in ranks] == [{"kv": (20, 20), "mamba": (1, 1)}] * 2
        together(ranks, "close")
