"""Draw the tables of two runs in one figure, chosen by the columns of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..figures import counts_of_two, intervals_of_two, ratios_of_two
from ..runs.claims import NO_SLOWER
from ..runs.show import is_number
from .joining import IDENTITY, row_keys, time_ratios

COUNTS = {  # columns of counts, and the column that each is drawn over
    "open_fds": "call",
    "left": "keys",
}


@dataclass(frozen=True)
class Overlay:
    """A figure of two runs, with its title and alt text."""

    figure: Figure
    title: str
    alt: str


def overlay(a: pd.DataFrame, b: pd.DataFrame, column: str, runs: Sequence[str]) -> Overlay | None:
    """Draw the same table of two runs in one figure; None when no figure fits its columns.

    Parameters
    ----------
    column : str
        The column to draw, if the tables have it; otherwise one of ``COUNTS``.
    """
    shared = set(a.columns) & set(b.columns)
    for value in ("time_ratio", "per_call"):
        if {value, "low", "high"} <= shared:
            return _intervals(a, b, value, runs)
    if {"step", "most_fds"} <= shared:
        exact = {"low": "most_fds", "high": "most_fds"}
        first, second = (
            table.assign(**{bound: table[of] for bound, of in exact.items()}) for table in (a, b)
        )
        return _intervals(first, second, "most_fds", runs)
    if "pair" in shared:
        return _times(a, b, runs)
    for counted in (column, *COUNTS):
        over = COUNTS.get(counted, "call")
        if {counted, over} <= shared:
            return _counts(a, b, over, counted, runs)
    return None


def _intervals(a: pd.DataFrame, b: pd.DataFrame, value: str, runs: Sequence[str]) -> Overlay | None:
    keys = row_keys(a, b)
    both = a.merge(b, on=keys, suffixes=("_a", "_b")) if keys else a[:0]
    if both.empty:
        return None
    bounds = [value, "low", "high"]
    kept = [name for name in ("unit",) if name in keys]
    first, second = (
        both[kept + [f"{name}_{run}" for name in bounds]].set_axis(kept + bounds, axis=1)
        for run in ("a", "b")
    )
    apart = int(((first.low > second.high) | (second.low > first.high)).sum())
    exact = bool((first.low == first.high).all() and (second.low == second.high).all())
    title = f"The intervals of the two runs do not overlap at {apart} of {len(both)} points"
    if not apart:
        title = f"The intervals of the two runs overlap at all {len(both)} points"
    if exact:
        title = f"{value.replace('_', ' ')}: different at {apart} of {len(both)} points"
    alt = f"Estimates of {runs[0]} and {runs[1]} with their intervals, {len(both)} points."
    labels = _labels(both, [name for name in keys if name != "unit"])
    return Overlay(intervals_of_two(first, second, labels, value, runs, title), title, alt)


def _times(a: pd.DataFrame, b: pd.DataFrame, runs: Sequence[str]) -> Overlay | None:
    ratios = time_ratios(a, b)
    if ratios is None:
        return None
    slower, faster = int((ratios.low > NO_SLOWER).sum()), int((ratios.high < 1).sum())
    points = f"{len(ratios)} points (margin {NO_SLOWER:g})"
    title = f"{runs[1]} was slower than {runs[0]} at {slower} of {points}, and faster at {faster}"
    alt = f"Ratio of the times of {runs[1]} to those of {runs[0]} with its interval, {len(ratios)} points."
    keys = [name for name in IDENTITY if name in ratios]
    return Overlay(ratios_of_two(ratios, _labels(ratios, keys), runs, title), title, alt)


def _counts(a: pd.DataFrame, b: pd.DataFrame, over: str, column: str, runs: Sequence[str]) -> Overlay | None:
    by = next((name for name in ("connector", "kind") if name in a and name in b), "")
    keys = row_keys(a, b)
    if not keys:
        return None
    both = a.merge(b, on=keys, suffixes=("_a", "_b"))
    differing = int((both[f"{column}_a"] != both[f"{column}_b"]).sum())
    what = column.replace("_", " ")
    title = f"{what}: the same in all {len(both)} rows that both runs have"
    if differing:
        title = f"{what}: different in {differing} of {len(both)} rows that both runs have"
    alt = f"{what} over {over}, {runs[0]} as a broad pale line and {runs[1]} as a thin dark one over it."
    return Overlay(counts_of_two(a, b, over, column, runs, title, by), title, alt)


def _labels(table: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Label rows by the values that differ between them."""
    telling = [name for name in keys if table[name].nunique() > 1] or list(keys)[:1]
    rows = table[telling].itertuples(index=False)
    return [", ".join(_label(*part) for part in zip(telling, row, strict=True)) for row in rows]


def _label(name: str, value: object) -> str:
    """Describe a value so that it can be read without its column: ``keys 16``, ``not direct``, ``libaio``."""
    if isinstance(value, bool | np.bool_):
        return name if value else f"not {name}"
    return f"{name} {value}" if is_number(value) else str(value)
