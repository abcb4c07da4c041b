"""Medians, ratios and slopes of noisy measurements, each with an interval that covers 95 %.

The interval of a median consists of two order statistics of the sample: the k-th smallest and the k-th largest
value, with k from the binomial distribution (the sign test, inverted).  It covers the true median with a
probability of at least 95 % for independent values of any continuous distribution, whatever its shape, and needs
``FEWEST`` values.

How many pairs to measure is decided beforehand, by what they detect.  The probability that a claim with the margin
1.05 fails for a true slowdown, and that it holds for a true ratio of 1, when the logarithm of a ratio has a standard
deviation of 0.1 or 0.2:

=====  ==============  ==============  ==============  ==============  ==================
pairs  1.2, noise 0.1  1.2, noise 0.2  1.3, noise 0.1  1.3, noise 0.2  1 holds, noise 0.1
=====  ==============  ==============  ==============  ==============  ==================
6      0.56            0.17            0.91            0.40            0.11
9      0.81            0.30            0.99            0.62            0.17
12     0.91            0.38            1.00            0.76            0.22
17     0.98            0.57            1.00            0.92            0.35
25     1.00            0.72            1.00            0.98            0.46
=====  ==============  ==============  ==============  ==============  ==================

``PAIRS`` is the number of the full profile: with it a slowdown of 1.3 fails nine times in ten at a noise of 0.2.  The
quick profile takes ``FEWEST`` pairs, which detect a slowdown of 1.5 four times in five at that noise.  A ratio that is
pooled over p points (``pooled_ratio``) has the noise of one point divided by the square root of p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy.stats import binom, norm, theilslopes

CONFIDENCE = 0.95
PAIRS = 17  # of a timed comparison in the full profile
FEWEST = 6  # the range of five values covers their median with a probability of 94 % only
FEWEST_FOR_P99 = 200  # values above the 99th percentile are two of 200, and one or none of fewer


@dataclass(frozen=True)
class Estimate:
    """A measured value with its interval of 95 %.

    Attributes
    ----------
    median, low, high : float
        In the unit of what was measured; ``low`` and ``high`` bound the interval.
    count : int
        The number of values, pairs or calls that it was computed from.

    Examples
    --------
    >>> print(Estimate(1.02, 0.95, 1.1, 8))
    1.02 [0.95, 1.10]
    """

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        values = (self.median, self.low, self.high)
        largest = max(abs(value) for value in values)
        digits = 2 - math.floor(math.log10(largest)) if 0 < largest < math.inf else 0  # three are significant
        median, low, high = (f"{value:.{min(max(digits, 0), 9)}f}" for value in values)
        return f"{median} [{low}, {high}]"


def median_of(values: Sequence[float]) -> Estimate:
    """Return the median of independent values.

    Raises
    ------
    ValueError
        For fewer than ``FEWEST`` values.

    Examples
    --------
    >>> print(median_of([5, 1, 2, 4, 3, 6, 9, 8, 7]))
    5.00 [2.00, 8.00]
    """
    ordered = np.sort(np.asarray(values, float))
    if len(ordered) < FEWEST:
        raise ValueError(f"{len(ordered)} values; an interval needs {FEWEST} or more")
    rank = _rank(len(ordered))
    return Estimate(float(np.median(ordered)), float(ordered[rank]), float(ordered[-1 - rank]), len(ordered))


@cache
def _rank(count: int) -> int:
    """Return how many values of an ordered sample lie outside the interval of its median, at each end."""
    return int(binom.ppf((1 - CONFIDENCE) / 2, count, 0.5)) - 1


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    """Return the median of ``numerator[i] / denominator[i]``, of pairs that ran next to each other.

    Raises
    ------
    ValueError
        For sequences of different lengths, or of fewer than ``FEWEST`` pairs.

    Examples
    --------
    >>> print(paired_ratio([2.0, 4.0, 6.0, 8.0, 10.0, 12.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    2.00 [2.00, 2.00]
    """
    pairs = _pairs(numerator, denominator)
    return median_of(pairs[:, 0] / pairs[:, 1])


def unpaired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    """Return the ratio of two positive samples that did not run next to each other.

    The estimate is the median of the ratios of every value of one to every value of the other (Hodges and
    Lehmann), and the interval that of the rank-sum test (Moses).  It covers 95 % where the two distributions have
    one shape and differ by a factor.

    Examples
    --------
    >>> print(unpaired_ratio([2.0] * 6, [1.0] * 6))
    2.00 [2.00, 2.00]
    """
    first, second = np.asarray(numerator, float), np.asarray(denominator, float)
    count = min(len(first), len(second))
    if count < FEWEST:
        raise ValueError(f"{count} values; an interval needs {FEWEST} or more of both")
    ratios = np.sort(np.divide.outer(first, second).ravel())
    rank = _rank_sum_rank(len(first), len(second))
    return Estimate(float(np.median(ratios)), float(ratios[rank]), float(ratios[-1 - rank]), count)


def slope(table: pd.DataFrame, column: str, over: str = "call") -> Estimate:
    """Return the growth of a column per call: the median over all pairs of calls (Theil and Sen).

    A few slow calls do not move it, as they would a least-squares line.  The interval assumes independent noise; in
    calls of one process the noise may be correlated, and then it covers less than 95 %.

    Parameters
    ----------
    over : str
        The column to use instead of ``call``, such as one of minutes.

    Examples
    --------
    >>> print(slope(pd.DataFrame({"call": range(6), "fds": [6, 8, 10, 12, 14, 16]}), "fds"))
    2.00 [2.00, 2.00]
    """
    if len(table) < FEWEST:
        raise ValueError(f"{len(table)} values; an interval needs {FEWEST} or more")
    found = theilslopes(table[column], table[over], alpha=CONFIDENCE)
    return Estimate(float(found.slope), float(found.low_slope), float(found.high_slope), len(table))


def slope_table(tables: Mapping[str, pd.DataFrame], columns: Mapping[str, float]) -> pd.DataFrame:
    """Return the slopes per call of every connector and column.

    Parameters
    ----------
    tables : mapping
        The replay of each connector.
    columns : mapping
        For each column, the factor that converts it into the unit to be shown, such as ``{"seconds": 1e6}``.
    """
    rows = []
    for connector, table in tables.items():
        for column, factor in columns.items():
            found = slope(table.assign(**{column: table[column] * factor}), column)
            values = {"per_call": found.median, "low": found.low, "high": found.high}
            rows.append({"connector": connector, "column": column, **values, "calls": found.count})
    return pd.DataFrame(rows)


def ratio_table(times: pd.DataFrame, by: Sequence[str], before: str, after: str) -> pd.DataFrame:
    """Compare two arms of ``compare`` point by point.

    Parameters
    ----------
    times : pandas.DataFrame
        Columns ``arm``, ``pair``, ``seconds``, ``bytes`` and those of ``by``.
    by : sequence of str
        The columns that identify a point, such as ``["operation", "page_bytes"]``.
    before, after : str
        The two arms.

    Returns
    -------
    pandas.DataFrame
        For each point, the median milliseconds and MiB/s of both arms, and ``time_ratio`` (after / before) with
        ``low`` and ``high``.
    """
    rows = []
    for point, group in times.groupby(list(by), sort=False):
        wide = group.pivot_table(index="pair", columns="arm", values="seconds")
        ratio = paired_ratio(wide[after], wide[before])
        moved = group["bytes"].iloc[0] / 2**20
        medians = {f"{arm}_ms": wide[arm].median() * 1e3 for arm in (before, after)}
        speeds = {f"{arm}_MiB_s": moved / wide[arm].median() for arm in (before, after)}
        rows.append(
            {
                **dict(zip(by, point, strict=True)),
                **medians,
                **speeds,
                "time_ratio": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "pairs": ratio.count,
            }
        )
    return pd.DataFrame(rows)


def pooled_ratio(times: pd.DataFrame, by: Sequence[str], before: str, after: str) -> Estimate:
    """Return one ratio of two arms of ``compare`` for several points.

    Every pair contributes the geometric mean of its ratios over the points, so that every point has the same
    weight, and the noise of single calls averages out.

    Parameters
    ----------
    times, by, before, after
        As in ``ratio_table``; every point needs the same pairs.

    Examples
    --------
    >>> times = pd.DataFrame(
    ...     [(size, pair, arm, seconds) for pair in range(6) for size, seconds_of in ((1, (2, 1)), (2, (2, 4)))
    ...      for arm, seconds in zip(("old", "new"), seconds_of)],
    ...     columns=["page_bytes", "pair", "arm", "seconds"])
    >>> print(pooled_ratio(times, ["page_bytes"], "old", "new"))
    1.00 [1.00, 1.00]
    """
    logs = np.log(times.pivot_table(index="pair", columns=[*by, "arm"], values="seconds"))
    means = logs.T.groupby(level="arm").mean().T
    return paired_ratio(np.exp(means[after]), np.exp(means[before]))


def pooled_table(times: pd.DataFrame, by: Sequence[str], before: str, after: str) -> pd.DataFrame:
    """Return the pooled ratio of each operation: ``operation``, ``before``, ``after``, ``time_ratio`` with its bounds, ``pairs``."""
    rows = []
    for operation, group in times.groupby("operation", sort=False):
        ratio = pooled_ratio(group, by, before, after)
        bounds = {"time_ratio": ratio.median, "low": ratio.low, "high": ratio.high, "pairs": ratio.count}
        rows.append({"operation": operation, "before": before, "after": after, **bounds})
    return pd.DataFrame(rows)


def against_reference(
    ratios: pd.DataFrame, reference: pd.DataFrame, before: str, after: str
) -> Estimate | None:
    """Compare the ratios of two arms in this run with those in a reference run, over the points that both have.

    At each point the ratio ``after`` / ``before`` of this run is divided by that of the reference run.  The estimate is
    the median over the points: above 1 where ``after`` became slower relative to ``before``, which is a released
    connector that does not change.

    A ratio is only comparable where the two machines differ in the same way at every point.  Where the times of
    ``before`` changed by different factors, such as with a faster disk and an equal CPU, the interval is widened by the
    median deviation of these factors, so that a claim about it is inconclusive.

    Parameters
    ----------
    ratios, reference : pandas.DataFrame
        From ``ratio_table`` with the same columns.
    before, after : str
        The two arms.

    Returns
    -------
    Estimate or None
        None when fewer than ``FEWEST`` points are in both.
    """
    measured = {"time_ratio", "low", "high", "pairs"}
    others = [name for name in ratios if name not in measured and not name.endswith(("_ms", "_MiB_s"))]
    points = [name for name in others if name in reference]
    both = ratios.merge(reference, on=points, suffixes=("", "_reference")) if points else ratios[:0]
    if len(both) < FEWEST:
        return None
    change = median_of(both.time_ratio / both.time_ratio_reference)
    machine = np.log(both[f"{before}_ms"] / both[f"{before}_ms_reference"])
    uneven = float(np.exp((machine - machine.median()).abs().median()))
    return Estimate(change.median, change.low / uneven, change.high * uneven, change.count)


def _rank_sum_rank(first: int, second: int) -> int:
    """Return how many of the ordered ratios lie outside the interval, at each end.

    The normal approximation of the rank sum with its correction for continuity; against the exact distribution it
    covers 95.07 % or more for samples of 6 to 25 values.
    """
    mean, deviation = first * second / 2, math.sqrt(first * second * (first + second + 1) / 12)
    return math.floor(mean - 0.5 - norm.ppf((1 + CONFIDENCE) / 2) * deviation)


def _pairs(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values are not in pairs")
    return np.column_stack([first, second]).astype(float)
