"""Figures of an object store that is shared: the time of calls while a part of it is killed and comes back."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from .look import _OKABE_ITO, INK, LOOK, heading
from .objects import NO_STORE
from .serving import not_run
from .words import Drawn, listed

COPIES = {"000": "one copy", "001": "two copies", "002": "three copies"}
ROOM = 12  # times the longest call: room for labels above it
FAILED = _OKABE_ITO[6]
SHAPES = {  # marker and colour of each operation
    "set": ("o", _OKABE_ITO[5]),
    "get": ("^", _OKABE_ITO[3]),
    "read all": ("s", _OKABE_ITO[7]),
}


@mpl.rc_context(LOOK)
def through_a_fault(table: pd.DataFrame) -> Drawn:
    """Draw the time of each call while parts of a store are killed and come back, a panel for each kind of store.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``lab.through_a_fault``, or several of them together.
    """
    if table.empty:
        return not_run(NO_STORE)
    groups = [part for _, part in table.groupby(["lifetime", "fault", "replication"], sort=False)]
    figure, panels = plt.subplots(
        1, len(groups), figsize=(3 + 3.5 * len(groups), 3.8), sharey=True, squeeze=False
    )
    for axes, part in zip(panels[0], groups, strict=True):
        _calls(axes, part)
        _spans(axes, part)
        axes.set(title=_store(part), xlabel="seconds since the start")
    panels[0, 0].set_yscale("log")
    panels[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0, 0].set_ylabel("seconds of a call")
    shown = {
        label: handle
        for axes in panels[0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(shown.values()), list(shown), loc="outside lower center", ncols=len(shown), fontsize="small"
    )
    title = "; ".join(_answer(part) for part in groups)
    title = title[0].upper() + title[1:]
    heading(figure, title)
    told = ". ".join(_told(part) for part in groups)
    return Drawn(figure, f"{title}. {told}.")


def _calls(axes: Axes, part: pd.DataFrame) -> None:
    for operation, (marker, colour) in SHAPES.items():
        rows = part[part.operation == operation]
        axes.plot(rows.began, rows.seconds, marker, color=colour, markersize=4, alpha=0.8, label=operation)
    rows = part[(part.failed > 0) | (part.wrong > 0)]
    if len(rows):
        look = {"color": FAILED, "markersize": 9, "markerfacecolor": "none", "linestyle": "none"}
        axes.plot(rows.began, rows.seconds, marker="o", label="some pages failed", **look)


def _spans(axes: Axes, part: pd.DataFrame) -> None:
    """Shade the time from each kill to the return, and name its two ends above the calls."""
    axes.set_ylim(part.seconds.min() / 1.5, part.seconds.max() * ROOM)
    for row in part[part.event != ""].itertuples():
        axes.axvline(row.began, color=INK, linestyle="--" if row.event == "killed" else ":", linewidth=1)
        axes.annotate(
            row.event,
            (row.began, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(2, 0),
            textcoords="offset points",
            rotation=90,
            va="top",
            color=INK,
            fontsize="small",
        )
    killed, back = (part.began[part.event.str.contains(event)] for event in ("killed", "back"))
    for since, until in zip(killed, back, strict=False):
        axes.axvspan(since, until, color="0.93", zorder=0, label=f"{part.fault.iloc[0]} away")


def _store(part: pd.DataFrame) -> str:
    """Say which connector and store a panel is of."""
    kind = COPIES.get(part.replication.iloc[0], part.replication.iloc[0])
    return f"{part.lifetime.iloc[0]}, {'S3 killed' if part.fault.iloc[0] == 'S3' else kind}"


def _answer(part: pd.DataFrame) -> str:
    """Say what is lost for good, what cannot be read until the part is back, and for how long a call waits for it."""
    away, last = part[part.away != ""], part.iloc[-1]
    unread, failed = max(away.failed[away.operation == "read all"], default=0), away.failed.sum()
    otherwise = f"{failed} answers are False" if failed else "no page fails"
    meanwhile = f"up to {unread} pages cannot be read" if unread else otherwise
    return (
        f"{_store(part)}: {last.failed} of {last.pages} pages are lost; until the {part.fault.iloc[0]} is back, "
        f"{meanwhile}, and a call takes at most {away.seconds.max():.2g} s"
    ).replace("the S3", "S3")


def _told(part: pd.DataFrame) -> str:
    """Describe a panel in words."""
    groups = (("with all parts", part[part.away == ""]), ("without one", part[part.away != ""]))
    times = [f"{what} {rows.seconds.median():.2g} s in the median" for what, rows in groups]
    kept = f"{part.wrong[part.operation != 'set'].sum()} loaded pages have other bytes"
    return f"{_store(part)}: a call takes {listed(times)}; {kept}, and {part.failed.sum()} answers are False"
