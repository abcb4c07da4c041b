"""The figure of the benchmark over an object store: pages per second of each arm, over the size of pages if there are several."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullFormatter, NullLocator

from ..bench.arms import OPERATIONS
from ..bench.object_plan import ARMS, FILES, SEAWEEDFS
from ..bench.object_results import IN_MEMORY
from .look import LOOK, POOLED, SCOPED, STYLES, heading, plain
from .words import Drawn, size_of

_OWN_STYLES = {
    "pooled-other": (POOLED, ":"),
    SEAWEEDFS: (mpl.color_sequences["okabe_ito"][1], "--"),
    FILES: ("0.6", "-"),
}
_NAMES = {
    "pooled-other": "pooled, loaded by another connector",
    SEAWEEDFS: "SGLang 0.5.23, seaweedfs",
    "sglang==0.5.23": "SGLang 0.5.23, NIXL",
    FILES: "scoped on files",
}
TICKS = (1, 2, 5)  # in a decade
ROOM = {"x": 50, "y": 1e4}  # the ends of an axis, divided, up to which there is room for all of them


@mpl.rc_context(LOOK)
def object_rates(table: pd.DataFrame, where: str, title: str) -> Drawn:
    """Draw the pages per second of each arm, a panel for each operation; dots with their numbers for a single size.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``bench.object_results.summary``.
    where, title : str
        The object store in words, and what was found.
    """
    single = table.page_bytes.nunique() == 1
    size = (9.6, 1.5 + 0.3 * table.arm.nunique()) if single else (8.4, 4.2)
    figure, panels = plt.subplots(1, len(OPERATIONS), figsize=size, sharey=single)
    for axes, operation in zip(panels, OPERATIONS, strict=True):
        (_dots if single else _lines)(axes, table[table.operation == operation])
        in_memory = IN_MEMORY[0] in set(table.arm) and operation == IN_MEMORY[1]
        axes.set_title(f"{operation} (pooled: in memory)" if in_memory else operation)
    if not single:
        panels[0].set_ylabel("pages per second")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    heading(figure, title)
    told = "; ".join(
        f"{row.operation}, {size_of(row.page_bytes)}, {_name(row.arm)}: {row.pages_s:.0f}"
        for row in table.itertuples()
    )
    return Drawn(figure, f"{title}. Pages per second, {where}: {told}.")


def _dots(axes: Axes, table: pd.DataFrame) -> None:
    arms = [arm for arm in reversed(ARMS) if arm in set(table.arm)]
    for place, arm in enumerate(arms):
        pages = float(table.pages_s[table.arm == arm].iloc[0])
        axes.plot(pages, place, "o", color=_style(arm)[0])
        axes.annotate(f"{pages:,.0f}", (pages, place), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(arms)), [_name(arm) for arm in arms])
    axes.set(xscale="log", xlabel="pages per second", ylim=(-0.5, len(arms) - 0.5))
    least, most = _limits(table)
    most *= (most / least) ** 0.4  # room for the numbers
    axes.set_xlim(least, most)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    _ticks(axes.xaxis, most / least < ROOM["x"])


def _lines(axes: Axes, table: pd.DataFrame) -> None:
    sizes = sorted(table.page_bytes.unique())
    for arm in (name for name in ARMS if name in set(table.arm)):
        colour, line = _style(arm)
        own = table[table.arm == arm].sort_values("page_bytes")
        axes.plot(own.page_bytes, own.pages_s, line, color=colour, marker="o", markersize=3, label=_name(arm))
    axes.set(xscale="log", yscale="log", xlabel="page size")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, [size_of(size) for size in sizes])
    least, most = _limits(table)
    axes.set_ylim(least, most)
    _ticks(axes.yaxis, most / least < ROOM["y"])


def _limits(table: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of an axis, wide enough for two of ``TICKS``."""
    least, most = float(table.pages_s.min()), float(table.pages_s.max())
    room = max((most / least) ** 0.08, (5 * least / most) ** 0.5)
    return least / room, most * room


def _ticks(axis: Axis, all_of_them: bool) -> None:
    axis.set_major_locator(LogLocator(subs=TICKS if all_of_them else TICKS[:1], numticks=12))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def _style(arm: str) -> tuple[Any, str]:
    return _OWN_STYLES.get(arm) or STYLES.get(arm, (SCOPED, "-"))


def _name(arm: str) -> str:
    return _NAMES.get(arm, plain(arm))
