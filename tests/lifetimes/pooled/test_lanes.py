"""Pieces that are neighbours in memory and in the file become one I/O."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hicache_nixl.lifetimes.pooled.pieces import MOST_BYTES, joined
from hicache_nixl.lifetimes.pooled.row import ROW


def rows_at(offsets, steps=0):
    rows = np.zeros(len(offsets), ROW)
    rows["offset"], rows["step"] = offsets, steps
    return rows


def moved(pieces):
    """The pairs of addresses that a transfer moves, as differences and places in the file."""
    sizes = pieces.host[:, 1].tolist()
    assert pieces.stored[:, 1].tolist() == sizes
    return sorted(
        (at - where, where + step)
        for at, where, size in zip(
            pieces.host[:, 0].tolist(), pieces.stored[:, 0].tolist(), sizes, strict=True
        )
        for step in range(size)
    )


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=30),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.integers(0, 9),
)
def test_the_same_bytes_are_moved(pages, sizes, step):
    numbers, k = np.array(pages, np.int64), len(sizes)
    offsets, starts = numbers[:, 0] + 1, np.ascontiguousarray(numbers[:, [1, 2, 1]][:, :k]) + 100
    pieces = joined(rows_at(offsets, step), starts, np.array(sizes))
    assert moved(pieces) == sorted(
        (int(starts[page, piece]) - where, where + byte)
        for page, offset in enumerate(offsets.tolist())
        for piece, size in enumerate(sizes)
        for where in [offset + piece * step]
        for byte in range(size)
    )
    assert (pieces.start, pieces.end) == (starts.min(), (starts + sizes).max())
    for aligned in (1, 2, 4):
        every = np.concatenate([pieces.host[:, :2], pieces.stored[:, :2]])
        assert (pieces.bits % aligned == 0) == (every % aligned == 0).all()


@given(st.integers(1, 400), st.sampled_from([4096, 65536, 3 << 20]))
def test_a_run_is_as_few_operations_as_their_largest_size_allows(pages, size):
    starts = np.arange(pages) * size
    pieces = joined(rows_at(starts), starts[:, None] + 12345, np.array([size]))
    memory, offsets, sizes = pieces.host[:, 0], pieces.stored[:, 0], pieces.host[:, 1]
    most = max(MOST_BYTES, size)
    assert len(memory) == -(-pages * size // most)
    assert sizes.max() <= most
    assert (memory[1:] == memory[:-1] + sizes[:-1]).all()
    assert (memory - offsets == 12345).all()
