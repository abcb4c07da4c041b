"""Figures of descriptors over calls: the leak, its slope, its end, and the fix beside it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from ..worker.schedule import recorded_log
from .look import AFTER, BEFORE, INK, LOOK, NAMES, NOTE, STYLES, heading, limit_line, name, rings, step
from .words import (
    Drawn,
    baseline,
    course,
    first_emfile,
    numbers,
    origin,
    per_key,
    points_met,
    shift_of,
)

NO_PEERS: Mapping[str, pd.DataFrame] = MappingProxyType({})


@mpl.rc_context(LOOK)
def growth(
    table: pd.DataFrame, recorded: pd.DataFrame, peers: Mapping[str, pd.DataFrame] = NO_PEERS
) -> Drawn:
    """Draw open descriptors over the calls of one replay, with the PR's points as rings.

    Parameters
    ----------
    table : pandas.DataFrame
        A replay.
    recorded : pandas.DataFrame
        ``call``, ``keys`` and ``open_fds`` of the lines of the PR's log.
    peers : mapping
        Replays of released connectors, drawn as dots.
    """
    figure, axes = plt.subplots(figsize=(7, 3.6))
    _steps(axes, table, "leaky")
    _rings(axes, table, recorded)
    _dots(axes, peers, "open_fds")
    _say_origin(axes, table, recorded)
    met = f"{points_met(table, recorded)} of the {len(recorded)} counts that the PR recorded"
    heading(figure, f"The replay matches {met}")
    axes.set(xlabel="call", ylabel="open descriptors", xlim=(0, len(table) + 1.5), ylim=(0, None))
    alt = (
        f"Over {len(table)} calls the count of open descriptors {_course(table)}. Rings mark the PR's counts"
    )
    return Drawn(figure, f"{alt} ({_listed(recorded)}); the replay matches {met}. {_origin(table)}")


@mpl.rc_context(LOOK)
def steps(table: pd.DataFrame, baseline: int, limit: int, connector: str, title: str) -> Figure:
    """Draw open descriptors over the calls of one replay, below its limit.

    The axis always reaches the limit, so that the figures of several replays can be compared.
    """
    figure, axes = plt.subplots(figsize=(7, 3.2))
    step(axes, [baseline, *table.open_fds], color=STYLES[connector][0], linewidth=1.6)
    limit_line(axes, limit)
    _cross(axes, table)
    axes.set(title=title, xlabel="call", ylabel="open descriptors")
    axes.set(xlim=(0, len(table) + 1), ylim=(0, limit * 1.12))
    return figure


@mpl.rc_context(LOOK)
def law(table: pd.DataFrame) -> Drawn:
    """Draw the descriptors that one call leaves over its number of keys.

    Parameters
    ----------
    table : pandas.DataFrame
        ``kind`` of page, ``keys``, and ``left``, the descriptors that the call left.
    """
    figure, axes = plt.subplots(figsize=(6, 3.8))
    rates = (table.left / table["keys"]).groupby(table.kind, sort=False).agg(numbers)
    looks = ((BEFORE, "o", "-"), (AFTER, "s", "--"), (INK, "^", ":"))
    corners = ((0.03, 0.97, "left", "top"), (0.98, 0.04, "right", "bottom"), (0.03, 0.6, "left", "top"))
    order = sorted(rates.unique(), reverse=True)
    for rate, (colour, marker, line), (x, y, across, up) in zip(order, looks, corners, strict=False):
        kinds = rates.index[rates == rate]
        group = table[table.kind.isin(kinds)]
        most = group.groupby("keys").left.max()
        axes.plot(most.index, most, line, color=colour, linewidth=1.2)
        axes.plot(group["keys"], group.left, marker, color=colour, markersize=4, markerfacecolor="none")
        told = f"+{rate} per key:\n" + "\n".join(kinds)
        axes.text(x, y, told, transform=axes.transAxes, ha=across, va=up, color=colour)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    sizes = f"{table['keys'].min()} to {table['keys'].max()} keys"
    each = "depending on the kind of page" if len(order) > 1 else "for every kind of page"
    title = f"A call of {sizes} leaves {numbers(table.left / table['keys'])} descriptors per key, {each}"
    heading(figure, title)
    axes.set(xlabel="keys in the call", ylabel="descriptors left open by the call")
    told = "; ".join(f"{kind}: {rate}" for kind, rate in rates.items())
    return Drawn(figure, f"{title}. Both axes are logarithmic. {told} per key.")


@mpl.rc_context(LOOK)
def end(table: pd.DataFrame, limit: int) -> Drawn:
    """Draw one replay into its limit: descriptors above, the share of correct pages below."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 4.4), sharex=True, gridspec_kw={"height_ratios": [2, 1]}
    )
    _steps(above, table, "leaky")
    limit_line(above, limit)
    _cross(above, table)
    title = _end_title(table)
    heading(figure, title)
    above.set(ylabel="open descriptors", ylim=(0, limit * 1.15))
    share = table.pages_ok / table["keys"]
    look = {"markersize": 4, "markerfacecolor": "none"}
    for operation, marker, colour in (("set", "o", BEFORE), ("get", "s", AFTER)):
        some = table.operation == operation
        below.plot(table.call[some], share[some], marker, color=colour, label=operation, **look)
    below.set(xlabel="call", ylabel="correct pages", ylim=(-0.1, 1.1), xlim=(0, len(table) + 1.5))
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    below.legend(loc="center right", ncols=2)
    alt = f"Over {len(table)} calls the count of open descriptors {_course(table)}, below a limit of {limit}."
    return Drawn(figure, f"{alt} {title}. {_origin(table)}")


@mpl.rc_context(LOOK)
def hero(before: pd.DataFrame, after: pd.DataFrame, recorded: pd.DataFrame, limit: int) -> Drawn:
    """Draw the replay before and after the fix side by side, on one linear scale."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.9), sharey=True)
    for axes, table, arm in zip(panels, (before, after), ("leaky", "try_finally"), strict=True):
        _steps(axes, table, arm)
        limit_line(axes, limit)
        axes.set(title=NAMES[arm], xlabel="call", xlim=(0, len(table) + 1.5), ylim=(0, limit * 1.12))
    _rings(panels[0], before, recorded)
    _cross(panels[0], before)
    panels[0].set_ylabel("open descriptors")
    _say_slope(panels[0], before, int(recorded.call.iloc[1]) + 3)
    _say_origin(panels[1], after, recorded)
    failed = first_emfile(before)
    end_of_it = (
        f"call {failed} of {len(before)} fails with EMFILE" if failed else f"the count {_course(before)}"
    )
    title = f"Before the fix, {end_of_it}; after it, the count {_course(after)}"
    heading(figure, title)
    alt = (
        f"{title}. Left, {len(before)} calls before the fix, with a limit of {limit}: the count {_course(before)}, "
        f"+{per_key(before)} per key, and matches {points_met(before, recorded)} of the {len(recorded)} counts that the PR "
        f"recorded ({_listed(recorded)}). Right, after the fix: the count {_course(after)}. {_origin(after)}"
    )
    return Drawn(figure, alt)


@mpl.rc_context(LOOK)
def two_counts(
    tables: Mapping[str, pd.DataFrame],
    column: str,
    what: str,
    peers: Mapping[str, pd.DataFrame] = NO_PEERS,
) -> Drawn:
    """Draw one column of two replays over their calls, and released connectors as dots.

    Parameters
    ----------
    what : str
        What the column counts, for the axis and the title.
    """
    figure, axes = plt.subplots(figsize=(7, 3.4))
    courses = {}
    for (arm, table), above in zip(tables.items(), (True, False), strict=True):
        colour, line = STYLES[arm]
        start = baseline(table) if column == "open_fds" else 0
        values = [start, *table[column]]
        courses[arm] = course(values)
        step(axes, values, color=colour, linestyle=line)
        flat = values[-1] <= start
        middle = (
            len(values) // 3 if flat else len(values) * 3 // 5
        )  # the right of a flat line is for its origin
        axes.annotate(
            NAMES[arm],
            (middle, values[middle]),
            xytext=(-10, 8) if above else (10, 5) if flat else (10, -10),
            textcoords="offset points",
            color=colour,
            ha="right" if above else "left",
        )
    _dots(axes, peers, column)
    first, second = courses.values()
    same = f"{first}, before and after the fix"
    title = (
        f"The count of {what} {same if first == second else f'{second} after the fix; before it, it {first}'}"
    )
    heading(figure, title)
    axes.set(xlabel="call", ylabel=what, ylim=(0, None))
    axes.margins(x=0.02, y=0.15)
    calls = len(next(iter(tables.values())))
    released = f" Dots: {', '.join(map(name, peers))}, as released." if peers else ""
    from_where = ""
    if column == "open_fds":
        flattest = min(tables.values(), key=lambda table: table.open_fds.iloc[-1])
        _say_origin(axes, flattest, recorded_log())
        axes.texts[-1].set_gid(NOTE)
        from_where = f" {_origin(flattest)}"
    return Drawn(figure, f"{what.capitalize()} over {calls} calls. {title}.{from_where}{released}")


def _course(table: pd.DataFrame) -> str:
    return course([baseline(table), *table.open_fds])


def _listed(recorded: pd.DataFrame) -> str:
    return ", ".join(f"{point.open_fds} after call {point.call}" for point in recorded.itertuples())


def _end_title(table: pd.DataFrame) -> str:
    failed = first_emfile(table)
    if failed is None:
        return f"No call of {len(table)} fails with EMFILE"
    after = table[table.call >= failed]
    return f"Call {failed} fails with EMFILE; from then on {after.pages_ok.sum()} of {after['keys'].sum()} pages are correct"


def _steps(axes: Axes, table: pd.DataFrame, arm: str) -> None:
    step(axes, [baseline(table), *table.open_fds], color=STYLES[arm][0], linewidth=1.6)


def _dots(axes: Axes, peers: Mapping[str, pd.DataFrame], column: str) -> None:
    """Draw released connectors over the steps of ours, with a line that says so."""
    for table in peers.values():
        axes.plot(table.call + 0.3, table[column], ".", color=INK, markersize=4, zorder=4)
    if peers:
        names = " and ".join(name(connector) for connector in peers)
        told = f"dots: {names}, as released"
        axes.text(0.02, 0.97, told, transform=axes.transAxes, va="top", color=INK, fontsize="small")


def _rings(axes: Axes, table: pd.DataFrame, recorded: pd.DataFrame) -> None:
    """Draw the recorded points, moved with the padding where it differs from the PR's server."""
    shift = shift_of(table)
    labels = [f"PR: {count}" + (f" {shift:+d}" if shift else "") for count in recorded.open_fds]
    # near the axis there is no room at the left
    places = [(2, 9, "left") if call < 5 else (-9, 5, "right") for call in recorded.call]
    rings(axes, recorded.call, recorded.open_fds + shift, places, labels)


def _cross(axes: Axes, table: pd.DataFrame) -> None:
    call = first_emfile(table)
    if call is None:
        return
    count = table.open_fds[table.call == call].iloc[0]
    axes.plot(call, count, "x", color=INK, markersize=9, markeredgewidth=2, zorder=4)
    axes.annotate(
        f"EMFILE, call {call}",
        (call, count),
        xytext=(0.99, -64),  # at the right end, where the curve is above
        textcoords=("axes fraction", "offset points"),
        color=INK,
        ha="right",
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6, "shrinkB": 6},
    )


def _say_slope(axes: Axes, table: pd.DataFrame, call: int) -> None:
    axes.annotate(
        f"+{per_key(table)} descriptors per key",
        (call + 0.5, table.open_fds[table.call == call].iloc[0]),
        xytext=(10, -26),
        textcoords="offset points",
        color=BEFORE,
        arrowprops={"arrowstyle": "-", "color": BEFORE, "linewidth": 0.8},
    )


def _origin(table: pd.DataFrame) -> str:
    return f"{' '.join(origin(table, recorded_log()).split())}."


def _say_origin(axes: Axes, table: pd.DataFrame, recorded: pd.DataFrame) -> None:
    axes.annotate(
        origin(table, recorded),
        (len(table), baseline(table)),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color="0.35",
        fontsize="small",
    )
