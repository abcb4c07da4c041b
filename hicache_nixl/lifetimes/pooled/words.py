"""Rows and words of the index: what a word tells of its row, where it may be, and whether they are still valid.

A word of 64 bits has, from the top, 20 bits of the tag of a row's key and space, 12 of its segment, the low 8 of its
generation, and 24 of its place.  0 is no word.  Words are written whole, so readers see the one before or the new one.
The hash of a row's key and space names two buckets of 16 words; one of them has the word.
"""

from __future__ import annotations

import numpy as np

from .compiled import Flag, Flags, Matrix, Number, ReadMatrix, ReadWords, Word, compiled
from .row import GENERATION, GUARD, KEY_WORDS, ROW_WORDS, SEGMENT, SPACE

# Measured with 10^5 rows in buckets of 8 and 16: of 16 none is full at a load of three quarters.
WAYS = 16
MOST_ROWS = 1 << 24

# A change of these numbers is a new format.  The factors are odd, so that no bit of a word is lost.
_GOLDEN = 0x9E3779B97F4A7C15
FACTORS = np.array([pow(_GOLDEN, power, 2**64) for power in range(1, GUARD + 1)], np.uint64)
_START, _FACTOR = np.uint64(_GOLDEN), np.uint64(0xBF58476D1CE4E5B9)
NONE, _ONE, _TEN, _SHIFT, _HALF = (np.uint64(number) for number in (0, 1, 10, 29, 32))
_LOWER, _TEN_BITS = np.uint64(2**32 - 1), np.uint64(2**10 - 1)
_TAG_SHIFT, _SEGMENT_SHIFT, _GENERATION_SHIFT = np.uint64(44), np.uint64(32), np.uint64(24)
_SEGMENT_BITS, _GENERATION_BITS, _PLACE_BITS = np.uint64(2**12 - 1), np.uint64(2**8 - 1), np.uint64(2**24 - 1)


# -- hashes --------------------------------------------------------------------------------------------


@compiled
def _folded(word: Word) -> Word:
    """Mix the upper half into the lower one.

    A factor moves differences only upwards, so changes of the highest bits of two words would cancel.
    """
    return word ^ (word >> _HALF)


@compiled
def _finished(total: Word) -> Word:
    total += _START
    total ^= total >> _SHIFT
    total *= _FACTOR
    return total ^ (total >> _HALF)


@compiled
def guard_of(row: ReadWords) -> Word:
    """Return the guard that a row, shape (12,), should have."""
    total = NONE
    for j in range(GUARD):
        total += _folded(row[j]) * FACTORS[j]
    return _finished(total)


@compiled
def hash_of(key: ReadWords, space: Word) -> Word:
    """Return the hash of a key, shape (4,), and a space; never 0."""
    total = _folded(space) * FACTORS[SPACE]
    for j in range(KEY_WORDS):
        total += _folded(key[j]) * FACTORS[j]
    return max(_finished(total), _ONE)


@compiled
def guard(rows: Matrix) -> Number:
    """Fill in the guards of rows, shape (n, 12)."""
    for i in range(len(rows)):
        rows[i, GUARD] = guard_of(rows[i])
    return len(rows)


# -- words ---------------------------------------------------------------------------------------------


@compiled
def bucket_of(hashed: Word, side: Number, slots: Number) -> Number:
    """Return the first slot of one of the two buckets of a hash.

    A half of the hash, as a fraction of 2^32, is the place of the bucket among all; its low bits are free for the tag.
    """
    half = hashed >> _HALF if side else hashed & _LOWER
    return np.int64(half * np.uint64(slots // WAYS) >> _HALF) * WAYS


@compiled
def tag_of(hashed: Word) -> Word:
    """Return the tag of a hash, where a word has it; never 0."""
    tag = (hashed & _TEN_BITS) | (hashed >> _HALF & _TEN_BITS) << _TEN
    return max(tag, _ONE) << _TAG_SHIFT


@compiled
def word_for(hashed: Word, row: ReadWords, place: Number) -> Word:
    """Return the word of a row, given its hash, at a place."""
    word = tag_of(hashed) | (row[SEGMENT] & _SEGMENT_BITS) << _SEGMENT_SHIFT
    return word | (row[GENERATION] & _GENERATION_BITS) << _GENERATION_SHIFT | np.uint64(place)


@compiled
def word_of(row: ReadWords, place: Number) -> Word:
    """Return the word of a row at a place."""
    return word_for(hash_of(row, row[SPACE]), row, place)


@compiled
def has_tag(word: Word, tag: Word) -> Flag:
    """Tell whether a word has a tag."""
    return (word ^ tag) >> _TAG_SHIFT == NONE


@compiled
def place_in(word: Word, room: Number) -> Number:
    """Return the place that a word names, which is none beyond the rows."""
    return min(np.int64(word & _PLACE_BITS), room - 1)


@compiled
def is_stale_word(word: Word, generations: ReadWords) -> Flag:
    """Tell whether a word is of a generation that its segment does not have any more.

    Of 256 stale words one is taken for another: it has the same low bits.
    """
    segment = np.int64(word >> _SEGMENT_SHIFT & _SEGMENT_BITS)
    written = word >> _GENERATION_SHIFT & _GENERATION_BITS
    return segment >= len(generations) or generations[segment] & _GENERATION_BITS != written


@compiled
def is_stale(row: ReadWords, generations: ReadWords) -> Flag:
    """Tell whether a row is not of the generation that its segment has, or of none."""
    segment, written = row[SEGMENT], row[GENERATION]
    return (
        written == NONE or segment >= np.uint64(len(generations)) or generations[np.int64(segment)] != written
    )


@compiled
def are_stale(rows: ReadMatrix, generations: ReadWords) -> Flags:
    """Tell which rows, shape (n, 12), are not of the generation that their segment has, or of none."""
    stale = np.empty(len(rows), np.bool_)
    for i in range(len(rows)):
        stale[i] = is_stale(rows[i], generations)
    return stale


@compiled
def has_name(row: ReadWords, key: ReadWords, space: Word) -> Flag:
    """Tell whether a row has a key, shape (4,), and a space."""
    for j in range(KEY_WORDS):
        if row[j] != key[j]:
            return False
    return row[SPACE] == space


@compiled
def are_equal(row: ReadWords, other: ReadWords) -> Flag:
    """Tell whether two rows are equal."""
    difference = NONE
    for j in range(ROW_WORDS):
        difference |= row[j] ^ other[j]
    return difference == NONE
