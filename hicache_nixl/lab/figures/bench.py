"""The figure of the command bench: throughput over the size of pages."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from ..bench.plan import CEILING, EVERY, FILE_BACKEND, KIB, PEER, cache_name
from ..statistics import Estimate
from .look import LOOK, POOLED, STYLES, heading, plain
from .words import Drawn, size_of

_OKABE_ITO = mpl.color_sequences["okabe_ito"]
_OWN_STYLES = {
    "pooled-none": (POOLED, ":"),
    FILE_BACKEND: (_OKABE_ITO[1], "--"),
    CEILING: ("0.6", "-"),
}
_NAMES = {
    "pooled-none": "pooled, verify=none",
    FILE_BACKEND: "SGLang 0.5.23, file",
    CEILING: "plain pwrite, preadv",
}
PANELS = ("set", "get")


@mpl.rc_context(LOOK)
def throughputs(medians: pd.DataFrame, ratios: pd.DataFrame) -> Drawn:
    """Draw the throughput of sets and gets over the size of pages, a row of panels for each queue and cache.

    Parameters
    ----------
    medians, ratios : pandas.DataFrame
        From ``bench.results``; further rows are not drawn.
    """
    main = medians[~medians.further & medians.operation.isin(PANELS)]
    groups = list(main.groupby(["direct", "queue"], sort=False))
    figure, grid = plt.subplots(
        len(groups), 2, figsize=(8.4, 0.9 + 2.9 * len(groups)), squeeze=False, sharey=True
    )
    for row, ((direct, queue), group) in zip(grid, groups, strict=True):
        for axes, operation in zip(row, PANELS, strict=True):
            _lines(axes, group[group.operation == operation])
            axes.set_title(f"{operation}, {cache_name(direct)}, {queue}")
        row[0].set_ylabel("MiB/s")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    title = headline(ratios)
    heading(figure, title)
    return Drawn(figure, f"{title}. Median throughput over the size of a page: {_told(main)}.")


def headline(ratios: pd.DataFrame) -> str:
    """Say how fast ``pooled`` is, at 64 KiB or else at the smallest size, at the first queue and cache.

    It is compared with SGLang's connector, or with ``scoped`` where that was left out.

    Examples
    --------
    >>> headline(pd.DataFrame({"further": [], "arm": [], "against": []}))
    'Throughput over the size of a page'
    """
    main = ratios[~ratios.further.astype(bool) & (ratios.arm == "pooled")]
    against = next((arm for arm in (PEER, "scoped") if arm in set(main.against)), None)
    if against is None:
        return "Throughput over the size of a page"
    chosen = main[main.against == against]
    first = chosen.iloc[0]
    chosen = chosen[(chosen.queue == first.queue) & (chosen.direct == first.direct)]
    size = 64 * KIB if (chosen.page_bytes == 64 * KIB).any() else first.page_bytes
    told = [
        f"a {row.operation} {Estimate(row.speed_ratio, row.low, row.high, row.pairs)} times"
        for row in chosen[chosen.page_bytes == size].itertuples()
        if row.operation in PANELS
    ]
    return f"With pages of {size_of(size)}, pooled does {' and '.join(told)} as fast as {plain(against)}"


def _lines(axes: Axes, medians: pd.DataFrame) -> None:
    sizes = sorted(medians.page_bytes.unique())
    for arm in (name for name in EVERY if name in set(medians.arm)):
        colour, line = _OWN_STYLES.get(arm) or STYLES[arm]
        own = medians[medians.arm == arm].sort_values("page_bytes")
        wide = 3 if arm == CEILING else 1.5
        axes.plot(
            own.page_bytes,
            own.MiB_s,
            line,
            color=colour,
            linewidth=wide,
            marker="o",
            markersize=3,
            label=_name(arm),
        )
    axes.set(xscale="log", yscale="log", xlabel="page size")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, [size_of(size) for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name(arm: str) -> str:
    return _NAMES.get(arm, plain(arm))


def _told(medians: pd.DataFrame) -> str:
    return "; ".join(
        f"{row.operation}, {cache_name(row.direct)}, {row.queue}, {size_of(row.page_bytes)}, {_name(row.arm)}: "
        f"{row.MiB_s:.0f} MiB/s"
        for row in medians.itertuples()
    )
