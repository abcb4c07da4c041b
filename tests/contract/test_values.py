"""Values by key: tensors and addresses, their bytes and names, and wrong use.

``test_mixed_operations``, ``test_data_integrity`` and ``test_error_handling`` have the names of SGLang's own
tests of this backend.
"""

from __future__ import annotations

import os

import pytest
import torch
from stores import BY_PIECE, complaint
from support import STORE_VARIABLE, _open_fds, as_bytes, keys_of

DTYPES = (
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.bfloat16,
    torch.float16,
    torch.uint8,
)


def values_of(count):
    return [torch.full((32,), number, dtype=torch.int32) for number in range(count)]


def zeros_of(count):
    return [torch.zeros(32, dtype=torch.int32) for _ in range(count)]


def all_equal(loaded, values):
    return all(torch.equal(*pair) for pair in zip(loaded, values, strict=True))


# -- what a call leaves open ---------------------------------------------------------------------------


def test_mixed_operations(store, left, raw):
    """Single and batch calls with tensors; after each the descriptors that its lifetime predicts."""
    before = _files_open()
    keys, values = keys_of(4), values_of(4)
    batch = sorted(f"{key}_org-model_0_1" for key in keys)
    expected: list[str] = []

    assert store.set("single", values[3])
    expected += ["single_org-model_0_1"] * left.fds
    assert raw.handles() == sorted(expected), "fd leak after set"

    assert torch.equal(store.get("single", zeros_of(1)[0]), values[3])
    expected += ["single_org-model_0_1"] * left.fds
    assert raw.handles() == sorted(expected), "fd leak after get"

    assert store.batch_set(keys, values)
    expected += batch * left.fds
    assert raw.handles() == sorted(expected), "fd leak after batch_set"

    assert all_equal(store.batch_get(keys, zeros_of(4)), values)
    expected += batch * left.fds
    assert raw.handles() == sorted(expected), "fd leak after batch_get"

    assert store.batch_exists(keys) == 4
    assert store.exists("single")
    assert raw.handles() == sorted(expected), "fd leak after exists"
    assert len(expected) == 10 * left.fds
    assert _files_open() - before == len(expected) + left.opened_once


def _files_open() -> int:
    """Return how many descriptors are open; over objects, without connections, which are kept for further requests."""
    kinds = ("socket:", "anon_inode:") if STORE_VARIABLE in os.environ else ()
    return sum(not target.startswith(kinds) for target in _open_fds().values())


# -- bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (7, 3), (2, 3, 4, 5)], ids=str)
def test_data_integrity(store, shape):
    for dtype in DTYPES:
        value = torch.randint(0, 2, (1024,)).to(dtype)[: torch.Size(shape).numel()].reshape(shape)
        if dtype is not torch.bool:  # any bit pattern, NaN among them; a bool holds 0 or 1
            as_bytes(value).random_(0, 256)
        assert store.set("value", value)
        loaded = store.get("value", torch.zeros_like(value))
        assert loaded.dtype == dtype
        assert torch.equal(as_bytes(loaded), as_bytes(value))


def test_a_value_is_written_as_its_raw_bytes(store, raw):
    value = torch.arange(100, dtype=torch.int16)
    assert store.set("raw", value)
    assert raw.get("raw_org-model_0_1") == value.numpy().tobytes()


@pytest.mark.parametrize("lifetime", BY_PIECE)
def test_bytes_written_by_hand_are_read(store, raw):
    value = torch.arange(100, dtype=torch.int16)
    raw.put("raw_org-model_0_1", value.numpy().tobytes())
    assert torch.equal(store.get("raw", torch.zeros_like(value)), value)


def test_addresses_and_sizes(store, left, raw):
    source, target = values_of(1)[0] + 5, zeros_of(1)[0]
    assert store.set("address", target_location=source.data_ptr(), target_sizes=source.nbytes)
    assert store.get("address", target.data_ptr(), target.nbytes) is None, "SGLang answers None for addresses"
    assert torch.equal(target, source)
    assert raw.handles() == ["address_org-model_0_1"] * 2 * left.fds, "fd leak after get"


def test_addresses_and_sizes_in_batches(store, left, raw):
    keys, values, targets = keys_of(3), values_of(3), zeros_of(3)
    sizes = [value.nbytes for value in values]
    addresses = [value.data_ptr() for value in values]
    assert store.batch_set(keys, target_locations=addresses, target_sizes=sizes)
    assert store.batch_get(keys, [target.data_ptr() for target in targets], sizes) == [None] * 3
    assert all_equal(targets, values)
    assert len(raw.handles()) == 6 * left.fds, raw.handles()


def test_set_replaces_a_value(store):
    first, second = values_of(2)
    assert store.set("key", first)
    assert store.set("key", second)
    assert torch.equal(store.get("key", zeros_of(1)[0]), second)


# -- errors ----------------------------------------------------------------------------------------------


def test_error_handling(store, lifetime, left, raw, log):
    """Wrong use is answered, not raised, with one line each, and the store works on."""
    value = values_of(2)[1]
    assert store.get("missing", zeros_of(1)[0]) is None
    assert complaint(lifetime, "missing_org-model_0_1")[0] in log.line()
    assert store.set("no value") is False
    assert "no value" in log.line()
    assert store.set("no size", target_location=value.data_ptr()) is False
    assert "no size" in log.line()
    assert store.batch_set(["a", "b"], [value]) is False
    assert "2 keys" in log.line()
    assert store.batch_get(["a", "b"], [value]) == [None, None]
    assert "2 keys" in log.line()
    assert store.batch_get(["a", "b"], [1, 2], [3]) == [None, None]
    assert "1 sizes" in log.line()
    assert store.batch_set([], []) is False
    assert "batch_set" in log.line()
    assert store.set("not contiguous", torch.zeros(4, 4).t()) is False
    assert "not contiguous" in log.line()
    assert raw.names() == []
    opened_before_it_failed = ["not contiguous_org-model_0_1"] * left.fds
    assert raw.handles() == opened_before_it_failed, "fd leak after set"
    assert store.set("good", value)
    assert torch.equal(store.get("good", zeros_of(1)[0]), value)
    assert log.lines() == []


def test_a_size_below_zero_is_refused(store, raw, log):
    value = torch.zeros(4)
    assert store.batch_set(["key"], None, [value.data_ptr()], [-8]) is False
    log.line()
    assert store.batch_get(["key"], [value.data_ptr()], [-8]) == [None]
    log.line()
    assert raw.names() == []


def test_get_without_a_target_and_batch_get_of_nothing_load_nothing(store, log):
    assert store.set("key", torch.zeros(4))
    assert store.get("key") is None
    assert store.batch_get([]) == []
    assert store.batch_exists([]) == 0
    assert log.lines() == []


# -- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, "key_org-model_0_1"),
        ({"tp_rank": 3, "tp_size": 8}, "key_org-model_3_8"),
        ({"mla": True, "tp_rank": 3, "tp_size": 8}, "key_org-model"),
        ({"model": "a/b/c"}, "key_a-b-c_0_1"),
        ({"model": None}, "key__0_1"),
    ],
    ids=["one rank", "rank 3 of 8", "mla", "slashes", "no model"],
)
def test_values_are_named_as_sglang_names_them(make_store, lifetime, raw, config, name):
    assert make_store(lifetime, **config).set("key", torch.zeros(4))
    assert raw.names() == [name]


@pytest.mark.parametrize("length", [255, 256])
def test_a_key_may_be_as_long_as_a_file_name(make_store, lifetime, raw, log, length):
    key = "k" * (length - len("_org-model_0_1"))
    assert make_store(lifetime).set(key, torch.zeros(4)) is (length == 255)
    assert raw.names() == [f"{key}_org-model_0_1"] * (length == 255)
    assert len(log.lines()) == (length == 256)
