"""The figure of the benchmark over an object store: pages per second over the size of pages."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from ..bench.arms import OPERATIONS
from ..bench.object_plan import ARMS, FILES, SEAWEEDFS
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


@mpl.rc_context(LOOK)
def object_rates(table: pd.DataFrame, where: str, title: str) -> Drawn:
    """Draw the pages per second of each arm, a panel for each operation.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``bench.object_results.summary``.
    where, title : str
        The object store in words, and what was found.
    """
    figure, panels = plt.subplots(1, len(OPERATIONS), figsize=(8.4, 4.2), squeeze=False)
    for axes, operation in zip(panels[0], OPERATIONS, strict=True):
        _lines(axes, table[table.operation == operation])
        axes.set_title(operation)
    panels[0][0].set_ylabel("pages per second")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    heading(figure, title)
    told = "; ".join(
        f"{row.operation}, {size_of(row.page_bytes)}, {_name(row.arm)}: {row.pages_s:.0f}"
        for row in table.itertuples()
    )
    return Drawn(figure, f"{title} Pages per second over the size of a page, {where}: {told}.")


def _lines(axes: Axes, table: pd.DataFrame) -> None:
    sizes = sorted(table.page_bytes.unique())
    for arm in (name for name in ARMS if name in set(table.arm)):
        colour, line = _OWN_STYLES.get(arm) or STYLES.get(arm, (SCOPED, "-"))
        own = table[table.arm == arm].sort_values("page_bytes")
        axes.plot(own.page_bytes, own.pages_s, line, color=colour, marker="o", markersize=3, label=_name(arm))
    axes.set(xscale="log", yscale="log", xlabel="page size")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, [size_of(size) for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name(arm: str) -> str:
    return _NAMES.get(arm, plain(arm))
