"""Figures of pages in an object store: what stays open and registered, how fast it is, what it costs as it grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from ..statistics import pooled_ratio
from .look import _OKABE_ITO, INK, LOOK, POOLED, SCOPED, STYLES, heading
from .serving import not_run
from .words import Drawn, course, listed, pooled_beside_scoped, size_of

NO_STORE = "no object store could be started"
KEPT = {"OBJ": "objects", "FILE": "files"}
COUNTS = {"storage_files": "storage descriptors", "sockets": "sockets", "registrations": "registrations"}
NEAR = 2  # a difference of small counts that leaves no room for a label between two lines
TICKS = (0, 2, 5, 10, 20, 50)  # of counts below 100
LINEAR = 10  # the axes of counts are linear up to here, and logarithmic from here on
ARMS = {"pooled, OBJ": (POOLED, "o-"), "scoped, OBJ": (SCOPED, "s-"), "scoped, FILE": (INK, "^:")}
ROLES = {"client": "clients", "s3": "S3", "filer": "filer", "volume": "volume servers", "master": "master"}


@mpl.rc_context(LOOK)
def object_counts(table: pd.DataFrame) -> Drawn:
    """Draw storage descriptors, sockets and registrations over the calls of a schedule; equal counts share a line.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``lab.object_counts``.
    """
    if table.empty:
        return not_run(NO_STORE)
    figure, panels = plt.subplots(1, len(COUNTS), figsize=(10, 4))
    told = []
    for axes, (column, what) in zip(panels, COUNTS.items(), strict=True):
        counts = table.pivot(index="call", columns=["connector", "kept"], values=column)
        groups: dict[tuple[int, ...], list[tuple[str, str]]] = {}
        for arm in counts.columns[np.argsort(counts.iloc[-1], kind="stable")]:
            groups.setdefault(tuple(counts[arm]), []).append(arm)
        axes.set_yscale("symlog", linthresh=LINEAR, linscale=1.6)
        axes.set(title=what, xlabel="call", ylim=(-1.2, 4 * max(LINEAR, counts.max(axis=None))))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        if counts.max(axis=None) < 2 * TICKS[-1]:
            axes.set_yticks([tick for tick in TICKS if tick <= axes.get_ylim()[1]])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _lines(axes, groups)
        each = [f"{_named(arms)}: {course(list(values))}" for values, arms in groups.items()]
        told.append(f"{what.capitalize()}: {'; '.join(each)}.")
    title = _kept_title(table)
    heading(figure, title)
    axis = f"The axes are linear up to {LINEAR}, and logarithmic above"
    return Drawn(figure, f"{title}. {axis}. {' '.join(told)}")


def _kept_title(table: pd.DataFrame) -> str:
    last = table[table.call == table.call.max()]
    files, objects = (last[last.kept == kept] for kept in ("FILE", "OBJ"))
    most = f"{objects.storage_files.max()}" if objects.storage_files.any() else "none"
    left = objects[objects.registrations == objects.registrations.max()]
    told = [
        f"{row.storage_files} storage descriptors with {row.connector} in files" for row in files.itertuples()
    ]
    return (
        f"After {table.call.max()} calls: {listed([*told, f'{most} with any lifetime in objects'])}; there, "
        f"{listed(left.connector.tolist())} leave {left.registrations.max()} registrations"
    )


def _lines(axes: Axes, groups: Mapping[tuple[int, ...], Sequence[tuple[str, str]]]) -> None:
    """Draw a line for each group, lowest first, with the names of its arms above it, or below it where the next is near."""
    ends = [values[-1] for values in groups]
    for (values, arms), following in zip(groups.items(), [*ends[1:], math.inf], strict=True):
        colour = STYLES[arms[0][0]][0] if len(arms) == 1 else INK
        axes.plot(range(len(values)), values, color=colour, linewidth=2)
        rises, below = values[-1] > 2 * LINEAR, 0 < following - values[-1] < NEAR
        axes.annotate(
            f"{_named(arms)}: {values[-1]}",
            (len(values) - 1 if rises else len(values) / 2, values[-1]),
            xytext=(0, -3 if below else 4),
            textcoords="offset points",
            ha="right" if rises else "center",
            va="top" if below else "bottom",
            color=INK,
            fontsize="small",
        )


def _named(arms: Sequence[tuple[str, str]]) -> str:
    """Name the arms of a line.

    Examples
    --------
    >>> print(_named([("leaky", "FILE"), ("leaky", "OBJ"), ("try_finally", "OBJ")]))
    leaky in files;
    leaky, try_finally in objects
    """
    kept = {kept: [name for name, other in arms if other == kept] for kept in ("FILE", "OBJ")}
    return ";\n".join(f"{', '.join(names)} in {KEPT[kept]}" for kept, names in kept.items() if names)


@mpl.rc_context(LOOK)
def object_speed(turns: pd.DataFrame) -> Drawn:
    """Draw how fast sets and gets are, by size of pages and of calls, with objects and with files.

    Parameters
    ----------
    turns : pandas.DataFrame
        From ``lab.object_turns``.
    """
    if turns.empty:
        return not_run(NO_STORE)
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    speed = (turns["bytes"] / 2**20 / turns.seconds).groupby(
        [turns.operation, turns.arm, turns.page_bytes, turns["keys"]]
    )
    medians = speed.median()
    told = []
    for axes, operation in zip(panels, ("set", "get"), strict=True):
        for arm, (colour, line) in ARMS.items():
            chosen = medians[operation][arm]
            axes.plot(range(len(chosen)), chosen, line, color=colour, markersize=5, label=_arm(arm))
            told.append(f"{operation}, {_arm(arm)}: {', '.join(f'{value:.3g}' for value in chosen)}")
        labels = [f"{keys} x\n{size_of(size)}" for size, keys in chosen.index]
        axes.set_xticks(range(len(labels)), labels)
        axes.set(title=operation, xlabel="pages in a call x bytes of a page", yscale="log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panels[0].set_ylabel("MiB/s, median")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small"
    )
    points = turns[["page_bytes", "keys"]].drop_duplicates()
    title = f"In an object store, pooled is this many times as fast as scoped: {pooled_beside_scoped(turns)}"
    heading(figure, title)
    parts, files = (
        listed([f"a {operation} {_against(turns, operation, arm)}" for operation in ("set", "get")])
        for arm in ("scoped, OBJ", "scoped, FILE")
    )
    over = f"Over {len(points)} points, pooled in objects does {parts} times as fast as scoped there"
    alt = f"{title}. {over}; and {files} times as fast as scoped with files."
    return Drawn(figure, f"{alt} MiB/s by point: {'; '.join(told)}.")


def _arm(arm: str) -> str:
    name, _, kept = arm.partition(", ")
    return f"{name} in {KEPT[kept]}"


def _against(turns: pd.DataFrame, operation: str, other: str) -> str:
    """Return how many times as fast ``pooled`` in objects is, over all points."""
    chosen = turns[turns.operation == operation]
    return str(pooled_ratio(chosen, ["page_bytes", "keys"], "pooled, OBJ", other))


@mpl.rc_context(LOOK)
def object_growth(table: pd.DataFrame) -> Drawn:
    """Draw pages per second over the clients, and the CPU of a page by who uses it.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``lab.object_growth``.
    """
    if table.empty:
        return not_run(NO_STORE)
    height = 2 + 0.22 * len(table) / 2
    figure, panels = plt.subplots(1, 3, figsize=(10.5, max(height, 3.6)))
    _rates(panels[0], table)
    for axes, operation in zip(panels[1:], ("set", "get"), strict=True):
        _cpu(axes, table[table.operation == operation], f"{operation}: CPU ms per page")
    figure.legend(
        *panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small"
    )
    title = _growth_title(table)
    heading(figure, title)
    rates = [
        f"{row.operation}, {row.clients} clients, {row.volumes} volume servers: {row.pages_per_second:.0f}"
        for row in table.itertuples()
    ]
    return Drawn(figure, f"{title}. Pages per second: {'; '.join(rates)}.")


def _growth_title(table: pd.DataFrame) -> str:
    """Say how many times as many pages the most clients move as the fewest, for each number of volume servers."""
    few, many = int(table.clients.min()), int(table.clients.max())
    rates = table.pivot_table(index="volumes", columns=["clients", "operation"], values="pages_per_second")
    (first, sets, gets), *others = (rates[many] / rates[few])[["set", "get"]].itertuples()
    told = [
        f"With {first} volume server{'s' * (first > 1)}, {many} clients move {sets:.2g} times as many pages as "
        f"{few} in sets and {gets:.2g} times in gets",
        *(f"with {volumes} of them, {sets:.2g} and {gets:.2g} times" for volumes, sets, gets in others),
        f"all on the {table.processors.iloc[0]} processors of this machine",
    ]
    return "; ".join(told)


def _rates(axes: Axes, table: pd.DataFrame) -> None:
    """Draw pages per second, a line for each operation and number of volume servers."""
    looks = ("o-", "s--", "^:", "D-.")
    for place, (operation, rows) in enumerate(table.groupby("operation", sort=False)):
        for (volumes, chosen), look in zip(rows.groupby("volumes"), looks, strict=False):
            label = f"{operation}, {volumes} volume server{'s' * (volumes > 1)}"
            colour: Any = _OKABE_ITO[(1, 5)[place]]
            axes.plot(chosen.clients, chosen.pages_per_second, look, color=colour, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted(table.clients.unique()))
    axes.set(title="pages per second", xlabel="clients")
    axes.set_ylim(table.pages_per_second.min() / 20, table.pages_per_second.max() * 1.3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.legend(loc="lower right", fontsize="small")


def _cpu(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    labels = [
        f"{row.clients} client{'s' * (row.clients > 1)}, {row.volumes} server{'s' * (row.volumes > 1)}"
        for row in rows.itertuples()
    ]
    left = np.zeros(len(rows))
    for place, (role, what) in enumerate(ROLES.items()):
        each = 1e3 * rows[f"{role}_cpu"].to_numpy(float) / rows.pages.to_numpy(float)
        axes.barh(labels, each, left=left, color=INK if role == "client" else _OKABE_ITO[place], label=what)
        left += each
    axes.set(title=title, xlabel="milliseconds")
    axes.invert_yaxis()
