"""The laws of the host pools, and the table of SGLang's own pools in facts.md."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import as_bytes, make_pool, page_tensor, scramble

from hicache_nixl.errors import ConfigError, PageIndexError
from hicache_nixl.host.pools import (
    ALIGNMENT,
    HUGE_PAGE,
    LAYOUTS,
    ZERO_COPY_LAYOUTS,
    MlaHostPool,
    MultiHeadHostPool,
    pool_for_model,
    pool_for_page_bytes,
)

PAGES = 8
TOKENS = 4 * PAGES

# page_size 4, 3 layers, bfloat16; multi-head 2 x 64, MLA 64 + 16
TABLE = [
    (False, "layer_first", (2, 3, TOKENS, 2, 64), 6, 1024, (2, 3, 4, 2, 64)),
    (False, "page_first", (2, TOKENS, 3, 2, 64), 2, 3072, (2, 4, 3, 2, 64)),
    (False, "page_first_direct", (2, PAGES, 3, 4, 2, 64), 2, 3072, (2, 1, 3, 4, 2, 64)),
    (True, "layer_first", (3, TOKENS, 1, 80), 3, 640, (3, 4, 1, 80)),
    (True, "page_first", (TOKENS, 3, 1, 80), 1, 1920, (4, 3, 1, 80)),
    (True, "page_first_direct", (PAGES, 3, 4, 1, 80), 1, 1920, (1, 3, 4, 1, 80)),
]
SHAPES = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 4),
        "page_size": st.integers(1, 6),
        "pages": st.integers(1, 5),
        "layout": st.sampled_from(LAYOUTS),
        "dtype": st.sampled_from([torch.bfloat16, torch.float32, torch.uint8]),
    }
)
POOLS = st.one_of(
    st.builds(
        lambda shape, heads, dim: MultiHeadHostPool(**shape, kv_heads=heads, head_dim=dim),
        SHAPES,
        st.integers(1, 3),
        st.integers(1, 8),
    ),
    st.builds(
        lambda shape, rank, rope: MlaHostPool(**shape, kv_lora_rank=rank, qk_rope_head_dim=rope),
        SHAPES,
        st.integers(1, 8),
        st.integers(1, 4),
    ),
)


def starts(pool):
    return range(0, pool.size, pool.page_size)


@pytest.fixture
def pool(mla, layout):
    return make_pool(mla, layout, PAGES, page_size=4)


# -- the table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mla", "layout", "buffer", "pieces", "piece_bytes", "page"), TABLE)
def test_shapes_and_pieces_are_those_of_sglang_s_pools(mla, layout, buffer, pieces, piece_bytes, page):
    pool = make_pool(mla, layout, PAGES, page_size=4)
    assert tuple(pool.kv_buffer.shape) == buffer
    assert pool.kv_buffer.dtype == torch.bfloat16
    assert tuple(pool.get_data_page(0, flat=False).shape) == page
    addresses, sizes = pool.get_page_buffer_meta(pool.page_indices(0, 2))
    assert sizes == [piece_bytes] * 2 * pieces
    assert len(addresses) == 2 * pieces
    assert pool.page_bytes == pieces * piece_bytes


def test_pieces_of_layer_first_are_k_and_v_of_each_layer_in_turn():
    pool = make_pool(False, "layer_first", PAGES, page_size=4)
    addresses, _ = pool.get_page_buffer_meta(pool.page_indices(1, 1))
    assert addresses == [pool.kv_buffer[kv, layer, 4].data_ptr() for layer in range(3) for kv in range(2)]


def test_pieces_of_the_page_first_layouts_are_k_then_v_page_by_page():
    pool = make_pool(False, "page_first", PAGES, page_size=4)
    addresses, _ = pool.get_page_buffer_meta(torch.cat([pool.page_indices(page, 1) for page in (5, 2)]))
    assert addresses == [pool.kv_buffer[kv, token].data_ptr() for token in (20, 8) for kv in range(2)]


# -- views and copies ------------------------------------------------------------------------------------


def test_a_page_that_is_not_flat_is_a_view_in_every_layout(pool):
    assert pool.get_data_page(4, flat=False).data_ptr() == pool.kv_buffer[page_index(pool, 1)].data_ptr()
    pool.get_data_page(4, flat=False).zero_()
    assert not pool.get_data_page(4, flat=True).any()


def page_index(pool, page):
    """Return the index of the first number of a page in kv_buffer."""
    token = page * pool.page_size
    planes = (0,) * (pool.planes - 1)
    return (
        planes
        + {"layer_first": (0, token), "page_first": (token,), "page_first_direct": (page,)}[pool.layout]
    )


def test_a_flat_page_is_a_copy_unless_the_page_is_contiguous(pool, mla, layout):
    flat = pool.get_data_page(4)
    assert flat.dim() == 1
    assert flat.dtype == pool.dtype
    is_view = flat.data_ptr() == pool.get_data_page(4, flat=False).data_ptr()
    assert is_view == (mla and layout in ZERO_COPY_LAYOUTS)


def test_a_page_holds_what_plain_slicing_finds(pool, mla):
    for page in range(PAGES):
        expected = page_tensor(pool, mla, page).contiguous().flatten()
        assert torch.equal(as_bytes(pool.get_data_page(page * 4)), as_bytes(expected))


@pytest.mark.parametrize("index", [8, torch.tensor(8), torch.tensor([8])[0]], ids=["int", "0-d", "element"])
def test_an_index_is_an_int_or_a_tensor_without_dimensions(pool, index):
    assert torch.equal(as_bytes(pool.get_data_page(index)), as_bytes(pool.get_data_page(8)))
    pool.set_from_flat_data_page(index, pool.get_dummy_flat_data_page())
    assert not pool.get_data_page(8).any()


def test_a_dummy_page_has_the_form_of_a_flat_page(pool):
    dummy, flat = pool.get_dummy_flat_data_page(), pool.get_data_page(0)
    assert (dummy.shape, dummy.dtype) == (flat.shape, flat.dtype)
    assert dummy.nbytes == pool.page_bytes
    assert not dummy.any()


# -- laws ------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(POOLS)
def test_the_pieces_of_all_pages_tile_the_buffer(pool):
    addresses, sizes = pool.get_page_buffer_meta(torch.arange(pool.size))
    position = pool.kv_buffer.data_ptr()
    for address, size in sorted(zip(addresses, sizes, strict=True)):
        assert address == position, "no gap and no overlap"
        position += size
    assert position == pool.kv_buffer.data_ptr() + pool.kv_buffer.nbytes
    assert pool.kv_buffer.nbytes == pool.page_num * pool.page_bytes


@settings(max_examples=20, deadline=None)
@given(POOLS)
def test_the_buffer_starts_on_a_page_of_memory_and_is_contiguous(pool):
    assert pool.kv_buffer.data_ptr() % ALIGNMENT == 0
    assert ALIGNMENT == 4096
    assert pool.kv_buffer.is_contiguous()


@settings(max_examples=20, deadline=None)
@given(POOLS)
def test_a_flat_page_put_back_changes_nothing(pool):
    scramble(pool)
    original = pool.kv_buffer.clone()
    for start in starts(pool):
        flat = pool.get_data_page(start).clone()
        pool.set_from_flat_data_page(start, pool.get_dummy_flat_data_page())
        assert not pool.get_data_page(start).any()
        pool.set_from_flat_data_page(start, flat)
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(original))


@settings(max_examples=20, deadline=None)
@given(POOLS, st.data())
def test_the_pieces_of_a_page_are_the_memory_of_its_view(pool, data):
    page = data.draw(st.integers(0, pool.page_num - 1))
    as_bytes(pool.kv_buffer).zero_()
    pool.set_from_flat_data_page(page * pool.page_size, torch.ones_like(pool.get_dummy_flat_data_page()))
    for index in range(pool.page_num):
        addresses, sizes = pool.get_page_buffer_meta(pool.page_indices(index, 1))
        memory = b"".join(ctypes.string_at(*piece) for piece in zip(addresses, sizes, strict=True))
        assert any(memory) == (index == page)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4096).map(lambda eighths: 8 * eighths), st.sampled_from(LAYOUTS), st.booleans())
def test_a_pool_for_page_bytes_has_pages_of_that_size(page_bytes, layout, mla):
    pool = pool_for_page_bytes(page_bytes, pages=2, layout=layout, mla=mla)
    assert pool.page_bytes == page_bytes == pool.get_data_page(0).nbytes
    assert isinstance(pool, MlaHostPool if mla else MultiHeadHostPool)
    assert (pool.layout, pool.page_num) == (layout, 2)


# -- indices and errors ----------------------------------------------------------------------------------


def test_page_indices_are_int64_token_indices(pool):
    indices = pool.page_indices(2, 3)
    assert indices.dtype == torch.int64
    assert indices.tolist() == list(range(8, 20))


def test_indices_may_come_as_int32(pool):
    indices = pool.page_indices(1, 2)
    assert pool.get_page_buffer_meta(indices.to(torch.int32)) == pool.get_page_buffer_meta(indices)


@pytest.mark.parametrize("index", [-1, TOKENS, TOKENS - 3])
def test_a_page_outside_the_pool_is_an_error(pool, index):
    with pytest.raises(PageIndexError, match=f"{index} is outside the pool of {TOKENS} tokens"):
        pool.get_data_page(index)
    with pytest.raises(PageIndexError):
        pool.set_from_flat_data_page(index, pool.get_dummy_flat_data_page())


def test_indices_that_are_no_whole_pages_are_an_error(pool):
    with pytest.raises(PageIndexError, match="7 indices"):
        pool.get_page_buffer_meta(torch.arange(7))


def test_an_unknown_layout_is_an_error_that_names_the_known_ones():
    with pytest.raises(ConfigError) as raised:
        make_pool(False, "page_last")
    assert all(name in str(raised.value) for name in ("page_last", *LAYOUTS))


@pytest.mark.parametrize("field", ["layers", "page_size", "pages", "kv_heads", "head_dim"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "4"])
def test_a_number_that_is_none_is_an_error(field, value):
    shape = {"layers": 1, "page_size": 1, "pages": 1, "kv_heads": 1, "head_dim": 1, field: value}
    with pytest.raises(ConfigError, match="expected an integer of at least 1"):
        MultiHeadHostPool(**shape)


@pytest.mark.parametrize("page_bytes", [0, -8, 7, 12])
def test_page_bytes_that_make_no_page_are_an_error(page_bytes):
    with pytest.raises(ConfigError, match="multiple of 8"):
        pool_for_page_bytes(page_bytes, pages=1)


def test_a_pool_for_a_model_has_its_geometry_scaled_down_in_layers():
    pool = pool_for_model("Qwen/Qwen2.5-32B", page_size=2, pages=3, layers=4, layout="layer_first")
    assert tuple(pool.kv_buffer.shape) == (2, 4, 6, 8, 128)
    assert tuple(pool_for_model("DeepSeek-V3", page_size=2, pages=3, layers=4).kv_buffer.shape) == (
        6,
        4,
        1,
        576,
    )
    assert pool_for_model("gpt-oss-20b", page_size=1, pages=1).layer_num == 24


@pytest.mark.parametrize("layers", [0, -1, 65])
def test_more_layers_than_a_model_has_or_none_are_an_error(layers):
    with pytest.raises(ConfigError, match="1 to 64"):
        pool_for_model("Qwen2.5-32B", page_size=1, pages=1, layers=layers)


def test_the_memory_of_a_pool_may_be_in_huge_pages_and_lives_as_long_as_its_tensor():
    """The kernel's flag ``hg``: single pages, scattered over the memory, make O_DIRECT several times slower."""
    buffer = pool_for_page_bytes(2**20, pages=4).kv_buffer
    gc.collect()
    address, flags = buffer.data_ptr(), ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            inside = range(*(int(end, 16) for end in words[0].split("-")))
        elif words[0] == "VmFlags:" and address in inside:
            flags = words[1:]
    assert address % HUGE_PAGE == 0
    assert "hg" in flags
    assert not buffer.any()
