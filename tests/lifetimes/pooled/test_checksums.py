"""Checksums of pages: of all pieces, in their order."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from hicache_nixl.lifetimes.pooled.checksums import checksums


def of(memory, starts, sizes):
    return checksums(memory.ctypes.data + np.array(starts, np.int64), np.array(sizes, np.int64))


def test_a_page_of_one_piece_has_the_xxh3_of_its_bytes():
    memory = np.arange(4096, dtype=np.uint8)
    expected = [xxhash.xxh3_64_intdigest(memory[at : at + 1024].tobytes()) for at in (2048, 0)]
    assert of(memory, [[2048], [0]], [1024]).tolist() == expected


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=4),
    st.integers(1, 5000),
    st.one_of(st.integers(1, 5000), st.sampled_from([240, 241, 1024, 1025, 1088, 2048])),
)
def test_a_page_of_two_pieces_has_the_xxh3_of_the_second_seeded_with_that_of_the_first(starts, first, second):
    memory = np.random.default_rng(1).integers(0, 256, 10_000, dtype=np.uint8)
    expected = [
        xxhash.xxh3_64_intdigest(
            memory[b : b + second].tobytes(), xxhash.xxh3_64_intdigest(memory[a : a + first].tobytes())
        )
        for a, b in starts
    ]
    assert of(memory, starts, [first, second]).tolist() == expected


@given(st.integers(0, 4095), st.integers(1, 255))
def test_a_changed_byte_changes_the_checksum_of_its_page_only(place, difference):
    memory = np.random.default_rng(1).integers(0, 256, 4096, dtype=np.uint8)
    starts = [[0, 2048], [1024, 3072]]
    before = of(memory, starts, [1024, 1024])
    memory[place] ^= difference
    changed = of(memory, starts, [1024, 1024]) != before
    assert changed.tolist() == [place // 1024 in (0, 2), place // 1024 in (1, 3)]


@pytest.mark.parametrize(
    "starts", [[[1024, 0]], [[0, 0]], [[1024, 1024]]], ids=["exchanged", "first", "second"]
)
def test_exchanged_and_repeated_pieces_are_other_pages(starts):
    memory = np.random.default_rng(1).integers(0, 256, 2048, dtype=np.uint8)
    assert of(memory, starts, [1024, 1024]) != of(memory, [[0, 1024]], [1024, 1024])
