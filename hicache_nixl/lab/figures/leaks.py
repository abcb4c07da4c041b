"""Figures of what stays behind: after a fault, over many calls, beside a bad page."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from ..statistics import FEWEST, paired_ratio, slope
from .look import AFTER, BEFORE, INK, LOOK, STYLES, heading, name, plain
from .words import Drawn, course, gets_against, listed, numbers

MEDIAN_OF = 25  # gets, in a figure; a machine that does other work makes single ones ten times as long
BEHAVIOURS = {  # columns of ``release_facts``: heading, and the value that a reader hopes for
    "fds_per_call": ("descriptors left\nper call", 0),
    "registrations_per_call": ("registrations left\nper call", 0),
    "exists_of_8": ("pages found\nof 8 stored", 8),
    "pages_besides_a_bad_one": ("good pages of 7\nbeside a bad one", 7),
    "half_written_seen": ("half-written page\ncounted as stored", False),
}


@mpl.rc_context(LOOK)
def faults(summaries: Mapping[str, pd.DataFrame]) -> Drawn:
    """Draw the most descriptors that a fault in each step leaves open, for each lifetime.

    Parameters
    ----------
    summaries : mapping
        From ``fault_summary``, by lifetime.
    """
    figure, axes = plt.subplots(figsize=(7, 5))
    for position, (arm, summary) in enumerate(summaries.items()):
        colour, _ = STYLES[arm]
        rows = np.arange(len(summary))[::-1] + 0.12 - 0.24 * position
        axes.hlines(rows, 0, summary.most_fds, color=colour, linewidth=1)
        axes.plot(summary.most_fds, rows, "os^"[position], color=colour, label=name(arm), markersize=5)
    labels = [f"{row.step}: {row.kind}" for row in summary.itertuples()]
    axes.set_yticks(np.arange(len(summary))[::-1], labels)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left = {arm: f"{table.left_files_open.sum()} of {table.faults.sum()}" for arm, table in summaries.items()}
    title = "Descriptors stay open after " + ", ".join(
        f"{n} faults with {plain(arm)}" for arm, n in left.items()
    )
    heading(figure, title)
    axes.set_xlabel("most descriptors that a call with this fault leaves open")
    axes.margins(x=0.04)
    figure.legend(loc="outside lower center", ncols=3)
    open_at = {arm: _steps_that_leave(table) for arm, table in summaries.items()}
    told = "; ".join(f"{plain(arm)}: {where}" for arm, where in open_at.items())
    return Drawn(figure, f"{title}. Steps after which descriptors stay open: {told}.")


@mpl.rc_context(LOOK)
def second_leak(tables: Mapping[str, pd.DataFrame], owner: str = "scoped") -> Drawn:
    """Draw registrations, the time of a get and resident memory over the calls, one panel each.

    Parameters
    ----------
    tables : mapping
        The calls of each connector, made in turn.
    owner : str
        The connector whose get of the same round is subtracted from the time of a get: what the machine does in that
        minute slows both.  The differences are drawn as a running median of ``MEDIAN_OF``, with a straight line through those of the first connector.
    """
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.9))
    for connector, table in tables.items():
        colour, line = STYLES[connector]
        memory = (table.rss_bytes - table.rss_bytes.iloc[0]) / 2**20
        look = {"color": colour, "linestyle": line, "linewidth": 1.6}
        panels[0].plot(table.call, table.registrations, label=name(connector), **look)
        beyond = _gets_beyond(table, tables[owner])
        panels[1].plot(beyond.call, beyond.ms.rolling(MEDIAN_OF, center=True, min_periods=1).median(), **look)
        panels[2].plot(table.call, memory, **look)
    _line_of_gets(panels[1], tables, owner)
    headings = ("live registrations", f"get: ms longer than with {owner}", "MiB of memory since call 1")
    for axes, what in zip(panels, headings, strict=True):
        axes.set(title=what, xlabel="call")
        axes.set_ylim(min(0, axes.get_ylim()[0]), None)
    figure.legend(loc="outside lower center", ncols=len(tables))
    left = {connector: numbers(table.registrations.diff().dropna()) for connector, table in tables.items()}
    title = "A call leaves " + ", ".join(f"{n} registrations with {who}" for n, who in _alike(left).items())
    heading(figure, title)
    counts = "; ".join(
        f"{plain(arm)} {course(table.registrations.tolist())}" for arm, table in tables.items()
    )
    slower = "".join(
        f" {told}" for arm in tables if arm != owner and (told := gets_against(tables, arm, owner))
    )
    calls = len(next(iter(tables.values())))
    return Drawn(figure, f"{title}. Live registrations over {calls} calls: {counts}.{slower}")


def _line_of_gets(axes: Axes, tables: Mapping[str, pd.DataFrame], owner: str) -> None:
    """Draw the fitted growth of the time of a get with the first connector, with its slope above the panel's lines."""
    first = next(iter(tables))
    beyond = _gets_beyond(tables[first], tables[owner])
    if first == owner or len(beyond) < FEWEST:
        return
    growth = slope(beyond.assign(us=beyond.ms * 1e3), "us")
    middle = beyond.median()
    ends = beyond.call.iloc[[0, -1]]
    axes.plot(ends, middle.ms + growth.median / 1e3 * (ends - middle.call), color=INK, linewidth=2)
    axes.margins(y=0.2)
    told = f"line: {plain(first)},\n{growth} µs per call"
    axes.annotate(told, (0.03, 0.98), xycoords="axes fraction", va="top", color=INK, fontsize="small")


def _gets_beyond(table: pd.DataFrame, owner: pd.DataFrame) -> pd.DataFrame:
    """Return by how many milliseconds each get is slower than the owner's in the same round: ``call`` and ``ms``."""
    mine, others = (each[each.operation == "get"].reset_index(drop=True) for each in (table, owner))
    return pd.DataFrame({"call": mine.call, "ms": (mine.seconds - others.seconds) * 1e3})


@mpl.rc_context(LOOK)
def behaviours(facts: pd.DataFrame) -> Drawn:
    """Draw what each connector leaves and answers as a table of coloured cells.

    Parameters
    ----------
    facts : pandas.DataFrame
        From ``release_facts``, with ``connector`` as a column.
    """
    wanted = [value for _, value in BEHAVIOURS.values()]
    values = facts[list(BEHAVIOURS)]
    good = np.array(
        [[cell == hope for cell, hope in zip(row, wanted, strict=True)] for row in values.to_numpy()]
    )
    figure, axes = plt.subplots(figsize=(8.4, 1.3 + 0.36 * len(facts)))
    colours = {True: AFTER, False: BEFORE}
    for (row, column), fine in np.ndenumerate(good):
        axes.add_patch(
            Rectangle((column - 0.47, row - 0.44), 0.94, 0.88, color=colours[fine], alpha=0.18, linewidth=0)
        )
        axes.text(
            column,
            row,
            _shown(values.iat[row, column]),
            ha="center",
            va="center",
            color=colours[fine],
            weight="bold",
        )
    axes.set_xticks(range(len(BEHAVIOURS)), [what for what, _ in BEHAVIOURS.values()])
    axes.set_yticks(range(len(facts)), [name(connector) for connector in facts.connector])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.5, len(BEHAVIOURS) - 0.5), ylim=(len(facts) - 0.5, -0.5))
    axes.set_xlabel(f"blue: as it should be ({_hopes()}); orange: not", fontsize="small", color=INK)
    fine = [name(connector) for connector, row in zip(facts.connector, good, strict=True) if row.all()]
    which = f"only {listed(fine)}" if fine else "none"
    several = len(fine) > 1
    verbs = "leave nothing behind and also keep" if several else "both leaves nothing behind and keeps"
    title = f"Of {len(facts)} connectors, {which} {verbs} the good pages beside a bad one"
    heading(figure, title)
    headings = [what.replace("\n", " ") for what, _ in BEHAVIOURS.values()]
    rows = zip(facts.connector, values.itertuples(index=False), strict=True)
    lines = "; ".join(
        f"{name(connector)}: "
        + ", ".join(f"{what} {_shown(cell)}" for what, cell in zip(headings, row, strict=True))
        for connector, row in rows
    )
    return Drawn(figure, f"{title}. {lines}.")


@mpl.rc_context(LOOK)
def creation(times: pd.DataFrame, file_system: str) -> Drawn:
    """Draw the time of creating a file over the number of files that were deleted in its folder before.

    Parameters
    ----------
    times : pandas.DataFrame
        From ``deletion_times``.
    file_system : str
        What the files are on.
    """
    figure, axes = plt.subplots(figsize=(6, 3.2))
    micros = (times.seconds / times.files * 1e6).groupby([times.repeat, times.deleted]).first().unstack()
    medians, deleted = micros.median(), micros.columns.max()
    for _, repetition in micros.iterrows():
        axes.plot(repetition, color="0.75", linewidth=0.8)
    axes.plot(medians, "o-", color=BEFORE, markersize=5)
    axes.set_yscale("log")
    axes.set(ylabel="microseconds per new file", ylim=(micros.min().min() / 1.5, micros.max().max() * 1.5))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("files deleted in the folder before (grey: one repetition; line: median)")
    axes.set_xticks(micros.columns)
    ratio = paired_ratio(micros[deleted], micros[0])
    title = f"On {file_system}, a new file takes {ratio} times as long after {deleted} were deleted"
    heading(figure, title)
    told = f"{medians[0]:.0f} µs per file in a new folder, {medians[deleted]:.0f} µs after {deleted} were deleted"
    return Drawn(figure, f"{title}: {told}, in the median of {len(micros)} repetitions.")


def _steps_that_leave(summary: pd.DataFrame) -> str:
    some = summary[summary.left_files_open > 0]
    return ", ".join(f"{row.step} ({row.kind})" for row in some.itertuples()) or "none"


def _alike(left: Mapping[str, str]) -> dict[str, str]:
    """Group connectors by what they leave: ``{"128": "try_finally and SGLang 0.5.12"}``."""
    return {
        each: " and ".join(plain(arm) for arm, other in left.items() if other == each)
        for each in left.values()
    }


def _hopes() -> str:
    return ", ".join(_shown(hope) for _, hope in BEHAVIOURS.values())


def _shown(cell: float) -> str:
    return ("no", "yes")[int(cell)] if isinstance(cell, bool | np.bool_) else f"{cell:g}"
