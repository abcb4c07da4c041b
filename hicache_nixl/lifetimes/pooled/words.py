"""The words by which a table finds its rows: where a key may be listed, and what a word tells of its row.

A word of 64 bits has, from the top, 20 bits of the tag of a row's key and space, 12 of its segment, the low 8 of its
generation, and 24 of its place.  0 is no word.  Words are replaced whole, so readers see the one before or the new one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .row import GENERATION, SEGMENT, Words

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# Measured with 10^5 rows in buckets of 8 and 16: of 16 none is full at a load of three quarters.
WAYS = 16
MOST_ROWS = 1 << 24
# A half of the hash, as a fraction of 2^32, is the place of a bucket among all; its low bits are free for the tag.
_HALVES, _HALF, _LOWER = np.array([0, 32], np.uint64), np.uint64(32), np.uint64(2**32 - 1)
_TEN_BITS, _TEN = np.uint64(2**10 - 1), np.uint64(10)
_TAG_SHIFT, _SEGMENT_SHIFT, _GENERATION_SHIFT = np.uint64(44), np.uint64(32), np.uint64(24)
_SEGMENT_BITS, _GENERATION_BITS, _PLACE_BITS = np.uint64(2**12 - 1), np.uint64(2**8 - 1), np.uint64(2**24 - 1)
_ONE, _SIX_BITS = np.uint64(1), np.uint64(63)
# Each key prefers the words of a bucket in one of these orders, so that few keys of a batch want the same word.
_ORDERS = np.array([np.random.RandomState(seed).permutation(WAYS) + 1 for seed in range(64)], np.uint8)
_ONES = np.ones(WAYS, np.uint8)


def buckets_of(hashes: Words, buckets: np.uint64) -> Numbers:
    """Return the two buckets, among so many, that rows with these hashes, shape (n,), may be in: shape (n, 2)."""
    return ((hashes[:, None] >> _HALVES & _LOWER) * buckets >> _HALF).view(np.int64)


def tags_of(hashes: Words) -> Words:
    """Return the tags of hashes, where a word has them; never 0."""
    tag = (hashes & _TEN_BITS) | (hashes >> _HALF & _TEN_BITS) << _TEN
    return np.maximum(tag, _ONE) << _TAG_SHIFT


def words_for(tags: Words, rows: Words, places: Numbers) -> Words:
    """Return the words of rows, shape (n, 12), at these places."""
    words = tags | (rows[:, SEGMENT] & _SEGMENT_BITS) << _SEGMENT_SHIFT
    words |= (rows[:, GENERATION] & _GENERATION_BITS) << _GENERATION_SHIFT
    words |= places.view(np.uint64)
    return words


def have_tags(words: Words, tags: Words) -> Flags:
    """Tell which words have these tags."""
    return (words ^ tags) >> _TAG_SHIFT == 0


def places_in(words: Words) -> Numbers:
    """Return the places of the rows of words."""
    return (words & _PLACE_BITS).view(np.int64)


def are_stale(words: Words, generations: Words) -> Flags:
    """Tell which words are of a generation that their segment does not have any more.

    Of 256 stale words one is taken for another: it has the same low bits.
    """
    known = np.zeros(int(_SEGMENT_BITS) + 1, np.uint64)
    known[: len(generations)] = generations & _GENERATION_BITS
    segments = (words >> _SEGMENT_SHIFT & _SEGMENT_BITS).view(np.int64)
    return known.take(segments) != words >> _GENERATION_SHIFT & _GENERATION_BITS


def last_of_each(slots: Numbers) -> tuple[Numbers, Numbers]:
    """Return where each slot stands last, in the order of the slots, and where else it stands; -1 is no slot."""
    order = slots.argsort(kind="stable")
    order = order[np.searchsorted(slots.take(order), 0) :]
    ordered = slots.take(order)
    last = np.ones(len(order), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=last[:-1])
    return order[last], order[~last]


def roomiest(hashes: Words, buckets: Numbers, free: Flags) -> Numbers:
    """Return a free slot in that bucket of each pair which has more of them, -1 where there is none."""
    counts = free.view(np.uint8) @ _ONES
    lines = np.arange(len(hashes))
    side = (counts[:, 1] > counts[:, 0]).astype(np.int64)
    sides = 2 * lines + side
    order = _ORDERS.take((hashes & _SIX_BITS).astype(np.int64), axis=0)
    order *= free.reshape(-1, WAYS).take(sides, axis=0)
    slots = buckets.reshape(-1).take(sides) * WAYS + order.argmax(axis=1)
    return np.where(counts.any(axis=1), slots, -1)
