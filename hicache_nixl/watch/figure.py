"""The figure of a watched server beside the points that the PR recorded."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from ..lab.figures.look import AFTER, BEFORE, INK, LOOK, limit_line, rings
from .sample import NAMES
from .verdict import Watch
from .wording import rate

ROOM = 1.35  # of the axis, in highest counts: the text stands above the curves
FAR = 3  # a limit more than so many times the highest count is not drawn: it would flatten the curves


@mpl.rc_context(LOOK)
def watched(recorded: pd.DataFrame, table: pd.DataFrame, seen: Watch, title: str) -> Figure:
    """Draw a watched server beside the PR's, on one scale of descriptors.

    Parameters
    ----------
    recorded : pandas.DataFrame
        ``time`` and ``open_fds`` of the lines of the PR's log.
    table : pandas.DataFrame
        From ``read_watch``.
    seen : Watch
        The verdict on that table.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.9), sharey=True)
    _points(left, recorded)
    left.set(title="the PR's server, before the fix", xlabel="seconds since the first line of the log")
    colour = BEFORE if seen.found else AFTER if seen.settled else INK
    right.step(table.seconds, table[seen.judged], where="post", color=colour, linewidth=2)
    right.step(table.seconds, table.open_fds, where="post", color=INK, linestyle=":", linewidth=1.4)
    grown, last = seen.leak, table.iloc[-1]
    _write(right, 0, f"{NAMES[seen.judged]}: {last[seen.judged]} at the end", colour)
    _write(right, 1, rate(grown) if grown is not None else "too few samples to estimate growth", colour)
    _write(right, 2, f"dots: all descriptors, {last.open_fds} at the end", INK)
    right.set(title="your server", xlabel="seconds since the watch began")
    highest = max(int(recorded.open_fds.max()), int(table.open_fds.max()))
    left.set(ylabel="open descriptors", ylim=(0, highest * ROOM))
    _limit(right, table, highest)
    left.margins(x=0.12)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _points(axes: Axes, recorded: pd.DataFrame) -> None:
    times = pd.to_timedelta(recorded["time"])
    seconds = (times - times.iloc[0]).dt.total_seconds()
    rings(axes, seconds, recorded.open_fds, [(0, 9, "center")] * len(recorded))


def _limit(axes: Axes, table: pd.DataFrame, highest: int) -> None:
    limit = table.limit.iloc[-1]
    if pd.isna(limit):
        _write(axes, 3, "no RLIMIT_NOFILE", INK)
    elif limit > FAR * highest:
        _write(axes, 3, f"RLIMIT_NOFILE = {limit}, far above the axis", INK)
    else:
        axes.set_ylim(0, max(highest, limit) * ROOM)
        limit_line(axes, limit, at="right")


def _write(axes: Axes, line: int, text: str, colour: ColorType) -> None:
    axes.text(0.03, 0.97 - 0.06 * line, text, transform=axes.transAxes, va="top", color=colour)
