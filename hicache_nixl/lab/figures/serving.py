"""Figures of real SGLang servers: the leak and what it costs, the same prompts without it, the first token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import ColorType

from ..statistics import Estimate, median_of, paired_ratio
from .look import AFTER, BEFORE, INK, LOOK, STYLES, heading, limit_line, plain
from .words import Drawn, course, listed

ORIGINS = {"cold": "computed", "storage": "from storage", "host": "from the host pool"}
MIB = 2**20
NEAR = 0.08  # of the highest value: labels nearer than that would cover each other


def not_run(what: str) -> Drawn:
    """Return an empty figure that says what was left out."""
    figure, axes = plt.subplots(figsize=(6, 1))
    axes.axis("off")
    title = f"Not run: {what}"
    heading(figure, title)
    return Drawn(figure, f"{title}.")


@mpl.rc_context(LOOK)
def served_leak(table: pd.DataFrame, predicted: pd.DataFrame, limit: int) -> Drawn:
    """Draw descriptors, tokens loaded and the first token over the rounds of a server that leaks.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``lab.served``, of one server.
    predicted : pandas.DataFrame
        ``open_fds`` that the law predicts after each step.
    """
    if table.empty:
        return not_run("no server that leaks could be installed")
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.6))
    steps = np.arange(1, len(table) + 1) / 2 + 0.5  # two in a round
    panels[0].step(
        [0.5, *steps], [table.fds_before.iloc[0], *table.open_fds], where="post", color=BEFORE, linewidth=1.8
    )
    panels[0].plot(steps, predicted.open_fds, ".", color=INK, markersize=3.5)
    limit_line(panels[0], limit)
    panels[0].set(title="open descriptors (dots: predicted)", ylim=(0, limit * 1.15))
    again = table[table.step == "prefetch"]
    panels[1].bar(again["round"], again.from_storage, color=AFTER, width=0.8)
    panels[1].set(title="tokens loaded from storage", ylim=(0, again.from_storage.max() * 1.15 or 1))
    cold, warm = (part[part["round"] > 1] for part in (table[table.step == "backup"], again))
    panels[2].plot(cold["round"], cold.first_token * 1e3, "o:", color="0.6", markersize=3, label="new prompt")
    panels[2].plot(
        warm["round"], warm.first_token * 1e3, "o-", color=BEFORE, markersize=4, label="repeated prompt"
    )
    panels[2].set(title="ms to the first token, from round 2 on", ylim=(0, None))
    figure.legend(loc="outside lower right", ncols=2, fontsize="small")
    for axes in panels:
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    lost = again["round"][again.from_storage == 0]
    told = "no round loads less"
    if len(lost):
        whole = len(lost) == again["round"].max() - lost.iloc[0] + 1
        told = f"from round {lost.iloc[0]} on{'' if whole else ', at times,'} nothing comes from storage"
        panels[0].axvline(lost.iloc[0], color=INK, linestyle=":", linewidth=1)
        panels[2].axvline(lost.iloc[0], color=INK, linestyle=":", linewidth=1)
    title = f"The server of SGLang {table.server.iloc[0]} has {table.open_fds.max()} descriptors open at the end, of {limit}; {told}"
    heading(figure, title)
    first = f"Open descriptors: {course([table.fds_before.iloc[0], *table.open_fds])}"
    tokens = ", ".join(f"{count:g}" for count in again.from_storage)
    return Drawn(
        figure,
        f"{title}. {first}. Tokens from storage in each round: {tokens}. {_times(table, lost)}",
    )


def _times(table: pd.DataFrame, lost: pd.Series) -> str:
    """Say how long the first token of repeated prompts takes, beside that of new ones."""
    groups = {"a new prompt": table.step == "backup"}
    again = table.step == "prefetch"
    groups["a repeated prompt that comes from storage"] = again & ~table["round"].isin(lost)
    groups["a repeated prompt that does not"] = again & table["round"].isin(lost)
    told = [
        f"{what} {1e3 * table.first_token[rows].median():.0f} ms"
        for what, rows in groups.items()
        if rows.any()
    ]
    return f"Median times to the first token: {', '.join(told)}."


@mpl.rc_context(LOOK)
def served_counts(table: pd.DataFrame) -> Drawn:
    """Draw how many descriptors each server has more than before its first round, a panel for each release.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``lab.served``.
    """
    if table.empty:
        return not_run("no server could be installed")
    more = table.assign(more=table.open_fds - table.fds_before)
    releases = list(more.server.unique())
    figure, panels = plt.subplots(
        1, len(releases), figsize=(3.4 + 2.4 * len(releases), 3.4), sharey=True, squeeze=False
    )
    highest, told = max(1, int(more.more.max())), []
    for axes, release in zip(panels[0], releases, strict=True):
        ends = {}
        for name, rows in more[more.server == release].groupby("connector", sort=False):
            colour, line = STYLES[str(name)]
            axes.plot(range(len(rows) + 1), [0, *rows.more], color=colour, linestyle=line, linewidth=1.8)
            ends[str(name)] = int(rows.more.iloc[-1])
        for names in _near(ends, highest * NEAR):
            label = ", ".join(f"{plain(name)}: +{ends[name]}" for name in names)
            place = (len(rows), max(ends[name] for name in names))
            colour = STYLES[names[0]][0] if len(names) == 1 else INK
            _at_end(axes, label, place, colour)
            told.append(f"{label} in the server of {release}")
        axes.set(title=f"in SGLang {release}", xlabel="backup or prefetch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0, 0].set_ylabel("descriptors more than before")
    panels[0, 0].set_ylim(-0.04 * highest, highest * 1.15)
    grow = [
        (row.connector, row.server)
        for row in more.groupby(["server", "connector"], sort=False).tail(1).itertuples()
        if row.more > len(more)
    ]
    flat = listed(list(dict.fromkeys(plain(name) for name in more.connector if name not in dict(grow))))
    title = (
        f"Descriptors grow with {listed([f'{plain(name)} in {server}' for name, server in grow])}"
        if grow
        else "Descriptors do not grow"
    )
    title += f", and not with {flat}" if grow and flat else ""
    heading(figure, title)
    return Drawn(figure, f"{title}. {'; '.join(told)}.")


@mpl.rc_context(LOOK)
def served_registrations(table: pd.DataFrame) -> Drawn:
    """Draw the bytes that stay registered with NIXL over the steps of several servers, by its own telemetry."""
    if table.empty:
        return not_run("no server could be installed")
    figure, axes = plt.subplots(figsize=(7, 3.2))
    ends = {}
    for name, rows in table.groupby("connector", sort=False):
        colour, line = STYLES[str(name)]
        grown = (rows.registered - rows.registered.iloc[0]) / MIB
        axes.plot(range(1, len(rows) + 1), grown, color=colour, linestyle=line, linewidth=1.8)
        ends[str(name)] = float(grown.iloc[-1])
    for names in _near(ends, max(1, *ends.values()) * NEAR):
        label, place = listed([plain(name) for name in names]), (len(rows), max(ends[name] for name in names))
        _at_end(axes, label, place, STYLES[names[0]][0] if len(names) == 1 else INK)
    axes.set(xlabel="backup or prefetch", ylabel="MiB registered since the first backup", ylim=(-0.5, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    each = [f"{value:g} MiB with {plain(name)}" for name, value in ends.items()]
    title = f"Registrations that are never released: {listed(each)}"
    heading(figure, title)
    return Drawn(figure, f"{title}, after {len(rows)} steps, as NIXL's own telemetry counts them.")


def _near(ends: Mapping[str, float], distance: float) -> list[list[str]]:
    """Group names whose values are so near that their labels would cover each other.

    Examples
    --------
    >>> _near({"a": 0, "b": 1, "c": 9}, 2)
    [['a', 'b'], ['c']]
    """
    groups: list[list[str]] = []
    for name in sorted(ends, key=lambda name: ends[name]):
        if groups and ends[name] - ends[groups[-1][-1]] < distance:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _at_end(axes: Axes, label: str, place: tuple[float, float], colour: ColorType) -> None:
    """Write a label above the right end of a line."""
    look: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": "small"}
    axes.annotate(label, place, xytext=(0, 5), color=colour, **look)


@mpl.rc_context(LOOK)
def first_tokens(table: pd.DataFrame) -> Drawn:
    """Draw the time to the first token by where the prompt's pages come from, for each connector.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``lab.first_tokens`` or ``lab.two_first_tokens``.
    """
    if table.empty:
        return not_run("no server could be installed")
    arms = list(table.arm.unique())
    figure, axes = plt.subplots(figsize=(7, 1.4 + 0.35 * table.origin.nunique() * len(arms)))
    rows: list[str] = []
    for origin, what in ORIGINS.items():
        if origin not in set(table.origin):
            continue
        for arm in arms:
            chosen = table[(table.origin == origin) & (table.arm == arm)].seconds * 1e3
            place, colour = -len(rows), STYLES[arm][0]
            axes.plot(
                chosen,
                [place + 0.25] * len(chosen),
                "o",
                color=colour,
                alpha=0.5,
                markersize=4,
                markeredgewidth=0,
            )
            middle = median_of(chosen)
            axes.plot([middle.low, middle.high], [place, place], color=colour, linewidth=2.4)
            axes.plot(middle.median, place, "|", color=INK, markersize=13, markeredgewidth=2)
            rows.append(f"{what}, {plain(arm)}: {middle.median:.0f} ms")
    axes.set_yticks([-place for place in range(len(rows))], rows)
    axes.set_xlim(0, None)
    axes.set_ylim(0.6 - len(rows) - 0.1, 0.6)
    axes.set_xlabel("milliseconds to the first token\n(dots: each repeat; line: interval of the median)")
    ratios = {arm: _share(table, arm) for arm in arms}
    shares = listed([f"{ratio.median:.0%} with {plain(arm)}" for arm, ratio in ratios.items()])
    title = f"The first token of a stored prompt takes {shares} of the time that computing takes"
    heading(figure, title)
    intervals = listed([f"{plain(arm)} {ratio}" for arm, ratio in ratios.items()])
    return Drawn(figure, f"{title}. Ratios with intervals: {intervals}. Medians: {'; '.join(rows)}.")


@mpl.rc_context(LOOK)
def served_watch(samples: pd.DataFrame) -> Drawn:
    """Draw what ``hicache-nixl watch`` saw of a server, with its answer as the title.

    Parameters
    ----------
    samples : pandas.DataFrame
        From ``served_and_watched``.
    """
    from ...watch import Watch  # here: it imports modules of this package

    if samples.empty:
        return not_run("no server could be installed")
    seen = Watch.of(samples)
    figure, axes = plt.subplots(figsize=(7, 3.4))
    look: dict[str, Any] = {"where": "post", "linewidth": 1.6}
    axes.step(samples.seconds, samples.storage_fds, color=BEFORE, label="storage files", **look)
    axes.step(samples.seconds, samples.open_fds, color=INK, linestyle=":", label="all descriptors", **look)
    highest, limit = int(samples.open_fds.max()), samples.limit.iloc[-1]
    if not pd.isna(limit) and limit < 3 * highest:
        limit_line(axes, int(limit))
        highest = max(highest, int(limit))
    axes.set(xlabel="seconds since the watch began", ylabel="open descriptors", ylim=(0, highest * 1.15))
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    heading(figure, seen.answer().capitalize())
    rows = "; ".join(f"{row.descriptors} {row.now}" for row in seen.table().itertuples())
    return Drawn(figure, f"{seen.answer().capitalize()}. At the end: {rows}.")


def _share(table: pd.DataFrame, arm: str) -> Estimate:
    wide = table[table.arm == arm].pivot(index="repeat", columns="origin", values="seconds")
    return paired_ratio(wide.storage, wide.cold)
