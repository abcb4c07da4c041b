"""Ratios of noisy times, with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, theilslopes

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
    pairs = _pairs(numerator, denominator)
    ratios = pairs[:, 0] / pairs[:, 1]
    low, high = _median_interval(ratios, seed)
    return Ratio(float(np.median(ratios)), low, high, len(ratios))


@dataclass(frozen=True)
class Estimate:
    """A measured value, in its own unit, with its interval of 95 %, from so many calls or pairs."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def paired_difference(minuend: Sequence[float], subtrahend: Sequence[float], seed: int = 0) -> Estimate:
    """Return the median of ``minuend[i] - subtrahend[i]``, pairs that ran next to each other.

    Examples
    --------
    >>> print(paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]))
    1 [1, 1]
    """
    differences = _pairs(minuend, subtrahend)
    values = differences[:, 0] - differences[:, 1]
    low, high = _median_interval(values, seed)
    return Estimate(float(np.median(values)), low, high, len(values))


def unpaired_ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Estimate:
    """Return the ratio of two medians, of values that did not run next to each other.

    Examples
    --------
    >>> print(unpaired_ratio([2.0, 2.0, 2.0], [1.0, 1.0]))
    2 [2, 2]
    """
    samples = (np.asarray(numerator, float), np.asarray(denominator, float))
    count = min(map(len, samples))
    if count < 2:
        raise ValueError(f"{count} values; an interval takes two or more")
    ratio = float(np.median(samples[0]) / np.median(samples[1]))
    if np.ptp(samples[0]) == np.ptp(samples[1]) == 0:
        return Estimate(ratio, ratio, ratio, count)
    interval = bootstrap(
        samples,
        _ratio_of_medians,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(ratio, min(float(interval.low), ratio), max(float(interval.high), ratio), count)


def slope(table: pd.DataFrame, column: str, over: str = "call") -> Estimate:
    """Return the growth of a column per call: the median over all pairs of calls (Theil and Sen).

    A few slow calls do not move it, as they would a least-squares line.

    Parameters
    ----------
    over : str
        The column to take instead of ``call``, such as one of minutes.

    Examples
    --------
    >>> print(slope(pd.DataFrame({"call": [1, 2, 3, 4, 5], "fds": [6, 8, 10, 12, 14]}), "fds"))
    2 [2, 2]
    """
    if len(table) < 5:  # of fewer, all pairs may rise by chance
        raise ValueError(f"{len(table)} values; a slope with an interval takes five or more")
    found = theilslopes(table[column], table[over], alpha=CONFIDENCE)
    return Estimate(float(found.slope), float(found.low_slope), float(found.high_slope), len(table))


def slope_table(tables: Mapping[str, pd.DataFrame], columns: Mapping[str, float]) -> pd.DataFrame:
    """Return slopes per call by connector and column.

    Parameters
    ----------
    tables : mapping
        Replays by connector.
    columns : mapping
        Column to the factor that brings it into the unit to be shown, such as ``{"seconds": 1e6}``.
    """
    rows = []
    for connector, table in tables.items():
        for column, factor in columns.items():
            found = slope(table.assign(**{column: table[column] * factor}), column)
            values = {"per_call": found.median, "low": found.low, "high": found.high}
            rows.append({"connector": connector, "column": column, **values, "calls": found.count})
    return pd.DataFrame(rows)


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


def over_points(ratios: pd.DataFrame) -> Ratio:
    """Return the median over the points of a ``ratio_table``, with an interval that counts points, not pairs.

    For what differs from point to point and not from pair to pair, as the place on a disk does.
    """
    return paired_ratio(ratios.time_ratio, [1.0] * len(ratios))


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


def _pairs(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} times are not in pairs")
    if len(first) < 2:
        raise ValueError(f"{len(first)} pairs; an interval takes two or more")
    return np.column_stack([first, second]).astype(float)


def _median_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the bootstrap interval of a median, which it never leaves out by rounding."""
    median = float(np.median(values))
    if np.ptp(values) == 0:
        return median, median
    interval = bootstrap(
        (values,),
        np.median,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return min(float(interval.low), median), max(float(interval.high), median)


def _ratio_of_medians(numerator: np.ndarray, denominator: np.ndarray, axis: int) -> np.ndarray:
    return np.median(numerator, axis=axis) / np.median(denominator, axis=axis)
