"""Which figure shows two tables of one name in one: chosen by their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..figures import counts_of_two, intervals_of_two, ratios_of_two
from .joining import IDENTITY, time_ratios, told_apart_by
from .pages import is_number

COUNTS = {  # a table's counts: what they are drawn over
    "open_fds": "call",
    "left": "keys",
}


@dataclass(frozen=True)
class Overlay:
    """A figure of two runs, with what it says and what it shows."""

    figure: Figure
    title: str
    alt: str


def overlay(a: pd.DataFrame, b: pd.DataFrame, column: str, runs: Sequence[str]) -> Overlay | None:
    """Draw two tables of one name in one figure; None when their columns fit none.

    Parameters
    ----------
    column : str
        What the figure of a single run is named after; a column of that name is drawn, else what is known.
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
    keys = told_apart_by(a, b)
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
    what = f"{value.replace('_', ' ')}: the counts" if exact else "The intervals"
    title = f"{what} of the two runs lie apart at {apart} of {len(both)} points"
    alt = f"Estimates of {runs[0]} and {runs[1]} with their intervals, {len(both)} points."
    labels = _labels(both, [name for name in keys if name != "unit"])
    return Overlay(intervals_of_two(first, second, labels, value, runs, title), title, alt)


def _times(a: pd.DataFrame, b: pd.DataFrame, runs: Sequence[str]) -> Overlay | None:
    ratios = time_ratios(a, b)
    if ratios is None:
        return None
    slower, faster = int((ratios.low > 1).sum()), int((ratios.high < 1).sum())
    title = f"{runs[1]} / {runs[0]}: above 1 at {slower} of {len(ratios)} points, below at {faster}, by the spread within the runs"
    alt = f"Ratio of the times of {runs[1]} to those of {runs[0]} with its interval, {len(ratios)} points."
    keys = [name for name in IDENTITY if name in ratios]
    return Overlay(ratios_of_two(ratios, _labels(ratios, keys), runs, title), title, alt)


def _counts(a: pd.DataFrame, b: pd.DataFrame, over: str, column: str, runs: Sequence[str]) -> Overlay | None:
    by = next((name for name in ("connector", "kind") if name in a and name in b), "")
    keys = told_apart_by(a, b)
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
    """Name rows by what differs between them."""
    telling = [name for name in keys if table[name].nunique() > 1] or list(keys)[:1]
    rows = table[telling].itertuples(index=False)
    return [", ".join(_label(*part) for part in zip(telling, row, strict=True)) for row in rows]


def _label(name: str, value: object) -> str:
    """Name a value so that it can be understood without its column: ``keys 16``, ``not direct``, ``libaio``."""
    if isinstance(value, bool | np.bool_):
        return name if value else f"not {name}"
    return f"{name} {value}" if is_number(value) else str(value)
