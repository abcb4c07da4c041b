"""The row of a page in the index, and the hashes that find it and guard it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.void]

FIELDS = ("space", "segment", "generation", "offset", "step", "size", "checksum", "guard")
ROW = np.dtype([("key", np.uint64, (4,)), *((name, np.uint64) for name in FIELDS)])
"""Where a page is: 96 bytes, all unsigned integers of 64 bits.

``key`` (4 words) and ``space`` name the page.  ``offset``, ``step`` and ``size`` are in bytes: piece j of the page
is at ``offset + j * step`` of its segment.  ``guard`` is computed from the other fields when the row is stored.
"""

ROW_WORDS = ROW.itemsize // 8
NAME_WORDS = 5  # key and space
GENERATION, SEGMENT, GUARD = 6, 5, ROW_WORDS - 1  # places of these fields among the words

# A change of these numbers is a new format.  The factors are odd, so that no bit of a word is lost.
_GOLDEN = 0x9E3779B97F4A7C15
_NAME_FACTORS = np.array([pow(_GOLDEN, power, 2**64) for power in range(1, NAME_WORDS + 1)], np.uint64)
_ROW_FACTORS = np.array([pow(_GOLDEN, power, 2**64) for power in range(1, GUARD + 1)] + [0], np.uint64)
_START, _FACTOR = np.uint64(_GOLDEN), np.uint64(0xBF58476D1CE4E5B9)
_HALF, _SHIFT, _ONE = np.uint64(32), np.uint64(29), np.uint64(1)


def words_of(rows: Rows) -> Words:
    """View rows, shape (n,), as words, shape (n, 12); a copy if they are not contiguous."""
    return np.ascontiguousarray(rows).view(np.uint64).reshape(-1, ROW_WORDS)


def rows_of(words: Words) -> Rows:
    """View words, shape (n, 12), as rows, shape (n,)."""
    return words.view(ROW).reshape(-1)


def guards(words: Words) -> Words:
    """Return the guard that each row, shape (n, 12), should have, shape (n,)."""
    return _hashes(words, _ROW_FACTORS)


def tags(names: Words) -> Words:
    """Return the tags of keys and spaces, shape (n, 5): shape (n,), never 0."""
    return np.maximum(_hashes(names, _NAME_FACTORS), _ONE)


def _hashes(words: Words, factors: Words) -> Words:
    """Hash each line of words to 64 bits, modulo 2^64.

    The upper half of each word is first mixed into its lower half: a factor moves differences only upwards, so
    changes of the highest bits of two words would cancel.
    """
    mixed = words >> _HALF
    mixed ^= words
    hashes: Words = mixed @ factors
    hashes += _START
    hashes ^= hashes >> _SHIFT
    hashes *= _FACTOR
    hashes ^= hashes >> _HALF
    return hashes
