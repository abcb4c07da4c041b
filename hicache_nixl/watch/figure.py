"""The figures of watched servers: by themselves, and beside the points that the PR recorded."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from ..lab.figures.look import AFTER, BEFORE, INK, LOOK, SCOPED, heading, limit_line, rings
from .sample import NAMES
from .verdict import LEAK, Watch
from .wording import answer, rate

ROOM = 1.35  # of the axis, in highest counts: the text stands above the curves
SHOWN = 4  # kinds in a panel
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
    _limit(right, None if pd.isna(last.limit) else int(last.limit), highest, 3)
    left.margins(x=0.12)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@mpl.rc_context(LOOK)
def servers(seen: Mapping[str, Watch]) -> Figure:
    """Draw the open descriptors of watched processes, a panel for each, by name."""
    figure, panels = plt.subplots(len(seen), 1, figsize=(9, 0.9 + 3.1 * len(seen)), squeeze=False)
    for axes, (name, watch) in zip(panels[:, 0], seen.items(), strict=True):
        _server(axes, watch)
        axes.set(title=f"process {name}", ylabel="open descriptors")
    panels[-1, 0].set_xlabel("seconds since the watch began")
    leaking = [name for name, watch in seen.items() if watch.state == LEAK]
    one = answer(next(iter(seen.values()))).capitalize()
    several = f"{len(leaking)} of {len(seen)} processes leak" + (f": {', '.join(leaking)}" if leaking else "")
    heading(figure, one if len(seen) == 1 else several)
    return figure


def _server(axes: Axes, watch: Watch) -> None:
    """Draw the kinds that leak, that are judged first, or that changed most, and all descriptors."""
    table = watch.series()
    counts = table.drop(columns=["seconds", "open_fds"])
    moved = (counts.max() - counts.min()).sort_values(ascending=False, kind="stable")
    names = dict.fromkeys([*watch.leaks, watch.kinds[0], *(name for name in moved.index if moved[name])])
    drawn = [*list(names)[:SHOWN], "open_fds"]
    styles = dict(zip(drawn, ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1))), strict=False))
    for line, name in enumerate(drawn):
        colour = INK if name == "open_fds" else BEFORE if watch.grows(name) else (AFTER, SCOPED)[line % 2]
        style = ":" if name == "open_fds" else styles[name]
        axes.step(table.seconds, table[name], where="post", color=colour, linestyle=style, linewidth=1.6)
        grown, now = watch.growth(name), watch.last.counts[name] if watch.last else 0
        growth = f", {rate(grown)}" if grown is not None else ""
        _write(axes, line, f"{NAMES[name]} ({_style(style)}): now {now:,}{growth}", colour)
    axes.set_ylim(0, max(1, int(table.open_fds.max())) / (0.88 - 0.06 * (len(drawn) + 1)))
    _limit(axes, watch.last.limit if watch.last else None, int(table.open_fds.max()), len(drawn))


def _style(style: object) -> str:
    return {"-": "line", "--": "dashes", "-.": "dashes and dots", ":": "dots"}.get(
        str(style), "dash and two dots"
    )


def _points(axes: Axes, recorded: pd.DataFrame) -> None:
    times = pd.to_timedelta(recorded["time"])
    seconds = (times - times.iloc[0]).dt.total_seconds()
    rings(axes, seconds, recorded.open_fds, [(0, 9, "center")] * len(recorded))


def _limit(axes: Axes, limit: int | None, highest: int, line: int) -> None:
    if limit is None:
        _write(axes, line, "no RLIMIT_NOFILE", INK)
    elif limit > FAR * highest:
        _write(axes, line, f"RLIMIT_NOFILE = {limit}, far above the axis", INK)
    else:
        axes.set_ylim(0, max(highest, limit) * ROOM)
        limit_line(axes, limit, at="right")


def _write(axes: Axes, line: int, text: str, colour: ColorType) -> None:
    axes.text(0.03, 0.97 - 0.06 * line, text, transform=axes.transAxes, va="top", color=colour)
