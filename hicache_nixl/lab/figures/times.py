"""Figures of times: throughput, latency, ratios of two arms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from .look import INK, LOOK, STYLES, arms, name


@mpl.rc_context(LOOK)
def pairs_and_ratios(
    times: pd.DataFrame, ratios: pd.DataFrame, factor: str, labels: Sequence[str], operation: str, title: str
) -> Figure:
    """Draw every pair as a line, before to after, and beside it the ratio with its interval.

    Parameters
    ----------
    times : pandas.DataFrame
        From ``compare``.
    ratios : pandas.DataFrame
        From ``ratio_table`` over ``operation`` and ``factor``.
    factor : str
        The column that the cells differ in.
    labels : sequence of str
        A label per value of the factor, in order of appearance.
    operation : str
        ``"set"`` or ``"get"``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), gridspec_kw={"width_ratios": [2, 1]})
    chosen = times[times.operation == operation]
    for position, (_, group) in enumerate(chosen.groupby(factor, sort=False)):
        wide = (group.bytes / group.seconds / 2**20).groupby([group.pair, group.arm]).first().unstack()
        for pair in wide.itertuples():
            left.plot(
                [position - 0.22, position + 0.22],
                [pair.leaky, pair.try_finally],
                color="0.75",
                linewidth=0.8,
                zorder=1,
            )
        for arm, x, marker in (("leaky", position - 0.22, "o"), ("try_finally", position + 0.22, "s")):
            left.plot(
                [x] * len(wide),
                wide[arm],
                marker,
                color=STYLES[arm][0],
                markersize=3.5,
                markerfacecolor="none",
            )
            left.plot([x - 0.1, x + 0.1], [wide[arm].median()] * 2, color=STYLES[arm][0], linewidth=2)
    for arm, word in (("leaky", "before"), ("try_finally", "after")):
        left.plot([], [], color=STYLES[arm][0], linewidth=2, label=f"{word}, median")
    left.legend(loc="best", fontsize="small")
    left.set_yscale("log")
    left.set_xticks(range(len(labels)), labels)
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set(ylabel="MiB/s", xlabel=factor.replace("_", " "))
    _ratio_panel(right, ratios[ratios.operation == operation], labels)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@mpl.rc_context(LOOK)
def over_calls(times: pd.DataFrame, title: str) -> Figure:
    """Draw the throughput of sets and gets over a steady load, before and after.

    Parameters
    ----------
    times : pandas.DataFrame
        From ``compare``, one cell.
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
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@mpl.rc_context(LOOK)
def latency(times: pd.DataFrame, title: str) -> Figure:
    """Draw the distribution of call times, before and after, with p50 and p99."""
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
    for axes, operation in zip(panels, ("set", "get"), strict=True):
        for arm in arms(times):
            colour, line = STYLES[arm]
            milliseconds = times[(times.operation == operation) & (times.arm == arm)].seconds * 1e3
            axes.ecdf(milliseconds, color=colour, linestyle=line, label=name(arm))
            for quantile in (0.5, 0.99):
                axes.plot(np.quantile(milliseconds, quantile), quantile, "o", color=colour, markersize=4)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.tick_params(axis="x", which="minor", labelsize="x-small")
        axes.set(title=operation, xlabel="milliseconds per call")
        for quantile in (0.5, 0.99):
            axes.axhline(quantile, color="0.85", linewidth=0.8, zorder=0)
    panels[0].set_yticks([0, 0.5, 0.99], ["0", "p50", "p99"])
    _legend_below(figure, panels[0])
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@mpl.rc_context(LOOK)
def benchmarks(ratios: pd.DataFrame, arms: tuple[str, str], title: str) -> Figure:
    """Draw the ratio of times with its interval for every point of a benchmark.

    Parameters
    ----------
    ratios : pandas.DataFrame
        From ``ratio_table`` over ``operation``, ``direct``, ``queue`` and ``page_bytes``.
    arms : tuple
        The arm in the denominator, the arm in the numerator.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, sharex=True)
    for axes, operation in zip(panels, ("set", "get"), strict=True):
        chosen = ratios[ratios.operation == operation]
        labels = [
            f"{'O_DIRECT' if row.direct else 'page cache'}, {row.queue}, {row.page_bytes // 1024} KiB"
            for row in chosen.itertuples()
        ]
        _ratio_panel(axes, chosen, labels)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(y=0.05)
        axes.set(
            title=operation, xlabel=f"time of {arms[1]} / time of {arms[0]}\n(median of pairs, 95 % interval)"
        )
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")


def _ratio_panel(axes: Axes, ratios: pd.DataFrame, labels: Sequence[str]) -> None:
    rows = np.arange(len(ratios))[::-1]
    errors: Any = [ratios.time_ratio - ratios.low, ratios.high - ratios.time_ratio]
    axes.axvline(1, color="0.6", linewidth=1)
    axes.errorbar(
        ratios.time_ratio, rows, xerr=errors, fmt="D", color=INK, markersize=4, capsize=3, linewidth=1.2
    )
    axes.set_yticks(rows, labels)
    axes.set(xlabel="time after / before\n(median of pairs, 95 % interval)")
    axes.margins(x=0.15, y=0.15)
