"""Figures of counts over calls: descriptors, registrations, memory."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from .look import AFTER, BEFORE, INK, LOOK, NAMES, STYLES, limit_line, name, rings, step


@mpl.rc_context(LOOK)
def growth(
    table: pd.DataFrame,
    recorded: pd.DataFrame,
    baseline: int,
    title: str,
    peers: Mapping[str, pd.DataFrame] = MappingProxyType({}),
) -> Figure:
    """Draw open descriptors over the calls of one replay, with the PR's points as rings.

    Parameters
    ----------
    table : pandas.DataFrame
        A replay.
    recorded : pandas.DataFrame
        ``call`` and ``open_fds`` of the points of the PR's log.
    baseline : int
        Descriptors before the first call, padding included.
    peers : mapping
        Replays of released connectors, drawn as dots.
    """
    figure, axes = plt.subplots(figsize=(7, 3.6))
    _steps(axes, table, baseline, "leaky")
    _rings(axes, recorded)
    _dots(axes, peers, "open_fds")
    _label_padding(axes, baseline, len(table))
    axes.set(
        title=title, xlabel="call", ylabel="open descriptors", xlim=(0, len(table) + 1.5), ylim=(0, None)
    )
    return figure


@mpl.rc_context(LOOK)
def steps(table: pd.DataFrame, baseline: int, limit: int, connector: str, title: str) -> Figure:
    """Draw open descriptors over the calls of one replay, below its limit.

    The axis always reaches to the limit, so that pictures of several replays can be compared.
    """
    figure, axes = plt.subplots(figsize=(7, 3.2))
    _steps(axes, table, baseline, connector)
    limit_line(axes, limit)
    _cross(axes, table)
    axes.set(
        title=title,
        xlabel="call",
        ylabel="open descriptors",
        xlim=(0, len(table) + 1),
        ylim=(0, limit * 1.12),
    )
    return figure


@mpl.rc_context(LOOK)
def law(table: pd.DataFrame, title: str) -> Figure:
    """Draw the descriptors that one call leaves over its number of keys.

    Parameters
    ----------
    table : pandas.DataFrame
        ``keys``, ``left`` (descriptors that the call left), ``per_key`` and ``kind`` of page.
    """
    figure, axes = plt.subplots(figsize=(6, 3.8))
    looks = {2: (BEFORE, "o", "-"), 1: (AFTER, "s", "--")}
    for per_key, group in table.groupby("per_key", sort=False):
        colour, marker, line = looks[per_key]
        most = group.groupby("keys").left.max()
        axes.plot(most.index, most, line, color=colour, linewidth=1.2)
        axes.plot(group["keys"], group.left, marker, color=colour, markersize=4, markerfacecolor="none")
        kinds = "\n".join(group.kind.unique())
        corner = (0.03, 0.97, "left", "top") if per_key == 2 else (0.98, 0.04, "right", "bottom")
        axes.text(
            *corner[:2],
            f"+{per_key} per key:\n{kinds}",
            transform=axes.transAxes,
            ha=corner[2],
            va=corner[3],
            color=colour,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set(title=title, xlabel="keys in the call", ylabel="descriptors left open by the call")
    return figure


@mpl.rc_context(LOOK)
def end(table: pd.DataFrame, baseline: int, limit: int, title: str) -> Figure:
    """Draw one replay into its limit: descriptors above, pages that arrive below."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 4.4), sharex=True, gridspec_kw={"height_ratios": [2, 1]}
    )
    _steps(above, table, baseline, "leaky")
    limit_line(above, limit)
    _cross(above, table)
    above.set(title=title, ylabel="open descriptors", ylim=(0, limit * 1.15))
    share = table.pages_ok / table["keys"]
    for operation, marker, colour in (("set", "o", BEFORE), ("get", "s", AFTER)):
        some = table.operation == operation
        below.plot(
            table.call[some],
            share[some],
            marker,
            color=colour,
            markersize=4,
            markerfacecolor="none",
            label=operation,
        )
    below.set(xlabel="call", ylabel="pages right", ylim=(-0.1, 1.1), xlim=(0, len(table) + 1.5))
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    below.legend(loc="center right", ncols=2)
    return figure


@mpl.rc_context(LOOK)
def hero(
    before: pd.DataFrame, after: pd.DataFrame, recorded: pd.DataFrame, baseline: int, limit: int, title: str
) -> Figure:
    """Draw the replay before and after the fix side by side, on one linear scale."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.9), sharey=True)
    for axes, table, arm in zip(panels, (before, after), ("leaky", "try_finally"), strict=True):
        _steps(axes, table, baseline, arm)
        limit_line(axes, limit)
        axes.set(title=NAMES[arm], xlabel="call", xlim=(0, len(table) + 1.5), ylim=(0, limit * 1.12))
    _rings(panels[0], recorded)
    _cross(panels[0], before)
    panels[0].set_ylabel("open descriptors")
    on_the_slope = before[before.call == int(recorded.call.max()) - 4].iloc[0]
    panels[0].annotate(
        "+2 fds per key",
        (on_the_slope.call + 0.5, on_the_slope.open_fds),
        xytext=(14, -18),
        textcoords="offset points",
        color=BEFORE,
        arrowprops={"arrowstyle": "-", "color": BEFORE, "linewidth": 0.8},
    )
    _label_padding(panels[1], baseline, len(after))
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@mpl.rc_context(LOOK)
def two_counts(
    tables: Mapping[str, pd.DataFrame],
    column: str,
    ylabel: str,
    baseline: int,
    title: str,
    peers: Mapping[str, pd.DataFrame] = MappingProxyType({}),
) -> Figure:
    """Draw one column of two replays over their calls in one panel, and released connectors as dots."""
    figure, axes = plt.subplots(figsize=(7, 3.4))
    for (arm, table), above in zip(tables.items(), (True, False), strict=True):
        colour, line = STYLES[arm]
        values = [baseline, *table[column]]
        step(axes, values, color=colour, linestyle=line)
        middle = len(values) * 3 // 5
        axes.annotate(
            NAMES[arm],
            (middle, values[middle]),
            xytext=(-10, 8) if above else (10, -10) if values[-1] > baseline else (10, 5),
            textcoords="offset points",
            color=colour,
            ha="right" if above else "left",
        )
    _dots(axes, peers, column)
    axes.set(title=title, xlabel="call", ylabel=ylabel, ylim=(0, None))
    axes.margins(x=0.02, y=0.15)
    return figure


@mpl.rc_context(LOOK)
def faults(summaries: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Draw the most descriptors that a fault in each step leaves, by lifetime.

    Parameters
    ----------
    summaries : mapping
        From ``fault_summary``, by lifetime.
    """
    figure, axes = plt.subplots(figsize=(7, 5))
    for position, (arm, summary) in enumerate(summaries.items()):
        colour, _ = STYLES[arm]
        rows = np.arange(len(summary))[::-1] + 0.12 - 0.24 * position
        axes.hlines(rows, 0, summary.most_fds, color=colour, linewidth=1)
        axes.plot(summary.most_fds, rows, "os^"[position], color=colour, label=name(arm), markersize=5)
    labels = [f"{row.step}: {row.kind}" for row in summary.itertuples()]
    axes.set_yticks(np.arange(len(summary))[::-1], labels)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=title, xlabel="descriptors left open by the call, at most")
    axes.margins(x=0.04)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.22), ncols=3)
    return figure


@mpl.rc_context(LOOK)
def second_leak(tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Draw registrations, the time of a get and resident memory over the calls, one panel each.

    Parameters
    ----------
    tables : mapping
        Replays by connector.  Times are drawn as a running median of nine gets.
    """
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.9))
    for connector, table in tables.items():
        colour, line = STYLES[connector]
        gets = table[table.operation == "get"]
        times = gets.seconds.rolling(9, center=True, min_periods=1).median() * 1e3
        memory = (table.rss_bytes - table.rss_bytes.iloc[0]) / 2**20
        look = {"color": colour, "linestyle": line, "linewidth": 1.6}
        panels[0].plot(table.call, table.registrations, label=name(connector), **look)
        panels[1].plot(gets.call, times, **look)
        panels[2].plot(table.call, memory, **look)
    for axes, what in zip(
        panels, ("live registrations", "ms per get", "MiB since the first call"), strict=True
    ):
        axes.set(title=what, xlabel="call")
        axes.set_ylim(min(0, axes.get_ylim()[0]), None)
    figure.legend(loc="outside lower center", ncols=len(tables))
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _steps(axes: Axes, table: pd.DataFrame, baseline: int, arm: str) -> None:
    step(axes, [baseline, *table.open_fds], color=STYLES[arm][0], linewidth=1.6)


def _dots(axes: Axes, peers: Mapping[str, pd.DataFrame], column: str) -> None:
    """Draw released connectors over the steps of ours, with a line that says so."""
    for table in peers.values():
        axes.plot(table.call + 0.3, table[column], ".", color=INK, markersize=4, zorder=4)
    if peers:
        names = " and ".join(name(connector) for connector in peers)
        told = f"dots: {names}, as released"
        axes.text(0.02, 0.97, told, transform=axes.transAxes, va="top", color=INK, fontsize="small")


def _rings(axes: Axes, recorded: pd.DataFrame) -> None:
    # near the axis there is no room at the left
    shifts = [(2, 9, "left") if call < 5 else (-9, 5, "right") for call in recorded.call]
    rings(axes, recorded.call, recorded.open_fds, shifts)


def _cross(axes: Axes, table: pd.DataFrame) -> None:
    failed = table[table.errno == 24]
    if len(failed):
        first = failed.iloc[0]
        axes.plot(first.call, first.open_fds, "x", color=INK, markersize=9, markeredgewidth=2, zorder=4)
        axes.annotate(
            f"EMFILE, call {first.call}",
            (first.call, first.open_fds),
            xytext=(12, -64),
            textcoords="offset points",
            color=INK,
            ha="right",
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6, "shrinkB": 6},
        )


def _label_padding(axes: Axes, baseline: int, calls: int) -> None:
    axes.annotate(
        f"{baseline} before the first call (padded, as in the PR's server)",
        (calls, baseline),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color="0.45",
        fontsize="small",
    )
