"""Rows for the tests of the table: every field is derived from the number of a key and the number of a version."""

from __future__ import annotations

import numpy as np

from hicache_nixl.lifetimes.pooled.row import ROW, Rows, Words

SPACE = 7
ODD = np.uint64(0x9E3779B97F4A7C15)


def keys_of(numbers: object) -> Words:
    """Return keys, shape (n, 4), for numbers, shape (n,)."""
    first = np.asarray(numbers, np.uint64)[:, None] * ODD + np.uint64(1)
    return first * np.array([1, 3, 5, 7], np.uint64)


def make_rows(
    numbers: object, version: int = 1, *, space: int = SPACE, segment: int = 0, generation: int = 1
) -> Rows:
    """Return rows of keys, shape (n,), whose places are told by key and version."""
    keys = keys_of(numbers)
    rows = np.zeros(len(keys), ROW)
    rows["key"], rows["space"], rows["segment"], rows["generation"] = keys, space, segment, generation
    rows["size"] = version
    told = keys[:, 0] ^ (rows["size"] * ODD)
    for factor, field in enumerate(("offset", "step", "checksum"), 3):
        rows[field] = told * np.uint64(factor)
    return rows


def same_but_guard(rows: Rows, others: Rows) -> np.ndarray:
    """Tell which rows are equal in all fields that their writer chose, shape (n,)."""
    words, other_words = (
        np.ascontiguousarray(each).view(np.uint64).reshape(-1, 12) for each in (rows, others)
    )
    return (words[:, :11] == other_words[:, :11]).all(axis=1)


def are_whole(rows: Rows, numbers: object) -> np.ndarray:
    """Tell which rows of these keys are as ``make_rows`` made them, in whatever version, shape (n,)."""
    expected = make_rows(numbers)
    told = expected["key"][:, 0] ^ (rows["size"] * ODD)
    whole = (rows["key"] == expected["key"]).all(axis=1) & (rows["space"] == SPACE)
    for factor, field in enumerate(("offset", "step", "checksum"), 3):
        whole &= rows[field] == told * np.uint64(factor)
    return whole
