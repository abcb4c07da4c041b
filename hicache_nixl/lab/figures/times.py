"""Figures of times: throughput, latency, ratios of two arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from ..runs.claims import NO_SLOWER
from ..statistics import FEWEST_FOR_P99, Estimate, median_of, pooled_ratio
from .look import AFTER, INK, LOOK, STYLES, arms, heading, name, plain
from .words import FASTER, SAME, SLOWER, UNKNOWN, Drawn, listed, pace, size_of, speed

FACTORS = {  # in which the points of a comparison differ: one of them, several of them
    "keys": ("keys per call", "numbers of keys"),
    "page_bytes": ("page size", "page sizes"),
    "queue": ("I/O queue", "I/O queues"),
}
TICKS = {  # of an axis of ratios, by how far from 1 it reaches
    1.3: (0.8, 0.9, 1, 1.1, 1.2),
    3: (0.4, 0.6, 0.8, 1, 1.5, 2, 2.5),
    20: (0.1, 0.2, 0.5, 1, 2, 5, 10),
    math.inf: (0.001, 0.01, 0.1, 1, 10, 100, 1000),
}


@mpl.rc_context(LOOK)
def pairs_and_ratios(times: pd.DataFrame, ratios: pd.DataFrame, factor: str, operation: str) -> Drawn:
    """Draw every pair as a line, before to after, and beside it the ratio with its interval.

    Parameters
    ----------
    times : pandas.DataFrame
        From ``compare``.
    ratios : pandas.DataFrame
        From ``ratio_table`` over ``operation`` and ``factor``.
    factor : str
        The column in which the points differ.
    operation : str
        ``"set"`` or ``"get"``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), gridspec_kw={"width_ratios": [2, 1]})
    chosen = times[times.operation == operation]
    for position, (_, group) in enumerate(chosen.groupby(factor, sort=False)):
        wide = (group.bytes / group.seconds / 2**20).groupby([group.pair, group.arm]).first().unstack()
        _pairs(left, wide, position)
    for arm, word in (("leaky", "before"), ("try_finally", "after")):
        left.plot([], [], color=STYLES[arm][0], linewidth=2, label=f"{word}, median")
    left.legend(loc="best", fontsize="small")
    left.set_yscale("log")
    labels = [size_of(value) if factor == "page_bytes" else str(value) for value in chosen[factor].unique()]
    left.set_xticks(range(len(labels)), labels)
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    what, several = FACTORS[factor]
    left.set(ylabel="MiB/s", xlabel=what)
    points = ratios[ratios.operation == operation]
    _ratio_panel(right, points, labels, reach=_reach(points))
    right.set_ylabel(what)
    ratio = pooled_ratio(chosen, [factor], "leaky", "try_finally")
    title = f"Over {len(points)} {several}, a {operation} takes {pace(ratio)}"
    heading(figure, title)
    told = [
        f"{what} {label}: {_interval(row)}" for label, row in zip(labels, points.itertuples(), strict=True)
    ]
    return Drawn(
        figure, f"{title}. Left, MiB/s of every pair; right, time after / before: {'; '.join(told)}."
    )


@mpl.rc_context(LOOK)
def over_calls(times: pd.DataFrame) -> Drawn:
    """Draw the throughput of sets and gets over a steady load, before and after.

    Parameters
    ----------
    times : pandas.DataFrame
        From ``compare``, one setup.
    """
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.2))
    for axes, operation in zip(panels, ("set", "get"), strict=True):
        for arm in arms(times):
            colour, line = STYLES[arm]
            chosen = times[(times.operation == operation) & (times.arm == arm)]
            speed = chosen.bytes / chosen.seconds / 2**20
            axes.plot(chosen.pair + 1, speed, line, color=colour, marker="o", markersize=3, label=name(arm))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(title=operation, xlabel="pair of calls", ylabel="MiB/s", ylim=(0, None))
    _legend_below(figure, panels[0])
    title = f"In a steady load, {_paces(times)}"
    heading(figure, title)
    return Drawn(figure, f"Throughput over {times.pair.nunique()} pairs of calls. {title}.")


@mpl.rc_context(LOOK)
def latency(times: pd.DataFrame) -> Drawn:
    """Draw the distribution of call times, before and after, with the median.

    The second mark is the 99th percentile where there are at least ``FEWEST_FOR_P99`` calls, else the slowest call.
    """
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
    calls = int(times.groupby(["arm", "operation"]).size().min())
    tail, what = (0.99, "p99") if calls >= FEWEST_FOR_P99 else (1.0, f"slowest\nof {calls}")
    for axes, operation in zip(panels, ("set", "get"), strict=True):
        for arm in arms(times):
            colour, line = STYLES[arm]
            milliseconds = times[(times.operation == operation) & (times.arm == arm)].seconds * 1e3
            axes.ecdf(milliseconds, color=colour, linestyle=line, label=name(arm))
            for quantile in (0.5, tail):
                axes.plot(np.quantile(milliseconds, quantile), quantile, "o", color=colour, markersize=4)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(title=operation, xlabel="milliseconds per call")
        for quantile in (0.5, tail):
            axes.axhline(quantile, color="0.85", linewidth=0.8, zorder=0)
    panels[0].set_yticks([0, 0.5, tail], ["0", "median", what])
    _legend_below(figure, panels[0])
    title = "In the median, " + "; ".join(
        f"a {operation} takes {_milliseconds(times, operation, 'leaky')} ms before the fix and "
        f"{_milliseconds(times, operation, 'try_finally')} ms after it"
        for operation in ("set", "get")
    )
    heading(figure, title)
    others = "".join(
        f" {plain(arm)}: set {_milliseconds(times, 'set', arm)} ms, get {_milliseconds(times, 'get', arm)} ms."
        for arm in arms(times)
        if arm not in ("leaky", "try_finally")
    )
    return Drawn(figure, f"Cumulative distributions of call times. {title}.{others}")


@mpl.rc_context(LOOK)
def cost(ratios: pd.DataFrame) -> Drawn:
    """Draw the ratio of times of the fix, for each operation and pair of connectors, with its interval.

    Parameters
    ----------
    ratios : pandas.DataFrame
        From ``pooled_table``; the title is about the first pair.
    """
    figure, axes = plt.subplots(figsize=(7, 1.3 + 0.35 * len(ratios)))
    labels = [f"{row.operation}: {plain(row.after)} / {plain(row.before)}" for row in ratios.itertuples()]
    _ratio_panel(axes, ratios, labels, reach=_reach(ratios))
    axes.axvspan(axes.get_xlim()[0], NO_SLOWER, color=AFTER, alpha=0.08, linewidth=0)
    axes.set_xlabel(f"time after / before, with its 95 % interval\n(shaded: up to {NO_SLOWER:g}, no slower)")
    told = [f"a {row.operation} takes {pace(_interval(row))}" for row in ratios.itertuples()]
    own = [
        text for text, row in zip(told, ratios.itertuples(), strict=True) if row.after == ratios.after.iloc[0]
    ]
    title = "; ".join(own).capitalize()
    heading(figure, title)
    each = "; ".join(
        f"{label}: {_interval(row)}" for label, row in zip(labels, ratios.itertuples(), strict=True)
    )
    return Drawn(figure, f"{title}. Ratios of times: {each}.")


@mpl.rc_context(LOOK)
def benchmarks(times: pd.DataFrame, ratios: pd.DataFrame, pair: tuple[str, str]) -> Drawn:
    """Draw the ratio of times with its interval for every point of a benchmark.

    Parameters
    ----------
    times : pandas.DataFrame
        From ``compare``.
    ratios : pandas.DataFrame
        From ``ratio_table`` over ``operation``, ``direct``, ``queue`` and ``page_bytes``.
    pair : tuple
        The arm in the denominator, the arm in the numerator.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, sharex=True)
    for axes, operation in zip(panels, ("set", "get"), strict=True):
        chosen = ratios[ratios.operation == operation]
        labels = [
            f"{_cache(row.direct)}, {row.queue}, {size_of(row.page_bytes)}" for row in chosen.itertuples()
        ]
        _ratio_panel(axes, chosen, labels, reach=_reach(ratios))
        axes.margins(y=0.05)
        label = f"time with {plain(pair[1])} / time with {plain(pair[0])}\n(median of pairs, 95 % interval)"
        axes.set(title=operation, xlabel=label)
    pooled = {
        (operation, _cache(direct)): pooled_ratio(group, ["queue", "page_bytes"], *pair)
        for (direct, operation), group in times.groupby(["direct", "operation"], sort=False)
    }
    title = _compared(pooled, *map(plain, pair))
    heading(figure, title)
    rule = (
        f"A time ratio is the time with {plain(pair[1])} / the time with {plain(pair[0])}, over all queues and page "
        f"sizes; faster: its whole interval is below 1; no slower: at most {NO_SLOWER:g}; slower: above {NO_SLOWER:g}."
    )
    points = "; ".join(
        f"{row.operation}, {_cache(row.direct)}, {row.queue}, {size_of(row.page_bytes)}: {_interval(row)}"
        for row in ratios.itertuples()
    )
    return Drawn(figure, f"{title}. {rule} Each point: {points}.")


def _cache(direct: bool) -> str:
    return "O_DIRECT" if direct else "page cache"


def _compared(pooled: Mapping[tuple[str, str], Estimate], before: str, after: str) -> str:
    """Say at which operations and on which path the second connector is faster, no slower or slower.

    Parameters
    ----------
    pooled : mapping
        The ratio of times for each operation and cache.

    Examples
    --------
    >>> half, same = Estimate(0.5, 0.4, 0.6, 6), Estimate(1, 0.9, 1.1, 6)
    >>> _compared({("get", "O_DIRECT"): half, ("set", "page cache"): same}, "A", "B")
    'Compared with A, B is faster at gets with O_DIRECT (time ratio 0.500 [0.400, 0.600]); inconclusive: sets through the page cache (time ratio 1.00 [0.90, 1.10])'
    """
    how = {_cache(True): "with O_DIRECT", _cache(False): "through the page cache"}
    groups: dict[str, list[str]] = {}
    for (operation, cache), ratio in pooled.items():
        groups.setdefault(speed(ratio), []).append(f"{operation}s {how[cache]} (time ratio {ratio})")
    told = {verdict: listed(some) for verdict, some in groups.items()}
    clear = [f"{verdict} at {told[verdict]}" for verdict in (FASTER, SAME, SLOWER) if verdict in told]
    if not clear:
        return f"The comparison of {after} with {before} is inconclusive at {told[UNKNOWN]}"
    unclear = f"; inconclusive: {told[UNKNOWN]}" if UNKNOWN in told else ""
    return f"Compared with {before}, {after} is {listed(clear)}{unclear}"


def _pairs(axes: Axes, wide: pd.DataFrame, position: float) -> None:
    places = {"leaky": (position - 0.22, "o"), "try_finally": (position + 0.22, "s")}
    for pair in wide.itertuples():
        xs = [x for x, _ in places.values()]
        axes.plot(xs, [pair.leaky, pair.try_finally], color="0.75", linewidth=0.8, zorder=1)
    for arm, (x, marker) in places.items():
        look: dict[str, Any] = {"color": STYLES[arm][0]}
        axes.plot([x] * len(wide), wide[arm], marker, markersize=3.5, markerfacecolor="none", **look)
        axes.plot([x - 0.1, x + 0.1], [wide[arm].median()] * 2, linewidth=2, **look)


def _paces(times: pd.DataFrame) -> str:
    chosen = {operation: times[times.operation == operation] for operation in ("set", "get")}
    return "; ".join(
        f"a {operation} takes {pace(pooled_ratio(group, [], 'leaky', 'try_finally'))}"
        for operation, group in chosen.items()
    )


def _milliseconds(times: pd.DataFrame, operation: str, arm: str) -> Estimate:
    return median_of(times.seconds[(times.operation == operation) & (times.arm == arm)] * 1e3)


def _interval(row: Any) -> Estimate:
    return Estimate(row.time_ratio, row.low, row.high, row.pairs)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")


def _reach(ratios: pd.DataFrame) -> float:
    """Return how far from 1 the intervals reach, as a factor."""
    return float(max(ratios.high.max(), 1 / ratios.low.min()))


def _ratio_panel(axes: Axes, ratios: pd.DataFrame, labels: Sequence[str], reach: float) -> None:
    rows = np.arange(len(ratios))[::-1]
    errors: Any = [ratios.time_ratio - ratios.low, ratios.high - ratios.time_ratio]
    axes.axvline(1, color="0.6", linewidth=1)
    axes.errorbar(
        ratios.time_ratio, rows, xerr=errors, fmt="D", color=INK, markersize=4, capsize=3, linewidth=1.2
    )
    axes.set_yticks(rows, labels)
    axes.set(xscale="log", xlabel="time after / before\n(median of pairs, 95 % interval)")
    axes.xaxis.set_major_locator(FixedLocator(next(ticks for far, ticks in TICKS.items() if reach < far)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(x=0.15, y=0.15)
