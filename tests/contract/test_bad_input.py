"""Keys and host indices that cannot work: each call answers False, with one line, before anything is touched."""

from __future__ import annotations

import pytest
import torch
from support import files_in, keys_of, make_pool

from hicache_nixl.errors import ConfigError

BAD_KEYS = ["", "/", "a/b", "../escape", "..", "a..b", "nul\0byte", "k" * 256, "ß" * 127]
KEY_IDS = ["empty", "slash", "inner slash", "parent", "dots", "inner dots", "nul", "long", "long in bytes"]


@pytest.fixture
def pool():
    return make_pool(False, "page_first", page_size=4)


@pytest.fixture
def store(make_store, lifetime, pool):
    return make_store(lifetime, pool=pool)


# -- keys and host indices of different lengths, empty keys, indices out of the pool ---------------------


@pytest.mark.parametrize("call", ["batch_set_v1", "batch_get_v1"])
@pytest.mark.parametrize(
    ("keys", "indices", "named"),
    [
        (3, torch.arange(8), ["3 keys", "8 host indices"]),
        (2, torch.arange(12), ["2 keys", "12 host indices"]),
        (2, torch.arange(7), ["2 keys", "7 host indices"]),
        (2, torch.arange(0), ["2 keys", "0 host indices"]),
        (0, torch.arange(4), ["0 keys", "4 host indices"]),
        (0, torch.arange(0), ["0 keys", "0 host indices"]),
        (2, torch.arange(28, 36), ["2 keys", "8 host indices", "28 to 35", "32 tokens"]),
        (1, torch.arange(32, 36), ["1 keys", "4 host indices", "32 to 35"]),
        (1, torch.arange(-4, 0), ["1 keys", "4 host indices", "-4"]),
        (1, torch.arange(2, 6), ["4 tokens", "inside a page"]),
    ],
    ids=[
        "fewer indices",
        "more indices",
        "half a page",
        "no indices",
        "no keys",
        "nothing",
        "leaves the pool",
        "behind the pool",
        "before the pool",
        "inside a page",
    ],
)
def test_keys_and_indices_that_do_not_fit_are_false_per_page_and_one_line_with_both_lengths(
    store, raw, log, call, keys, indices, named
):
    assert getattr(store, call)(keys_of(keys), indices) == [False] * keys
    line = log.line()
    assert call in line
    assert [text for text in named if text not in line] == []
    assert raw.names() == []
    assert raw.handles() == []


@pytest.mark.parametrize("call", ["batch_set_v1", "batch_get_v1"])
def test_without_a_host_pool_a_batch_call_is_false_and_says_what_to_call(make_store, lifetime, log, call):
    assert getattr(make_store(lifetime), call)(keys_of(2), torch.arange(8)) == [False, False]
    assert "register_mem_pool_host" in log.line()


@pytest.mark.parametrize("call", ["batch_set_v1", "batch_get_v1"])
@pytest.mark.parametrize("indices", [None, "0123"], ids=["none", "text"])
def test_indices_of_a_wrong_type_are_false_with_one_line(store, log, call, indices):
    assert getattr(store, call)(["page"], indices) == [False]
    assert call in log.line()


# -- a key with /, .., a NUL, or longer than a file name may be ------------------------------------------

CALLS = {
    "set": (lambda store, key, pool: store.set(key, torch.zeros(4)), False),
    "get": (lambda store, key, pool: store.get(key, torch.zeros(4)), None),
    "exists": (lambda store, key, pool: store.exists(key), False),
    "batch_set": (lambda store, key, pool: store.batch_set(["good", key], [torch.zeros(4)] * 2), False),
    "batch_get": (lambda store, key, pool: store.batch_get(["good", key], [torch.zeros(4)] * 2), [None] * 2),
    "batch_exists": (lambda store, key, pool: store.batch_exists([key, "good"]), 0),
    "batch_set_v1": (
        lambda store, key, pool: store.batch_set_v1(["good", key], pool.page_indices(0, 2)),
        [False] * 2,
    ),
    "batch_get_v1": (
        lambda store, key, pool: store.batch_get_v1(["good", key], pool.page_indices(0, 2)),
        [False] * 2,
    ),
}


@pytest.mark.parametrize("key", BAD_KEYS, ids=KEY_IDS)
def test_a_bad_key_is_refused_before_any_file_is_touched(store, pool, tmp_path, raw, log, key):
    for name, (call, answer) in CALLS.items():
        assert call(store, key, pool) == answer, name
        line = log.line()
        assert "refused" in line, name
        assert repr(key[:40])[1:-1] in line, name
        assert raw.names() == [], name
    assert files_in(tmp_path) in (["pages"], []), "nothing outside the storage folder either"
    assert raw.handles() == []


@pytest.mark.parametrize("key", [None, 5, b"bytes", "\ud800"], ids=["none", "int", "bytes", "lone surrogate"])
def test_a_key_that_is_no_file_name_at_all_is_answered_with_one_line(store, raw, log, key):
    assert store.set(key, torch.zeros(4)) is False
    log.line()
    assert store.exists(key) is False
    log.line()
    assert raw.names() == []


# -- what is no list of keys, and what is no host pool ----------------------------------------------------

NO_LISTS = {
    "none": lambda: None,
    "int": lambda: 5,
    "generator": lambda: (key for key in keys_of(2)),
    "text": lambda: "page",
    "set": lambda: {"page"},
}
CALLS_WITH_KEYS = {
    "batch_set_v1": (lambda store, keys, pool: store.batch_set_v1(keys, pool.page_indices(0, 2)), [False]),
    "batch_get_v1": (lambda store, keys, pool: store.batch_get_v1(keys, pool.page_indices(0, 2)), [False]),
    "batch_exists": (lambda store, keys, pool: store.batch_exists(keys), 0),
    "batch_set": (lambda store, keys, pool: store.batch_set(keys, [torch.zeros(4)] * 2), False),
    "batch_get": (lambda store, keys, pool: store.batch_get(keys, [torch.zeros(4)] * 2), [None]),
    "register_files": (lambda store, keys, pool: store.register_files(keys), None),
    "register_objects": (lambda store, keys, pool: store.register_objects(keys), None),
}


@pytest.mark.parametrize("keys", NO_LISTS)
@pytest.mark.parametrize("name", CALLS_WITH_KEYS)
def test_what_is_no_list_of_keys_fails_with_one_line(store, pool, raw, log, name, keys):
    """A single False, not an empty list: the server takes ``all`` of the answers."""
    call, answer = CALLS_WITH_KEYS[name]
    assert call(store, NO_LISTS[keys](), pool) == answer
    line = log.line()
    assert name in line
    assert "expected a list" in line
    assert raw.names() == []


@pytest.mark.parametrize("pool", [None, 5, "pool", torch.zeros(4)], ids=["none", "int", "text", "tensor"])
def test_what_is_no_host_pool_is_an_error_of_the_configuration(make_store, lifetime, pool):
    store = make_store(lifetime)
    with pytest.raises(ConfigError, match="expected a host pool"):
        store.register_mem_pool_host(pool)
    assert not store.is_zero_copy


@pytest.mark.parametrize("buffers", [None, 5, [None]], ids=["none", "int", "list of none"])
def test_what_is_no_buffer_is_not_registered(make_store, lifetime, log, buffers):
    assert make_store(lifetime).register_buffers(buffers) is None
    assert "register_buffers" in log.line()


@pytest.mark.parametrize("value", [None, 5, "text"])
def test_what_is_no_value_or_target_fails_with_one_line(make_store, lifetime, raw, log, value):
    store = make_store(lifetime)
    for call, answer in (
        (lambda: store.set("key", value), False),
        (lambda: store.batch_set(["key"], [value]), False),
        (lambda: store.batch_set(["key"], value), False),
        (lambda: store.batch_get(["key"], [value]), [None]),
    ):
        assert call() == answer
        log.line()
    assert raw.names() == []
