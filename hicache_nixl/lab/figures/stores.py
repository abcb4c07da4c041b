"""Figures of the store of lifetime ``pooled``: where time goes, how it grows, what is evicted, a day of traffic."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, PercentFormatter, StrMethodFormatter

from ..statistics import median_of
from .look import _OKABE_ITO, INK, LOOK, STYLES, arms, heading
from .words import Drawn, course, listed, together

LINEAR = 10  # the axis of counts is linear up to here, and logarithmic from here on
NEAR = 2.5  # a difference of small counts that leaves no room for a label between two lines
DASH = 5  # line widths, of each colour of a line that is shared
COUNTS = {"open_fds": "open descriptors", "registrations": "registrations with NIXL"}
OPERATIONS = ("set", "exists", "get")
WINDOW = 200  # requests of which the hit rate is averaged


@mpl.rc_context(LOOK)
def anatomy(table: pd.DataFrame, page: str) -> Drawn:
    """Draw where the time of a call goes, a panel for each operation, a bar for each lifetime.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``lab.anatomy``.
    page : str
        The size of a page, in words.
    """
    steps = [step for step in table.step.unique() if table[table.step == step].seconds.max() > 0]
    figure, panels = plt.subplots(1, len(OPERATIONS), figsize=(9, 1.6 + 0.4 * table.lifetime.nunique()))
    for axes, operation in zip(panels, OPERATIONS, strict=True):
        chosen = table[table.operation == operation]
        wide = chosen.pivot(index="lifetime", columns="step", values="seconds")[steps] * 1e3
        wide = wide.loc[chosen.lifetime.unique()]
        left = pd.Series(0.0, wide.index)
        for place, step in enumerate(steps):
            axes.barh(
                wide.index,
                wide[step],
                left=left,
                color="0.8" if step == "rest" else _OKABE_ITO[place % 8],
                label=step,
                height=0.6,
            )
            left += wide[step]
        axes.set(title=operation, xlabel="milliseconds per call")
        axes.invert_yaxis()
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small"
    )
    whole = table.groupby(["operation", "lifetime"], sort=False).seconds.sum() * 1e3
    told = [
        f"a {operation} takes {listed([f'{whole[operation][lifetime]:.2g} ms with {lifetime}' for lifetime in whole[operation].index])}"
        for operation in ("set", "get")
    ]
    title = f"Pages of {page}: " + "; ".join(told)
    heading(figure, title)
    largest = table.loc[table.groupby(["operation", "lifetime"]).seconds.idxmax()]
    most = [f"{row.operation} with {row.lifetime}: {row.step}" for row in largest.itertuples()]
    return Drawn(figure, f"{title}. The largest step of each: {'; '.join(most)}.")


@mpl.rc_context(LOOK)
def bounded(times: pd.DataFrame) -> Drawn:
    """Draw what stays open and what stays registered over the calls of several connectors.

    Connectors with the same counts share a line, of dashes in the colour of each, and its label names them all.

    Parameters
    ----------
    times : pandas.DataFrame
        From ``compare``, one setup, with ``call``.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2))
    told = []
    for axes, (column, what) in zip(panels, COUNTS.items(), strict=True):
        counts = times.pivot(index="call", columns="arm", values=column)
        axes.set_yscale("symlog", linthresh=LINEAR, linscale=1.4)
        axes.set(title=what, xlabel="call", ylim=(0, 3 * counts.max(axis=None)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        groups = _same_counts(counts[arms(times)])
        _shared_lines(axes, counts, groups)
        each = [f"{together(group)}: {course(counts[group[0]].tolist())}" for group in groups]
        told.append(f"{what[0].upper()}{what[1:]}: {'; '.join(each)}.")
    last = times[times.call == times.call.max()].set_index("arm")
    pooled, leaky = (
        f"{name} has {last.open_fds[name]} descriptors and {last.registrations[name]} registrations"
        for name in ("pooled", "leaky")
    )
    title = f"After {times.call.max()} calls, {pooled}; {leaky}"
    heading(figure, title)
    axis = f"The axes of counts are linear up to {LINEAR}, and logarithmic above"
    return Drawn(figure, f"{title}. {axis}. {' '.join(told)}")


def _same_counts(counts: pd.DataFrame) -> list[list[str]]:
    """Return the connectors that have the same counts after every call, the group with the lowest last count first."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in counts:
        groups.setdefault(tuple(counts[name]), []).append(name)
    return [groups[values] for values in sorted(groups, key=lambda values: values[::-1])]


def _shared_lines(axes: Axes, counts: pd.DataFrame, groups: Sequence[Sequence[str]]) -> None:
    """Draw a line for each group, lowest first, and write the names at it: above it, or below it where the next is near."""
    ends = [counts[names[0]].iloc[-1] for names in groups]
    for names, end, following in zip(groups, ends, [*ends[1:], np.inf], strict=True):
        values = counts[names[0]]
        colours = list(dict.fromkeys(STYLES[name][0] for name in names))
        for place, colour in enumerate(colours):
            dashes = (place * DASH, (DASH, (len(colours) - 1) * DASH)) if len(colours) > 1 else "-"
            axes.plot(values.index, values, linestyle=dashes, color=colour, linewidth=2.2)
        rises, below = values.iloc[0] < end, following - end < NEAR
        axes.annotate(
            f"{together(names)}: {end:.0f}",
            (values.index[-1 if rises else 0], end),
            xytext=(0, -3 if below else 5),
            textcoords="offset points",
            ha="right" if rises else "left",
            va="top" if below else "bottom",
            color=INK,
            fontsize="small",
        )


@mpl.rc_context(LOOK)
def by_stored(table: pd.DataFrame) -> Drawn:
    """Draw the time of calls over the number of pages stored, medians with intervals.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``lab.growth``.
    """
    figure, axes = plt.subplots(figsize=(7, 3.4))
    first, last = table.stored.min(), table.stored.max()
    told = []
    for place, operation in enumerate(OPERATIONS):
        chosen = table[table.operation == operation].groupby("stored").seconds
        found = {stored: median_of(seconds * 1e3) for stored, seconds in chosen}
        medians = [estimate.median for estimate in found.values()]
        errors = [
            [estimate.median - estimate.low for estimate in found.values()],
            [estimate.high - estimate.median for estimate in found.values()],
        ]
        colour = _OKABE_ITO[(1, 2, 5)[place]]
        axes.errorbar(list(found), medians, errors, color=colour, marker="o", markersize=4, capsize=2)
        axes.annotate(
            operation,
            (last, medians[-1]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
        told.append(f"{operation} {medians[0]:.2g} and {medians[-1]:.2g} ms")
    axes.set_xscale("log")
    axes.set(xlabel="pages stored", ylabel="milliseconds per call of 128 pages", ylim=(0, None))
    title = f"With {first:,} and {last:,} pages stored, a call takes: {', '.join(told)}".replace(
        ",000", " 000"
    )
    heading(figure, title)
    return Drawn(figure, f"{title}. Medians with 95 % intervals.")


@mpl.rc_context(LOOK)
def hit_rates(table: pd.DataFrame) -> Drawn:
    """Draw the hit rate of each policy over the capacity.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``lab.evictions``.
    """
    figure, axes = plt.subplots(figsize=(7, 3.4))
    policies = list(table.policy.unique())
    for place, policy in enumerate(policies):
        chosen = table[table.policy == policy]
        look = (INK, "--") if place == 0 else (_OKABE_ITO[(6, 3)[place - 1]], "-")
        axes.plot(
            chosen.share, chosen.hit_rate, look[1], color=look[0], marker="o", markersize=4, label=policy
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted(table.share.unique()))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(
        xlabel="capacity, as a share of the different pages of the trace", ylabel="pages that were loaded"
    )
    axes.legend(loc="lower right", title="what is evicted", alignment="left")
    lru, fifo, renewed = (table[table.policy == policy] for policy in policies)
    gained = (renewed.hit_rate.to_numpy() - fifo.hit_rate.to_numpy()) / (
        lru.hit_rate.to_numpy() - fifo.hit_rate.to_numpy()
    )
    title = (
        f"Renewing pages in use gains {gained.min():.0%} to {gained.max():.0%} of what evicting single pages would, "
        f"for up to {renewed.rewritten.max():.0%} more pages written"
    )
    heading(figure, title)
    rates = "; ".join(
        f"{policy}: {listed([f'{rate:.0%}' for rate in table[table.policy == policy].hit_rate])}"
        for policy in policies
    )
    return Drawn(figure, f"{title}. Hit rates by capacity, smallest first. {rates}.")


@mpl.rc_context(LOOK)
def traffic(table: pd.DataFrame) -> Drawn:
    """Draw the hit rate and the open descriptors over the requests of a day.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``lab.traffic``.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 4.2), sharex=True)
    sums = table[["loaded", "asked"]].rolling(WINDOW).sum()
    above.plot(table.index + 1, sums.loaded / sums.asked, color=STYLES["scoped"][0])
    above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    above.set(ylabel=f"pages loaded,\n{WINDOW} requests", ylim=(0, 1))
    full = int((table.recycled > 0).idxmax()) if table.recycled.any() else None
    if full is not None:
        above.axvline(full + 1, color=INK, linestyle=":", linewidth=1)
        above.annotate(
            "full from here on", (full + 1, 0.05), xytext=(4, 0), textcoords="offset points", color=INK
        )
    below.plot(table.index + 1, table.open_fds, color=INK)
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    below.set(ylabel="open descriptors", xlabel="request", ylim=(0, None))
    rate = table.loaded.sum() / table.asked.sum()
    title = (
        f"{len(table)} requests: {rate:.0%} of the pages are loaded, {table.recycled.iloc[-1]} segments are recycled, "
        f"and open descriptors are {course(table.open_fds.iloc[len(table) // 2 :].tolist())} in the second half"
    ).replace("are stays", "stay")
    heading(figure, title)
    return Drawn(figure, f"{title}. Over all requests, the count {course(table.open_fds.tolist())}.")
