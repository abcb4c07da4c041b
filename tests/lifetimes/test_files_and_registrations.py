"""What only files have: descriptors and registrations for each call, ``register_files``, the folder they share."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from support import (
    as_bytes,
    files_in,
    keys_of,
    let_go,
    make_pool,
    names_open,
    page_files,
    scramble,
    storage_config,
    suffix,
)

from hicache_nixl import HiCacheNixl
from hicache_nixl.contract import _HiCacheStorage
from hicache_nixl.lifetimes.outcome import MOVED

PAGES = 8


def values_of(count):
    return [torch.full((32,), number, dtype=torch.int32) for number in range(count)]


def names_of_values(count):
    return [f"{key}_org-model_0_1" for key in keys_of(count)]


# -- each call -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_descriptors_and_registrations_after_every_call(
    make_store, lifetime, left, layout, folder, regions_alive
):
    """2 files per page for multi-head zero-copy, 1 for MLA and for copied pages; then the lifetime's share."""
    pool = make_pool(False, layout, PAGES)
    store = make_store(lifetime, pool=pool)
    alive = regions_alive(store)
    endings = [suffix(False, layout) + ending for ending in page_files(pool, False, 0)]
    names = [key + ending for key in keys_of(5) for ending in endings]
    expected: list[str] = []
    for call in (store.batch_set_v1, store.batch_get_v1, store.batch_set_v1, store.batch_get_v1):
        assert all(call(keys_of(5), pool.page_indices(0, 5)))
        expected += names * left.fds
        assert names_open(folder) == sorted(expected), f"fd leak after {call.__name__}"
    assert alive["FILE_SEG"] == 4 * len(names) * left.file_registrations
    assert alive["DRAM_SEG"] == 4 * len(names) * left.buffer_registrations


@pytest.mark.parametrize(
    ("mla", "layout", "per_page"),
    [
        (False, "page_first", 2),
        (False, "page_first_direct", 2),
        (False, "layer_first", 1),
        (True, "page_first", 1),
        (True, "page_first_direct", 1),
        (True, "layer_first", 1),
    ],
)
def test_leaky_keeps_this_many_descriptors_per_page(make_store, folder, mla, layout, per_page):
    """The law of the PR: +2 per key and call for multi-head zero-copy."""
    pool = make_pool(mla, layout)
    store = make_store("leaky", mla=mla, pool=pool)
    for calls in range(1, 4):
        assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
        assert len(names_open(folder)) == calls * PAGES * per_page, names_open(folder)


def test_execute_transfer_moves_bytes_both_ways(store, left, folder):
    """The key symbol of the PR takes buffers and paths; the files exist already."""
    path, value, target = folder / "plain", values_of(2)[1], torch.zeros(32, dtype=torch.int32)
    path.touch()
    assert store.lifetime._execute_transfer([value], [str(path)], "WRITE") == [MOVED]
    assert path.read_bytes() == value.numpy().tobytes()
    assert store.lifetime._execute_transfer([target], [str(path)], "READ") == [MOVED]
    assert torch.equal(target, value)
    assert names_open(folder) == ["plain"] * 2 * left.fds


@pytest.mark.parametrize(
    ("writer", "reader"), [("leaky", "try_finally"), ("try_finally", "scoped"), ("scoped", "leaky")]
)
@pytest.mark.parametrize(("mla", "layout"), [(False, "page_first"), (True, "layer_first")])
def test_what_one_lifetime_wrote_another_one_reads(make_store, mla, layout, writer, reader):
    pool = make_pool(mla, layout, PAGES)
    first, second = (make_store(lifetime, mla=mla, pool=pool) for lifetime in (writer, reader))
    original = pool.kv_buffer.clone()
    assert all(first.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert second.batch_exists(keys_of(PAGES)) == PAGES
    scramble(pool)
    assert second.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)) == [True] * PAGES
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))


@pytest.mark.parametrize(("writer", "reader"), [("leaky", "scoped"), ("scoped", "try_finally")])
def test_the_layout_that_scoped_names_is_not_read_by_a_release(make_store, writer, reader):
    """``page_first_direct`` has its own name in scoped, and that of ``page_first`` in a release."""
    pool = make_pool(False, "page_first_direct", PAGES)
    first, second = (make_store(lifetime, pool=pool) for lifetime in (writer, reader))
    assert all(first.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    assert second.batch_exists(keys_of(PAGES)) == 0


# -- register_files, register_buffers, register_objects --------------------------------------------------


def test_register_files(store, left, folder, regions_alive):
    assert store.batch_set(keys_of(3), values_of(3))
    already_open = names_open(folder)
    alive = regions_alive(store)
    paths = [str(folder / f"{key}_org-model_0_1") for key in keys_of(3)]
    assert store.register_files(paths) is not None
    assert names_open(folder) == sorted(already_open + [Path(path).name for path in paths])
    assert alive["FILE_SEG"] == 3


@pytest.mark.parametrize("calls", [1, 10])
def test_what_register_files_returned_is_let_go(store, left, folder, regions_alive, calls):
    """Third remark in the review of PR #24671: in a release the caller cannot close what it opened."""
    assert store.batch_set(keys_of(3), values_of(3))
    already_open = names_open(folder)
    alive = regions_alive(store)
    names = names_of_values(3)
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


# -- the class that the server sees ----------------------------------------------------------------------


def test_every_call_of_the_contract_has_the_contract_s_parameters():
    for name, method in inspect.getmembers(_HiCacheStorage, inspect.isfunction):
        expected = list(inspect.signature(method).parameters)
        assert list(inspect.signature(getattr(HiCacheNixl, name)).parameters) == expected, name


def test_a_config_object_of_another_class_is_accepted(tmp_path):
    """The server passes its own HiCacheStorageConfig."""
    other_class = type("HiCacheStorageConfig", (), vars(storage_config()))
    with HiCacheNixl(other_class(), str(tmp_path)) as store:
        assert store.set("key", torch.zeros(4))
    assert files_in(tmp_path) == ["key_org-model_0_1"]
