"""What changed from one run to another, and what of it is worse: by intervals and margins, never by a noisy number.

Worse is a claim that held and fails, a count that failed already and changed, a notebook that does not finish any more,
and a ratio of two connectors that alternated in each run, when the whole interval of its change is above ``MARGIN``.
Times of the two runs are no evidence: the runs did not alternate, and a shared machine may be twice as slow an hour later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..runs.claims import FAILS, HOLDS
from ..runs.record import Record
from ..statistics import Estimate
from .joining import ONLY, row_keys

MARGIN = 1.25  # the change of a ratio of times up to which nothing is called worse or better
WORSE, BETTER, OTHER = "worse", "better", "changed"


@dataclass(frozen=True)
class Change:
    """One difference between two runs.

    Attributes
    ----------
    effect : str
        ``"worse"``, ``"better"`` or ``"changed"``.
    what, first, second : str
        What differs, and what it is in each run.
    """

    effect: str
    what: str
    first: str
    second: str


def changes(
    a: Record, b: Record, claims: pd.DataFrame, tables: list[tuple[str, pd.DataFrame, pd.DataFrame]]
) -> list[Change]:
    """Return all changes, the worse ones first.

    Parameters
    ----------
    claims : pandas.DataFrame
        From ``claims_side_by_side``.
    tables : list
        Name and both versions of each table that both runs have.
    """
    found = [_of_claim(row) for row in claims.itertuples() if row.change and row.change not in ONLY]
    found += _of_notebooks(a, b)
    for name, first, second in tables:
        found += _of_ratios(name, first, second)
    return sorted(found, key=lambda change: (WORSE, BETTER, OTHER).index(change.effect))


def _of_claim(row: Any) -> Change:
    effect = {(HOLDS, FAILS): WORSE, (FAILS, HOLDS): BETTER}.get((row.verdict_a, row.verdict_b), OTHER)
    if row.change == "fails with another value" and row.counted:
        effect = WORSE
    sides = (
        f"{row.measured_a} ({row.verdict_a})",
        f"{row.measured_b} ({row.verdict_b})",
    )
    return Change(effect, f"claim {row.id}: {row.sentence}", *sides)


def _of_notebooks(a: Record, b: Record) -> list[Change]:
    found = []
    for first, second, effect in ((a, b, WORSE), (b, a, BETTER)):
        for name in first.notebooks:
            if name not in first.unfinished and name in second.unfinished:
                sides = ("finished", "unfinished") if effect == WORSE else ("unfinished", "finished")
                found.append(Change(effect, f"notebook {name}", *sides))
    return found


def _of_ratios(name: str, a: pd.DataFrame, b: pd.DataFrame) -> list[Change]:
    """Compare ratios of connectors that alternated in one run, pooled over the points that both runs have."""
    bounds = ["time_ratio", "low", "high"]
    if not set(bounds) <= set(a) & set(b) or not (keys := row_keys(a, b)):
        return []
    both = a.merge(b, on=keys, suffixes=("_a", "_b"))
    by = [key for key in ("operation", "before", "after", "arms", "id") if key in keys]
    groups = both.groupby(by, sort=False) if by else [((), both)]
    found = []
    for group, points in groups:
        change = change_of_ratios(
            *(points[[f"{bound}_{run}" for bound in bounds]].to_numpy() for run in "ab")
        )
        effect = WORSE if change.low > MARGIN else BETTER if change.high < 1 / MARGIN else ""
        if effect:
            which = ", ".join(str(part) for part in group)
            told = f"ratio of times in {name} ({which})" if which else f"ratio of times in {name}"
            sides = (float(points[f"time_ratio_{run}"].median()) for run in "ab")
            first, second = (f"{side:.3g}" for side in sides)
            found.append(Change(effect, f"{told}: changed by a factor of {change}", first, second))
    return found


def change_of_ratios(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Return by which factor ratios changed, pooled over points: ``b / a`` with the interval of both.

    Parameters
    ----------
    a, b : numpy.ndarray, shape (points, 3)
        Ratio, low and high of each point.

    Examples
    --------
    >>> print(change_of_ratios(np.array([[1.0, 0.9, 1.1]]), np.array([[2.0, 1.8, 2.2]])))
    2.00 [1.74, 2.30]
    """
    logs = np.log(b) - np.log(a)
    widths = [np.log(table[:, 2]) - np.log(table[:, 1]) for table in (a, b)]
    middle = float(logs[:, 0].mean())
    half = math.sqrt(float(sum((width**2).sum() for width in widths))) / 2 / len(logs)
    return Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half), len(logs))
