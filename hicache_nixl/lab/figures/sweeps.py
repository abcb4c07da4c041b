"""The figures of a sweep: the grid as small multiples, a panel for each point or for each group of points."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ..runs.claims import NO_SLOWER
from ..statistics import Estimate
from .look import AFTER, BEFORE, INK, LOOK, STYLES, heading, name, plain
from .narrow import DPI
from .words import SLOWER, UNKNOWN, Drawn, numbers, speed

MOST_PANELS = 48
WIDE, NARROW = (8.4, 5), (4.0, 2)  # inches, and panels in a row
HEIGHT = 1.45  # inches of a panel
LETTERS = 17  # of a panel's title on an inch
OPERATIONS = {"set": (BEFORE, "o"), "get": (AFTER, "s")}
APART = 0.5  # of the points of an operation in one panel


def panels_of(places: Sequence[Mapping[str, str]]) -> list[tuple[str, list[int]]]:
    """Group points into panels: by as many axes, from the first one on, as leave at most ``MOST_PANELS``.

    Returns
    -------
    list of (str, list of int)
        The title of each panel, and which points are in it.

    Examples
    --------
    >>> panels_of([{"queue": "libaio"}, {"queue": "io_uring"}])
    [('libaio', [0]), ('io_uring', [1])]
    """
    axes = list(places[0]) if places else []
    while len({tuple(place[axis] for axis in axes) for place in places}) > MOST_PANELS:
        axes.pop()
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, place in enumerate(places):
        groups.setdefault(tuple(place[axis] for axis in axes), []).append(number)
    return [(", ".join(values), some) for values, some in groups.items()]


@mpl.rc_context(LOOK)
def left_open(
    places: Sequence[Mapping[str, str]], courses: Sequence[Mapping[str, list[int]]], narrow: bool = False
) -> Drawn:
    """Draw the storage files that stay open over the calls, for each point and connector.

    Parameters
    ----------
    places : sequence of mapping
        Where each point is in the grid.
    courses : sequence of mapping
        For each point, by connector, the count before the first call and after each; empty without a result.
    narrow : bool
        For a phone.
    """
    figure, panels = _grid(places, narrow)
    arms = [arm for arm in STYLES if any(arm in course for course in courses)]
    most = max((max(counts) for course in courses for counts in course.values()), default=1)
    calls = max((len(counts) for course in courses for counts in course.values()), default=1)
    for axes, some in panels:
        for arm in arms:
            for counts in (courses[number][arm] for number in some if arm in courses[number]):
                axes.step(range(len(counts)), counts, STYLES[arm][1], color=STYLES[arm][0], where="post")
        _say_missing(axes, [number for number in some if not courses[number]], some)
        axes.set(ylim=(-0.04 * most, 1.12 * most), xlim=(0, calls))
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lines = {name(arm): axes.plot([], [], STYLES[arm][1], color=STYLES[arm][0])[0] for arm in arms}
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=2 if narrow else 4)
    _label(figure, panels, "call", "storage files left open")
    title = _left(arms, [course for course in courses if course])
    heading(figure, title)
    return Drawn(figure, f"{title}. {_told(panels, 'the open storage files over the calls')}")


@mpl.rc_context(LOOK)
def costs(
    places: Sequence[Mapping[str, str]],
    ratios: Sequence[Mapping[str, Estimate]],
    arms: tuple[str, str],
    narrow: bool = False,
) -> Drawn:
    """Draw the ratio of the times of two connectors with its interval, for each point and operation.

    Parameters
    ----------
    places : sequence of mapping
        Where each point is in the grid.
    ratios : sequence of mapping
        For each point the ratio by operation; empty without a result.
    arms : (str, str)
        The connector in the numerator, and in the denominator.
    narrow : bool
        For a phone.
    """
    figure, panels = _grid(places, narrow)
    every = [ratio for of in ratios for ratio in of.values()]
    for axes, some in panels:
        axes.axhline(1, color=INK, linewidth=0.8)
        axes.axhline(NO_SLOWER, color=INK, linewidth=0.8, linestyle=":")
        _intervals(axes, [ratios[number] for number in some])
        _say_missing(axes, [number for number in some if not ratios[number]], some)
        axes.set_xticks(range(len(OPERATIONS)), list(OPERATIONS))
        axes.set(xlim=(-0.5, len(OPERATIONS) - 0.5), yscale="log")
        axes.set_ylim(
            min([0.8, *(one.low for one in every)]) / 1.1, max([1.25, *(one.high for one in every)]) * 1.1
        )
        ticks = [
            tick
            for tick in (0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10)
            if axes.get_ylim()[0] < tick < axes.get_ylim()[1]
        ]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
    _label(figure, panels, "", "time ratio")
    figure.supxlabel(f"solid line: 1, no difference; dotted: {NO_SLOWER:g}, the margin", fontsize="small")
    title = f"Time with {plain(arms[0])} divided by that with {plain(arms[1])}: {_verdicts(ratios)}"
    heading(figure, title)
    return Drawn(figure, f"{title}. {_told(panels, 'the ratio of times with its 95 % interval')}")


def save_small_multiples(wide: Drawn, narrow: Drawn, path: Path, narrow_path: Path) -> None:
    """Save both forms of a figure, and close them."""
    for drawn, where in ((wide, path), (narrow, narrow_path)):
        drawn.figure.savefig(where, dpi=DPI, metadata={"Description": wide.alt})
        plt.close(drawn.figure)


def _grid(places: Sequence[Mapping[str, str]], narrow: bool) -> tuple[Figure, list[tuple[Axes, list[int]]]]:
    """Make the panels, with their titles and points."""
    groups = panels_of(places)
    width, across = NARROW if narrow else WIDE
    columns = min(len(groups), across)
    in_first = len(groups) // len({title.partition(", ")[0] for title, _ in groups})
    if in_first * 2 > across >= in_first:  # a row for each value of the first axis
        columns = in_first
    rows = math.ceil(len(groups) / columns)
    letters = int(width / columns * LETTERS)
    titles = [textwrap.fill(title, letters) for title, _ in groups]
    lines = max(title.count("\n") for title in titles)
    size = (width, 1.1 + rows * (HEIGHT + 0.14 * lines))
    figure, grid = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title, fontsize="small", fontweight="normal")
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(groups) - columns) : len(groups)]:
        axes.tick_params(labelbottom=True)
    return figure, [(axes, some) for axes, (_, some) in zip(panels, groups, strict=False)]


def _intervals(axes: Axes, ratios: Sequence[Mapping[str, Estimate]]) -> None:
    shown = [of for of in ratios if of]
    for place, (operation, (colour, marker)) in enumerate(OPERATIONS.items()):
        found = [of[operation] for of in shown if operation in of]
        for number, ratio in enumerate(found):
            x = place + APART * ((number + 0.5) / len(found) - 0.5)
            axes.plot([x, x], [ratio.low, ratio.high], color=colour, linewidth=1.4)
            axes.plot(x, ratio.median, marker, color=colour, markersize=4)


def _say_missing(axes: Axes, missing: Sequence[int], some: Sequence[int]) -> None:
    if missing:
        told = "no result" if len(missing) == len(some) else f"{len(missing)} of {len(some)}: no result"
        look: dict[str, Any] = {"ha": "left", "va": "top", "fontsize": "small", "color": INK}
        axes.text(0.04, 0.98, told, transform=axes.transAxes, **look)


def _label(figure: Figure, panels: Sequence[tuple[Axes, list[int]]], x: str, y: str) -> None:
    """Label the y axes together, and the x axis of each panel that has numbers below it."""
    figure.supylabel(y, fontsize="medium")
    for axes, _ in panels:
        if axes.xaxis.get_tick_params()["labelbottom"]:
            axes.set_xlabel(x)


def _left(arms: Sequence[str], counted: Sequence[Mapping[str, Sequence[int]]]) -> str:
    """Say how many files each connector leaves open after the last call, and at how many points."""
    parts = [
        f"{plain(arm)} leaves {numbers(course[arm][-1] for course in counted if arm in course)}"
        for arm in arms
    ]
    at = "At the one point" if len(counted) == 1 else f"At {len(counted)} points"
    return f"{at}, {', '.join([parts[0] + ' files open', *parts[1:]])}"


def _verdicts(ratios: Sequence[Mapping[str, Estimate]]) -> str:
    """Say how long an operation takes, and at how many points it is slower, or that is not shown."""
    parts = []
    for operation in OPERATIONS:
        found = [of[operation] for of in ratios if operation in of]
        medians = [ratio.median for ratio in found]
        if len(found) == 1:
            parts.append(f"{operation} {found[0]} ({speed(found[0])})")
        elif found:
            told = [speed(ratio) for ratio in found]
            counts = [f"{word} at {told.count(word)}" for word in (SLOWER, UNKNOWN) if word in told]
            span = f"{min(medians):.2f} to {max(medians):.2f}"
            where = f"{', '.join(counts)} of {len(found)}" if counts else f"no slower at all {len(found)}"
            parts.append(f"{operation} {span}, {where}")
    return "; ".join(parts)


def _told(panels: Sequence[tuple[Axes, list[int]]], what: str) -> str:
    several = (
        "a panel for each point"
        if all(len(some) == 1 for _, some in panels)
        else "a panel for each group of points"
    )
    return f"{several[:1].upper()}{several[1:]} shows {what}; the table below has the numbers of each point."
