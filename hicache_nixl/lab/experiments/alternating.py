"""The order in which things are timed against each other: A B, B A, A B, ..."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from ..progress import tqdm

WARM_UP = 1  # pairs that run first and are not counted


def alternating(arms: Sequence[str], pairs: int, *, label: str = "") -> Iterator[tuple[int, str]]:
    """Yield the number of the pair and the arm to run, reversing the order of the arms in every other pair.

    The first pair warms everything up; its number is negative, and ``counted`` drops it.

    Parameters
    ----------
    label : str
        For the progress bar.

    Examples
    --------
    >>> list(alternating("AB", 2))
    [(-1, 'B'), (-1, 'A'), (0, 'A'), (0, 'B'), (1, 'B'), (1, 'A')]
    """
    shown = tqdm(range(-WARM_UP, pairs), desc=label or " | ".join(arms), unit="pair", leave=False)
    for pair in shown:
        yield from _one_pair(arms, pair)


def in_turn(arms: Sequence[str], pairs: int) -> Iterator[tuple[int, str]]:
    """Yield the same as ``alternating``, without a progress bar."""
    for pair in range(-WARM_UP, pairs):
        yield from _one_pair(arms, pair)


def _one_pair(arms: Sequence[str], pair: int) -> Iterator[tuple[int, str]]:
    for arm in arms if pair % 2 == 0 else tuple(reversed(arms)):
        yield pair, arm


def counted(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return a table of the rows whose pair counts."""
    table = pd.DataFrame(rows)
    return table[table.pair >= 0].reset_index(drop=True)
