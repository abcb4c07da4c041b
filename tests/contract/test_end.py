"""How a connector ends: clear, close, the with statement, and what a later one finds."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from support import keys_of, make_pool, storage_config

from hicache_nixl import HiCacheNixl


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
@pytest.mark.parametrize("mla", [False, True], ids=["multi_head", "mla"])
def test_clear_removes_the_pages_of_this_rank_and_nothing_else(make_store, lifetime, raw, mla, layout, log):
    other = make_store(lifetime, model="org/other", mla=mla)
    neighbour = make_store(lifetime, tp_rank=1, tp_size=2)
    pool = make_pool(mla, layout)
    store = make_store(lifetime, mla=mla, pool=pool)
    assert other.set("key", torch.zeros(4))
    assert neighbour.set("key", torch.zeros(4))
    kept = raw.names()
    assert len(kept) == 2
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    assert store.set("value", torch.zeros(4))
    store.clear()
    assert raw.names() == kept
    assert store.batch_exists(keys_of(2)) == 0
    assert log.lines() == []


def test_clear_keeps_a_model_whose_name_ends_like_this_one(make_store, lifetime, raw):
    key = "0123456789abcdef" * 4  # as the server makes them
    longer = make_store(lifetime, model="big_model")
    assert longer.set(key, torch.zeros(4))
    make_store(lifetime, model="model").clear()
    assert raw.names() == [f"{key}_big_model_0_1"]


def test_close_twice_is_fine_and_later_calls_answer_no(store, log):
    pool = make_pool(False, "page_first")
    store.register_mem_pool_host(pool)
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    store.close()
    store.close()
    assert log.lines() == []
    value = torch.zeros(4)
    answers = {
        "set": (store.set("key", value), False),
        "get": (store.get("key", value), None),
        "batch_set": (store.batch_set(["key"], [value]), False),
        "batch_get": (store.batch_get(["a", "b"], [value, value]), [None, None]),
        "exists": (store.exists("key"), False),
        "batch_exists": (store.batch_exists(keys_of(2)), 0),
        "batch_set_v1": (store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)), [False, False]),
        "batch_get_v1": (store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)), [False, False]),
        "register_files": (store.register_files(["path"]), None),
        "register_buffers": (store.register_buffers([value]), None),
        "register_objects": (store.register_objects(["key"]), None),
        "clear": (store.clear(), None),
    }
    assert {name: answer for name, (answer, _) in answers.items()} == {
        name: expected for name, (_, expected) in answers.items()
    }
    lines = log.lines()
    assert len(lines) == len(answers)
    assert all("closed" in line for line in lines)


def test_a_with_statement_closes(lifetime, folder, log):
    with HiCacheNixl(storage_config(lifetime), str(folder)) as store:
        assert store.exists("key") is False
    assert store.exists("key") is False
    assert "closed" in log.line()


def test_a_store_opened_later_finds_the_pages(make_store, lifetime, raw):
    value = torch.arange(64)
    first = make_store(lifetime)
    assert first.set("key", value)
    first.close()
    assert torch.equal(make_store(lifetime).get("key", torch.zeros_like(value)), value)
    assert set(raw.handles()) <= {"key_org-model_0_1"}


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_close_waits_for_a_call_that_has_begun_and_has_moved_nothing_yet(
    make_store, lifetime, raw, replace_method, layout
):
    """A call is its parts, too: the transfer inside it is not a new one that comes after the end."""
    pool = make_pool(False, layout)
    store = make_store(lifetime, pool=pool)
    keys, indices = keys_of(4), pool.page_indices(0, 4)
    assert all(store.batch_set_v1(keys, indices))
    before = raw.names()
    began, go_on, results = threading.Event(), threading.Event(), []
    leaving = store.pages.leaving

    def slow(*args):
        began.set()
        assert go_on.wait(20)
        return leaving(*args)

    replace_method(store.pages, "leaving", slow)
    setting = threading.Thread(target=lambda: results.extend(store.batch_set_v1(keys, indices)))
    setting.start()
    assert began.wait(20)
    closing = threading.Thread(target=store.close)
    closing.start()
    while not store._calls._closed:
        time.sleep(0.001)
    go_on.set()
    setting.join()
    closing.join()
    assert results == [True] * 4
    assert raw.names() == before
