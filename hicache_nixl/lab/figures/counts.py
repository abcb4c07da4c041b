"""The figures: one question each, its answer as the title, lines labelled directly."""

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

_OKABE_ITO = mpl.color_sequences["okabe_ito"]
BEFORE, AFTER, INK = _OKABE_ITO[6], _OKABE_ITO[5], "#333333"
STYLES = {"leaky": (BEFORE, "-"), "try_finally": (AFTER, "--")}
NAMES = {"leaky": "before (leaky)", "try_finally": "after (try_finally)"}
LOOK = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "figure.titlesize": "medium",
    "figure.titleweight": "bold",
    "font.size": 9,
    "legend.frameon": False,
    "savefig.facecolor": "white",
}


@mpl.rc_context(LOOK)
def growth(table: pd.DataFrame, recorded: pd.DataFrame, baseline: int, title: str) -> Figure:
    """Draw open descriptors over the calls of one replay, with the PR's points as rings.

    Parameters
    ----------
    table : pandas.DataFrame
        A replay.
    recorded : pandas.DataFrame
        ``call`` and ``open_fds`` of the points of the PR's log.
    baseline : int
        Descriptors before the first call, padding included.
    """
    figure, axes = plt.subplots(figsize=(7, 3.6))
    _steps(axes, table, baseline, "leaky")
    _rings(axes, recorded)
    _label_padding(axes, baseline, len(table))
    axes.set(
        title=title, xlabel="call", ylabel="open descriptors", xlim=(0, len(table) + 1.5), ylim=(0, None)
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
    _limit(above, limit)
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
        _limit(axes, limit)
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
    tables: dict[str, pd.DataFrame], column: str, ylabel: str, baseline: int, title: str
) -> Figure:
    """Draw one column of several replays over their calls in one panel."""
    figure, axes = plt.subplots(figsize=(7, 3.4))
    for (arm, table), above in zip(tables.items(), (True, False), strict=True):
        colour, line = STYLES[arm]
        values = [baseline, *table[column]]
        _step(axes, values, color=colour, linestyle=line)
        middle = len(values) * 3 // 5
        axes.annotate(
            NAMES[arm],
            (middle, values[middle]),
            xytext=(-10, 8) if above else (10, -10) if values[-1] > baseline else (10, 5),
            textcoords="offset points",
            color=colour,
            ha="right" if above else "left",
        )
    axes.set(title=title, xlabel="call", ylabel=ylabel, ylim=(0, None))
    axes.margins(x=0.02, y=0.15)
    return figure


@mpl.rc_context(LOOK)
def ways_out(table: pd.DataFrame, title: str) -> Figure:
    """Draw the descriptors that each way out of a transfer leaves, before and after.

    Parameters
    ----------
    table : pandas.DataFrame
        ``way out`` and a column of descriptors per lifetime.
    """
    figure, axes = plt.subplots(figsize=(7, 3.8))
    rows = np.arange(len(table))[::-1]
    for arm, marker, offset in (("leaky", "o", 0.12), ("try_finally", "s", -0.12)):
        colour, _ = STYLES[arm]
        axes.hlines(rows + offset, 0, table[arm], color=colour, linewidth=1)
        axes.plot(table[arm], rows + offset, marker, color=colour, label=NAMES[arm], markersize=5)
    axes.set_yticks(rows, table["way out"])
    axes.set(title=title, xlabel="descriptors left open by the call")
    axes.margins(x=0.04)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=2)
    return figure


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
        for arm in ("leaky", "try_finally"):
            colour, line = STYLES[arm]
            chosen = times[(times.operation == operation) & (times.arm == arm)]
            speed = chosen.bytes / chosen.seconds / 2**20
            axes.plot(chosen.pair + 1, speed, line, color=colour, marker="o", markersize=3, label=NAMES[arm])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(title=operation, xlabel="pair of calls", ylabel="MiB/s", ylim=(0, None))
    panels[1].legend(loc="lower right", fontsize="small")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@mpl.rc_context(LOOK)
def latency(times: pd.DataFrame, title: str) -> Figure:
    """Draw the distribution of call times, before and after, with p50 and p99."""
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
    for axes, operation in zip(panels, ("set", "get"), strict=True):
        for arm in ("leaky", "try_finally"):
            colour, line = STYLES[arm]
            milliseconds = times[(times.operation == operation) & (times.arm == arm)].seconds * 1e3
            axes.ecdf(milliseconds, color=colour, linestyle=line, label=NAMES[arm])
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
    panels[1].legend(loc="center right", fontsize="small")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _steps(axes: Axes, table: pd.DataFrame, baseline: int, arm: str) -> None:
    _step(axes, [baseline, *table.open_fds], color=STYLES[arm][0], linewidth=1.6)


def _step(axes: Axes, values: Sequence[float], **look: Any) -> None:
    """Draw a count that holds from each call to the next, the last one for a while too."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.step([*range(len(values)), len(values) - 0.4], [*values, values[-1]], where="post", **look)


def _rings(axes: Axes, recorded: pd.DataFrame) -> None:
    axes.plot(
        recorded.call,
        recorded.open_fds,
        "o",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor=INK,
        zorder=3,
    )
    for row in recorded.itertuples():
        near_the_axis = row.call < 5
        axes.annotate(
            f"PR: {row.open_fds}",
            (row.call, row.open_fds),
            xytext=(2, 9) if near_the_axis else (-9, 5),
            textcoords="offset points",
            ha="left" if near_the_axis else "right",
            color=INK,
        )


def _limit(axes: Axes, limit: int) -> None:
    axes.axhline(limit, color=INK, linestyle="--", linewidth=1)
    axes.annotate(
        f"RLIMIT_NOFILE = {limit}",
        (0, limit),
        xytext=(4, 4),
        textcoords="offset points",
        color=INK,
        fontsize="small",
    )


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
