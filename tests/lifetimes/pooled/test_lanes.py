"""Pieces that are neighbours in memory and in the file become one I/O."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hicache_nixl.lifetimes.pooled.lanes import MOST_BYTES, Pieces, merged


def bytes_moved(memory, offsets, sizes):
    """The pairs of addresses that a transfer moves, as ranges of equal differences."""
    return {
        (at - where, where + step)
        for at, where, size in zip(memory, offsets, sizes, strict=True)
        for step in range(size)
    }


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 5)), min_size=1, max_size=30)
)
def test_the_same_bytes_are_moved(pieces):
    memory, offsets, sizes = np.array(pieces, np.int64).T
    found = merged(Pieces(memory, offsets, sizes))
    assert bytes_moved(*(part.tolist() for part in found)) == bytes_moved(memory, offsets, sizes)
    assert sum(found[2]) == sum(sizes)


@given(st.integers(1, 400), st.sampled_from([4096, 65536, 3 << 20]))
def test_a_run_is_as_few_operations_as_their_largest_size_allows(pieces, size):
    starts = np.arange(pieces) * size
    memory, offsets, sizes = merged(Pieces(starts + 12345, starts, np.full(pieces, size)))
    most = max(MOST_BYTES, size)
    assert len(memory) == -(-pieces * size // most)
    assert sizes.max() <= most
    assert (memory[1:] == memory[:-1] + sizes[:-1]).all()
    assert (memory - offsets == 12345).all()
