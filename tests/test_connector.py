"""The contract, over every lifetime: tensors and addresses, registration, names.

``test_mixed_operations``, ``test_data_integrity``, ``test_register_files``, ``test_register_buffers`` and
``test_error_handling`` bear the names of SGLang's own tests of this backend.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from support import (
    MODEL,
    _open_fds,
    as_bytes,
    files_in,
    keys_of,
    let_go,
    names_open,
    storage_config,
)

from hicache_nixl import HiCacheNixl
from hicache_nixl.contract import _HiCacheStorage

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


def test_mixed_operations(store, left, folder):
    """Single and batch calls with tensors; after each the descriptors that its lifetime predicts."""
    before = len(_open_fds())
    keys, values = keys_of(4), values_of(4)
    batch = sorted(f"{key}_org-model_0_1" for key in keys)
    expected: list[str] = []

    assert store.set("single", values[3])
    expected += ["single_org-model_0_1"] * left.fds
    assert names_open(folder) == sorted(expected), "fd leak after set"

    assert torch.equal(store.get("single", zeros_of(1)[0]), values[3])
    expected += ["single_org-model_0_1"] * left.fds
    assert names_open(folder) == sorted(expected), "fd leak after get"

    assert store.batch_set(keys, values)
    expected += batch * left.fds
    assert names_open(folder) == sorted(expected), "fd leak after batch_set"

    assert all_equal(store.batch_get(keys, zeros_of(4)), values)
    expected += batch * left.fds
    assert names_open(folder) == sorted(expected), "fd leak after batch_get"

    assert store.batch_exists(keys) == 4
    assert store.exists("single")
    assert names_open(folder) == sorted(expected), "fd leak after exists"
    assert len(_open_fds()) - before == len(expected) == 10 * left.fds


def test_register_files(store, left, folder, regions_alive):
    assert store.batch_set(keys_of(3), values_of(3))
    already_open = names_open(folder)
    alive = regions_alive(store)
    paths = [str(folder / f"{key}_org-model_0_1") for key in keys_of(3)]
    assert store.register_files(paths) is not None
    assert names_open(folder) == sorted(already_open + [Path(path).name for path in paths])
    assert alive["FILE_SEG"] == 3


@pytest.mark.parametrize("calls", [1, 10, 100])
def test_what_register_files_returned_is_let_go(store, left, folder, regions_alive, calls):
    """Third remark in the review of PR #24671: in a release nobody can close what it opened."""
    assert store.batch_set(keys_of(3), values_of(3))
    already_open = names_open(folder)
    alive = regions_alive(store)
    names = [f"{key}_org-model_0_1" for key in keys_of(3)]
    for _ in range(calls):
        let_go(store, store.register_files([str(folder / name) for name in names]))
    opened = names * calls * left.registered_fds
    assert names_open(folder) == sorted(already_open + opened), "fd leak after register_files"
    assert alive["FILE_SEG"] == 0


def test_register_files_of_a_missing_file_leaves_nothing_open(store, folder, log):
    assert store.set("there", torch.zeros(4))
    already_open = names_open(folder)
    there, missing = str(folder / "there_org-model_0_1"), str(folder / "missing")
    assert store.register_files([there, missing]) is None
    assert names_open(folder) == already_open, "fd leak after register_files"
    line = log.line()
    assert "register_files" in line
    assert missing in line
    assert "[Errno 2]" in line


@pytest.mark.parametrize("form", ["tensor", "tensors", "addresses"])
def test_register_buffers(store, folder, regions_alive, form):
    tensors = values_of(3)
    buffers = {
        "tensor": tensors[0],
        "tensors": tensors,
        "addresses": [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors],
    }[form]
    alive = regions_alive(store)
    assert store.register_buffers(buffers) is not None
    assert alive == {"DRAM_SEG": 1 if form == "tensor" else 3}
    assert names_open(folder) == []


@pytest.mark.parametrize("nothing", [[], torch.zeros(4, 4).t()], ids=["empty", "not_contiguous"])
def test_register_buffers_refuses_what_nixl_cannot_take(store, log, nothing):
    assert store.register_buffers(nothing) is None
    assert "register_buffers" in log.line()


def test_register_buffers_of_a_tensor_without_dimensions_is_answered_not_raised(store, log):
    assert store.register_buffers(torch.tensor(1.0)) is None
    assert "register_buffers" in log.line()


def test_register_files_of_nothing_is_none_with_a_line(store, log):
    assert store.register_files([]) is None
    assert "register_files" in log.line()


def test_register_objects_without_an_object_plugin_is_none_with_a_line(store, log):
    assert store.register_objects(["object"]) is None
    assert "register_objects" in log.line()


# -- bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (7, 3), (2, 3, 4, 5)], ids=str)
def test_data_integrity(make_store, dtype, shape):
    store = make_store()
    value = torch.randint(0, 2, (1024,)).to(dtype)[: torch.Size(shape).numel()].reshape(shape)
    if dtype is not torch.bool:  # any bit pattern, NaN among them; a bool holds 0 or 1
        as_bytes(value).random_(0, 256)
    assert store.set("value", value)
    loaded = store.get("value", torch.zeros_like(value))
    assert loaded.dtype == dtype
    assert torch.equal(as_bytes(loaded), as_bytes(value))


def test_a_value_is_written_as_its_raw_bytes(store, folder):
    value = torch.arange(100, dtype=torch.int16)
    assert store.set("raw", value)
    assert (folder / "raw_org-model_0_1").read_bytes() == value.numpy().tobytes()


def test_bytes_written_by_hand_are_read(store, folder):
    value = torch.arange(100, dtype=torch.int16)
    (folder / "raw_org-model_0_1").write_bytes(value.numpy().tobytes())
    assert torch.equal(store.get("raw", torch.zeros_like(value)), value)


def test_addresses_and_sizes(store, left, folder):
    source, target = values_of(1)[0] + 5, zeros_of(1)[0]
    assert store.set("address", target_location=source.data_ptr(), target_sizes=source.nbytes)
    assert store.get("address", target.data_ptr(), target.nbytes) is None, "SGLang answers None for addresses"
    assert torch.equal(target, source)
    assert names_open(folder) == ["address_org-model_0_1"] * 2 * left.fds, "fd leak after get"


def test_addresses_and_sizes_in_batches(store, left, folder):
    keys, values, targets = keys_of(3), values_of(3), zeros_of(3)
    sizes = [value.nbytes for value in values]
    addresses = [value.data_ptr() for value in values]
    assert store.batch_set(keys, target_locations=addresses, target_sizes=sizes)
    assert store.batch_get(keys, [target.data_ptr() for target in targets], sizes) == [None] * 3
    assert all_equal(targets, values)
    assert len(names_open(folder)) == 6 * left.fds, names_open(folder)


def test_set_replaces_a_value(store):
    first, second = values_of(2)
    assert store.set("key", first)
    assert store.set("key", second)
    assert torch.equal(store.get("key", zeros_of(1)[0]), second)


def test_execute_transfer_moves_bytes_both_ways(store, left, folder):
    """The key symbol of the PR takes buffers and paths; the files are there already."""
    path, value, target = folder / "plain", values_of(2)[1], zeros_of(1)[0]
    path.touch()
    assert all(outcome.moved for outcome in store.lifetime._execute_transfer([value], [str(path)], "WRITE"))
    assert path.read_bytes() == value.numpy().tobytes()
    assert all(outcome.moved for outcome in store.lifetime._execute_transfer([target], [str(path)], "READ"))
    assert torch.equal(target, value)
    assert names_open(folder) == ["plain"] * 2 * left.fds


# -- errors ----------------------------------------------------------------------------------------------


def test_error_handling(store, left, folder, log):
    """Wrong use is answered, not raised, with one line each, and the store works on."""
    value = values_of(2)[1]
    assert store.get("missing", zeros_of(1)[0]) is None
    assert "missing_org-model_0_1" in log.line()
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
    assert files_in(folder) == []
    opened_before_it_failed = ["not contiguous_org-model_0_1"] * left.fds
    assert names_open(folder) == opened_before_it_failed, "fd leak after set"
    assert store.set("good", value)
    assert torch.equal(store.get("good", zeros_of(1)[0]), value)
    assert log.lines() == []


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
def test_files_are_named_as_sglang_names_them(make_store, folder, config, name):
    assert make_store(**config).set("key", torch.zeros(4))
    assert files_in(folder) == [name]


@pytest.mark.parametrize("length", [255, 256])
def test_a_key_may_be_as_long_as_a_file_name(make_store, folder, log, length):
    key = "k" * (length - len("_org-model_0_1"))
    assert make_store().set(key, torch.zeros(4)) is (length == 255)
    assert files_in(folder) == [f"{key}_org-model_0_1"] * (length == 255)
    assert len(log.lines()) == (length == 256)


# -- the class that the server sees ----------------------------------------------------------------------


def test_every_call_of_the_contract_has_the_contract_s_parameters():
    for name, method in inspect.getmembers(_HiCacheStorage, inspect.isfunction):
        expected = list(inspect.signature(method).parameters)
        assert list(inspect.signature(getattr(HiCacheNixl, name)).parameters) == expected, name


def test_a_config_object_of_another_class_is_taken(tmp_path):
    """The server passes its own HiCacheStorageConfig."""
    other_class = type("HiCacheStorageConfig", (), vars(storage_config()))
    with HiCacheNixl(other_class(), str(tmp_path)) as store:
        assert store.set("key", torch.zeros(4))
    assert files_in(tmp_path) == [f"key_{MODEL.replace('/', '-')}_0_1"]
