"""Guards and hashes of rows: what the format of the index rests on."""

from __future__ import annotations

import numpy as np
from page_rows import make_rows

from hicache_nixl.lifetimes.pooled.row import ROW, words_of
from hicache_nixl.lifetimes.pooled.words import guard_of, hash_of


def test_the_guard_tells_every_change_of_one_or_two_bits():
    row = words_of(make_rows([3]))
    row[:, 11] = guard_of(row[0])
    bits = np.zeros((12 * 64, 12), np.uint64)
    bits[np.arange(12 * 64), np.arange(12 * 64) // 64] = (
        np.uint64(1) << np.arange(12 * 64, dtype=np.uint64) % 64
    )
    unnoticed = 0
    for bit in bits:
        flipped = row ^ bits ^ bit  # in one of them the bit is flipped twice
        unnoticed += sum(each[11] == guard_of(each) for each in flipped)
        flipped = row ^ bit
        assert flipped[0, 11] != guard_of(flipped[0])
    assert unnoticed == 12 * 64


def test_zeros_are_no_row_and_the_hashes_are_those_of_the_format():
    assert ROW.itemsize == 96
    assert guard_of(np.zeros(12, np.uint64)) != 0
    words = np.arange(12, dtype=np.uint64)
    assert (guard_of(words), hash_of(words[:4], words[4])) == (
        0x82F95883A0F4C72,
        0x274FE42B5DD1AD56,
    )
