"""Several host pools share a store, its agent, the memory for copies and the time of calls."""

from __future__ import annotations

import logging
import re
import threading
from contextlib import suppress

import pytest
import several
from faults import err_once_it_is_over
from several import OTHERS, each, hashed, page_of, pages_of, register, several_pools, transfer, transfers_of
from stores import ALONE

from hicache_nixl.contract import PoolTransfer
from hicache_nixl.errors import PluginError, RegistrationError
from hicache_nixl.host import buffers
from hicache_nixl.host.pools import MultiHeadHostPool, pool_for_page_bytes
from hicache_nixl.lifetimes import file_per_piece
from hicache_nixl.lifetimes.pooled import lanes

BOUNDED = ("scoped", "pooled")
LARGE, COUNT = 64 << 10, 128  # bytes of a page; pages of a call of the server


# -- the room of a store ---------------------------------------------------------------------------------


def test_a_call_larger_than_the_store_goes_in_parts(make_store, log):
    """SGLang passes all keys of an operation in one call."""
    pool, keys = pool_for_page_bytes(LARGE, pages=2 * COUNT), hashed(2 * COUNT)
    store = make_store("pooled", pool=pool, segment_mb=1, capacity_gb=10 / 1024, min_free_gb=0)
    store.register_mem_host_pool_v2(pool, "swa")
    assert store.batch_set_v2([transfer("swa", pool, keys)]) == {"swa": [True] * 2 * COUNT}
    assert log.lines() == []
    answers = store.batch_get_v2([transfer("swa", pool, keys)])["swa"]
    assert answers[COUNT:] == [True] * COUNT, "the older ones gave way"


def test_a_store_without_room_for_a_call_of_all_pools_says_what_is_needed(make_store, tmp_path, caplog):
    pools = {name: pool_for_page_bytes(LARGE, pages=COUNT) for name in ("kv", "swa", *"abc")}
    keys, small = hashed(COUNT), {"segment_mb": 1, "min_free_gb": 0}

    def found_in_a_store_of(capacity, folder):
        store = make_store("pooled", path=str(tmp_path / folder), capacity_gb=capacity, **small)
        caplog.clear()
        register(store, pools)
        for name, pool in pools.items():
            assert all(store.batch_set_v2([transfer(name, pool, keys)])[name])
        found = store.batch_exists_v2(keys, [PoolTransfer(name) for name in pools if name != "kv"])
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        return found.kv_hit_pages, lines

    pages, (line,) = found_in_a_store_of(20 / 1024, "small")
    assert pages == 0
    assert "in some of its host pools only: capacity_gb: a call of 128 pages of 0.0625 MiB and 128" in line
    needed = float(re.search(r"capacity_gb of at least ([0-9.]+)$", line).group(1))
    assert needed < 1.1 * len(pools) * COUNT * LARGE / 2**30
    assert found_in_a_store_of(needed, "large") == (COUNT, [])


# -- memory for copies -----------------------------------------------------------------------------------


def test_all_pools_share_the_memory_for_copies(make_store, lifetime, monkeypatch):
    """It was 512 MiB for each pool whose pages are large."""
    monkeypatch.setattr(buffers, "STAGED_BYTES", 1 << 20)
    sizes = [1 << 10, 48 << 10, 64 << 10, 60 << 10, 128 << 10]
    pools = [pool_for_page_bytes(size, pages=32, layout="layer_first") for size in sizes]
    options = {"capacity_gb": 0.1} if lifetime == "pooled" else {}
    store, keys = make_store(lifetime, pool=pools[0], **options), hashed(32)
    for number, pool in enumerate(pools):
        several.scramble(pool)
        store.register_mem_host_pool_v2(pool, f"pool{number}")
    held = [tensor for pool in store.host_pools.by_name.values() for tensor in pool.pages.memory]
    total = sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())
    assert total <= 2 * 2 << 20, "for two directions, and in case that the next pool needs a little more"
    asked = [transfer(f"pool{number}", pool, keys) for number, pool in enumerate(pools)]
    stored = [[page_of(pool, page) for page in range(32)] for pool in pools]
    assert all(map(all, store.batch_set_v2(asked).values()))
    for pool in pools:
        several.scramble(pool)
    assert all(map(all, store.batch_get_v2(asked).values()))
    assert [[page_of(pool, page) for page in range(32)] for pool in pools] == stored


# -- O_DIRECT --------------------------------------------------------------------------------------------


class UnequalPool(MultiHeadHostPool):
    """Keys and values of different sizes: SGLang's gives no copy of such a page."""

    def get_data_page(self, index, flat=True):
        raise NotImplementedError("no flat pages")

    def get_dummy_flat_data_page(self):
        raise NotImplementedError("no flat pages")


@pytest.mark.parametrize("lifetime", ALONE)
def test_with_direct_io_pages_that_cannot_be_copied_are_stored_as_they_are(make_store, lifetime, pools, log):
    shape = {"layers": 2, "kv_heads": 1, "head_dim": 4, "page_size": 64, "pages": several.PAGES}
    pools["swa"], keys = UnequalPool(**shape), hashed(2)
    store = make_store(lifetime, use_direct_io=True)
    register(store, pools)
    assert store.batch_set_v2(transfers_of(pools, keys)) == each(pools, [True, True])
    assert store.batch_get_v2(transfers_of(pools, keys)) == each(pools, [True, True])
    assert log.lines() == []
    store.register_mem_host_pool_v2(UnequalPool(**shape, layout="layer_first"), "odd")
    if lifetime != "in_memory":  # which copies a page only in a call
        assert "pages of a UnequalPool cannot be stored: no flat pages" in log.line()


# -- one failure, and the other pools --------------------------------------------------------------------


@pytest.fixture
def with_posix_aio(make_store, lifetime, pools):
    """A connector whose agent is replaced after each failed transfer."""
    store = make_store(lifetime, posix={"queue": "posix_aio"})
    register(store, pools)
    assert store.batch_set_v2(transfers_of(pools, hashed(2))) == each(pools, [True, True])
    return store


def fail_a_transfer(store, replace_method):
    """Let transfers fail until the agent is replaced."""
    agent = store.lifetime.registration.agent
    poll = agent.check_xfer_state
    replace_method(agent, "transfer", lambda handle: "ERR")
    replace_method(agent, "check_xfer_state", lambda handle: err_once_it_is_over(poll, handle))


@pytest.mark.parametrize("lifetime", BOUNDED)
def test_memory_that_a_new_agent_refuses_is_registered_by_each_call(
    with_posix_aio, lifetime, pools, log, replace_method, monkeypatch
):
    store, keys, stored = with_posix_aio, hashed(2), pages_of(pools, 2)
    fail_a_transfer(store, replace_method)
    registration, refused = store.lifetime.registration, []
    register, most = registration.register, {"scoped": 3, "pooled": 1}[lifetime]  # pooled gives up after one

    def refuse_some(items, kind=None):
        if kind == "DRAM" and len(refused) < most:
            refused.append(items)
            raise RegistrationError("made to fail")
        return register(items, kind)

    with monkeypatch.context() as patch:
        patch.setattr(registration, "register", refuse_some)
        assert store.batch_get_v2([transfer("swa", pools["swa"], keys)]) == {"swa": [True, True]}
    lines = log.lines()
    assert len(refused) == len(lines) == most
    assert all(
        "after a failed transfer each call registers its buffers: made to fail" in line for line in lines
    )
    several.scramble_all(pools)
    for _ in range(2):
        assert store.batch_get_v2(transfers_of(pools, keys)) == each(pools, [True, True])
    assert pages_of(pools, 2) == stored
    assert log.lines() == []


@pytest.mark.parametrize("lifetime", BOUNDED)
def test_an_agent_that_cannot_be_replaced_does_not_hide_why_a_transfer_failed(
    with_posix_aio, pools, log, replace_method, monkeypatch
):
    store, keys = with_posix_aio, hashed(2)
    fail_a_transfer(store, replace_method)
    with monkeypatch.context() as patch:

        def refused(config):
            raise PluginError("no agent")

        for module in (file_per_piece, lanes):
            patch.setattr(module, "make_backend", refused)
        assert store.batch_get_v2([transfer("swa", pools["swa"], keys)]) == {"swa": [False, False]}
    lines = log.lines()
    assert {line for line in lines if "no agent" in line} == {
        "after a failed transfer the agent cannot be replaced: no agent"
    }
    assert all("the transfer failed in NIXL" in line for line in lines if "READ" in line)
    assert any("READ" in line for line in lines)
    store.batch_get_v2([transfer("swa", pools["swa"], keys)])
    assert store.batch_get_v2(transfers_of(pools, keys)) == each(pools, [True, True])


# -- threads and the end ---------------------------------------------------------------------------------


def test_pools_that_two_threads_register_at_once_are_all_served(
    make_store, lifetime, pools, run_together, replace_method
):
    """SGLang registers pools later, too, while the server runs."""
    store, together = make_store(lifetime, pool=pools["kv"]), threading.Barrier(2)
    check_pages = store.lifetime.check_pages

    def slow(*calls):
        with suppress(threading.BrokenBarrierError):
            together.wait(0.2)  # until both are here, unless one waits for the other
        check_pages(*calls)

    replace_method(store.lifetime, "check_pages", slow)
    run_together(
        lambda: store.register_mem_host_pool_v2(pools["swa"], "swa"),
        lambda: store.register_mem_host_pool_v2(pools["draft"], "draft"),
    )
    names = ("swa", "draft")
    asked = [transfer(name, pools[name], hashed(1)) for name in names]
    assert store.batch_set_v2(asked) == each(names, [True])
    store.clear()
    assert store.batch_get_v2(asked) == each(names, [False])


@pytest.mark.parametrize("lifetime", ALONE)
@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_calls_of_several_pools_do_not_disturb_each_other(make_store, lifetime, layout, run_together, log):
    pools, keys, new = several_pools(layout), hashed(4), iter(range(1000))
    store = make_store(lifetime)
    register(store, pools)
    assert store.batch_set_v2(transfers_of(pools, keys)) == each(pools, [True] * 4)
    stored, loaded = pages_of(pools, 4), range(4, 8)

    def setting():
        for _ in range(15):
            others = hashed(4, f"new{next(new)} ")
            assert store.batch_set_v2(transfers_of(pools, others)) == each(pools, [True] * 4)

    def getting():
        for _ in range(15):
            moved = [transfer(name, pool, keys, loaded) for name, pool in pools.items()]
            assert store.batch_get_v2(moved) == each(pools, [True] * 4)
            assert {name: [page_of(pool, page) for page in loaded] for name, pool in pools.items()} == stored

    def looking():
        for _ in range(15):
            found = store.batch_exists_v2([*keys, "nowhere"], [PoolTransfer(name) for name in OTHERS])
            assert found.kv_hit_pages == 4

    run_together(setting, getting, looking)
    assert log.lines() == []


def test_close_waits_for_all_pools_of_a_call(make_store, lifetime, pools, replace_method):
    store = make_store(lifetime)
    register(store, pools)
    began, go_on, answers = threading.Event(), threading.Event(), []
    leaving = store.pages.leaving

    def slow(*args):
        began.set()
        assert go_on.wait(20)
        return leaving(*args)

    replace_method(store.pages, "leaving", slow)  # of the first pool
    setting = threading.Thread(
        target=lambda: answers.append(store.batch_set_v2(transfers_of(pools, hashed(2))))
    )
    setting.start()
    assert began.wait(20)
    closing = threading.Thread(target=store.close)
    closing.start()
    while not store._calls._closed:
        threading.Event().wait(0.001)
    go_on.set()
    setting.join()
    closing.join()
    assert answers == [each(pools, [True, True])]
