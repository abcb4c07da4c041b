"""Figures of two runs in one: the first as a broad pale line, the second as a thin dark one over it."""

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

from .look import AFTER, BEFORE, LOOK, name

FIRST = {"color": BEFORE, "alpha": 0.45, "linewidth": 4, "solid_capstyle": "butt"}
ACROSS = 3  # panels in a row
SECOND = {"color": AFTER, "linewidth": 1.3}


@mpl.rc_context(LOOK)
def counts_of_two(
    a: pd.DataFrame, b: pd.DataFrame, x: str, column: str, runs: Sequence[str], title: str, by: str = ""
) -> Figure:
    """Draw a count of two runs over the same axis, a panel per value of ``by``.

    Parameters
    ----------
    x, column : str
        What is drawn over what, such as ``"call"`` and ``"open_fds"``; over calls as steps.
    runs : sequence of str
        The names of both runs, for the legend.
    by : str
        The column that panels differ in, such as ``"connector"``; one panel when left out.
    """
    groups = list(dict.fromkeys([*a[by], *b[by]])) if by else [""]
    columns = 2 if len(groups) == 4 else min(len(groups), ACROSS)
    rows = -(-len(groups) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(3.6 + 1.8 * columns, 0.9 + 2.5 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes, group in zip(panels.flat, groups, strict=False):
        for table, look, run in ((a, FIRST, runs[0]), (b, SECOND, runs[1])):
            some = table[table[by] == group] if by else table
            axes.plot(
                some[x], some[column], drawstyle="steps-post" if x == "call" else "default", label=run, **look
            )
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set(ylim=(0, None), title=name(str(group)))
    for axes in panels.flat[len(groups) :]:
        axes.remove()
    for axes in panels[-1]:
        axes.set_xlabel(x)
    for axes in panels[:, 0]:
        axes.set_ylabel(column.replace("_", " "))
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@mpl.rc_context(LOOK)
def intervals_of_two(
    a: pd.DataFrame, b: pd.DataFrame, labels: Sequence[str], value: str, runs: Sequence[str], title: str
) -> Figure:
    """Draw estimates of two runs with their intervals, row by row.

    Parameters
    ----------
    a, b : pandas.DataFrame
        Rows in the same order, with columns ``value``, ``low`` and ``high``; with ``unit`` there is a panel for each.
    labels : sequence of str
        What each row is.
    """
    units = a.unit if "unit" in a else pd.Series(value.replace("_", " "), a.index)
    rows_of = {unit: np.flatnonzero(units == unit) for unit in units.unique()}
    figure, panels = plt.subplots(
        len(rows_of),
        figsize=(8, 0.8 + 0.7 * len(rows_of) + 0.3 * len(labels)),
        squeeze=False,
        gridspec_kw={"height_ratios": [len(rows) + 1 for rows in rows_of.values()]},
    )
    for axes, (unit, rows) in zip(panels[:, 0], rows_of.items(), strict=True):
        _two_intervals(axes, a.iloc[rows], b.iloc[rows], value, runs)
        axes.axvline(1 if value == "time_ratio" else 0, color="0.6", linewidth=1, zorder=0)
        axes.set_yticks(np.arange(len(rows))[::-1], [labels[int(row)] for row in rows])
        axes.set_xlabel(unit)
        if value == "time_ratio":
            _ratio_scale(axes)
        axes.set_ylim(-0.6, len(rows) - 0.4)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _two_intervals(axes: Axes, a: pd.DataFrame, b: pd.DataFrame, value: str, runs: Sequence[str]) -> None:
    rows = np.arange(len(a))[::-1]
    for table, shift, marker, colour, run in (
        (a, 0.14, "o", BEFORE, runs[0]),
        (b, -0.14, "D", AFTER, runs[1]),
    ):
        errors = [table[value] - table.low, table.high - table[value]]
        look: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 4, "capsize": 2}
        axes.errorbar(table[value], rows + shift, xerr=errors, label=run, **look)


@mpl.rc_context(LOOK)
def ratios_of_two(ratios: pd.DataFrame, labels: Sequence[str], runs: Sequence[str], title: str) -> Figure:
    """Draw the ratio of the times of two runs at every point, with its interval.

    Parameters
    ----------
    ratios : pandas.DataFrame
        ``time_ratio`` (second over first), ``low`` and ``high``.
    """
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.24 * len(labels)))
    rows = np.arange(len(labels))[::-1]
    errors = [ratios.time_ratio - ratios.low, ratios.high - ratios.time_ratio]
    axes.axvline(1, color="0.6", linewidth=1)
    axes.errorbar(ratios.time_ratio, rows, xerr=errors, fmt="D", color=AFTER, markersize=4, capsize=2)
    axes.set_yticks(rows, labels)
    axes.set_xlabel(f"time of {runs[1]} / time of {runs[0]} (95 % interval from the spread within each run)")
    figure.suptitle(title, x=0.01, ha="left")
    axes.margins(y=0.04)
    _ratio_scale(axes)
    return figure


def _ratio_scale(axes: Axes) -> None:
    """Scale a ratio so that twice and half are equally far from 1, with few plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
