"""Ratios of noisy times, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios and its bootstrap interval.

    Attributes
    ----------
    median, low, high : float
        ``low`` and ``high`` bound the interval of 95 %.
    pairs : int
    """

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Ratio:
    """Return the median of ``numerator[i] / denominator[i]``, pairs that ran next to each other.

    Raises
    ------
    ValueError
        When they are not in pairs, or fewer than two, which tell nothing about their spread.

    Examples
    --------
    >>> print(paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]))
    2.00 [2.00, 2.00]
    """
    if len(numerator) != len(denominator):
        raise ValueError(f"{len(numerator)} and {len(denominator)} times are not in pairs")
    if len(numerator) < 2:
        raise ValueError(f"{len(numerator)} pairs; an interval takes two or more")
    ratios = np.asarray(numerator, float) / np.asarray(denominator, float)
    if np.ptp(ratios) == 0:
        low = high = ratios[0]
    else:
        interval = bootstrap(
            (ratios,),
            np.median,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = interval
    median = float(np.median(ratios))
    return Ratio(median, min(float(low), median), max(float(high), median), len(ratios))  # but for rounding


def ratio_table(times: pd.DataFrame, by: Sequence[str], before: str, after: str) -> pd.DataFrame:
    """Compare two arms of ``compare`` cell by cell.

    Parameters
    ----------
    times : pandas.DataFrame
        Columns ``arm``, ``pair``, ``seconds``, ``bytes`` and those of ``by``.
    by : sequence of str
        What makes a cell, such as ``["operation", "page_bytes"]``.
    before, after : str
        The two arms.

    Returns
    -------
    pandas.DataFrame
        Per cell the median milliseconds and MiB/s of both arms, and ``time_ratio`` (after / before) with
        ``low`` and ``high``.
    """
    rows = []
    for cell, group in times.groupby(list(by), sort=False):
        wide = group.pivot_table(index="pair", columns="arm", values="seconds")
        ratio = paired_ratio(wide[after], wide[before])
        moved = group["bytes"].iloc[0] / 2**20
        medians = {f"{arm}_ms": wide[arm].median() * 1e3 for arm in (before, after)}
        speeds = {f"{arm}_MiB_s": moved / wide[arm].median() for arm in (before, after)}
        rows.append(
            {
                **dict(zip(by, cell, strict=True)),
                **medians,
                **speeds,
                "time_ratio": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "pairs": ratio.pairs,
            }
        )
    return pd.DataFrame(rows)


def told_apart(ratios: pd.DataFrame, operation: str, what: str) -> str:
    """Say for how many cells of a ``ratio_table`` a difference can be told: the title of its figure.

    Examples
    --------
    >>> table = pd.DataFrame({"operation": ["set"] * 2, "low": [0.9, 1.1], "high": [1.2, 1.3]})
    >>> told_apart(table, "set", "page sizes")
    'set: slower after the fix for 1 of 2 page sizes, faster for 0, no difference told for 1'
    """
    chosen = ratios[ratios.operation == operation]
    slower, faster = int((chosen.low > 1).sum()), int((chosen.high < 1).sum())
    same = len(chosen) - slower - faster
    if same == len(chosen):
        return f"{operation}: no difference between before and after can be told for any of {same} {what}"
    return (
        f"{operation}: slower after the fix for {slower} of {len(chosen)} {what}, faster for {faster}, "
        f"no difference told for {same}"
    )
