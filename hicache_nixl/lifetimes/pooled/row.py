"""The row of a page in the index."""

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
KEY_WORDS, NAME_WORDS = 4, 5  # of the key; of key and space
SPACE, SEGMENT, GENERATION, OFFSET, STEP = range(4, 9)  # places of these fields among the words
GUARD = ROW_WORDS - 1


def words_of(rows: Rows) -> Words:
    """View rows, shape (n,), as words, shape (n, 12); a copy if they are not contiguous."""
    return np.ascontiguousarray(rows).view(np.uint64).reshape(-1, ROW_WORDS)


def rows_of(words: Words) -> Rows:
    """View words, shape (n, 12), as rows, shape (n,)."""
    return words.view(ROW).reshape(-1)
