"""What every figure has in common: colours, line styles, names."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_OKABE_ITO: Any = mpl.color_sequences["okabe_ito"]
BEFORE, AFTER, SCOPED, POOLED, INK = (*(_OKABE_ITO[place] for place in (6, 5, 3, 7)), "#333333")
STYLES = {  # a release has the colour of the lifetime that stands for it, and a style of its own
    "leaky": (BEFORE, "-"),
    "try_finally": (AFTER, "--"),
    "scoped": (SCOPED, "-"),
    "pooled": (POOLED, "-"),
    "sglang==0.5.11": (BEFORE, ":"),
    "sglang==0.5.12": (AFTER, ":"),
    "sglang==0.5.13.post1": (SCOPED, ":"),
    "sglang==0.5.23": (SCOPED, "-."),
}
NAMES = {"leaky": "before (leaky)", "try_finally": "after (try_finally)"}
LETTERS = 12  # of a bold title on an inch
NOTE = "note"  # marks a text at the right end of a panel
LOOK: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "figure.titlesize": "medium",
    "figure.titleweight": "bold",
    "font.size": 9,
    "legend.frameon": False,
    "savefig.facecolor": "white",
}


def arms(times: pd.DataFrame) -> list[str]:
    """Return the arms of a table of times, in the order of ``STYLES``."""
    return [arm for arm in STYLES if arm in set(times.arm)]


def name(connector: str) -> str:
    """Return what a connector is called in a figure."""
    return NAMES.get(connector, plain(connector))


def plain(connector: str) -> str:
    """Return the name of a connector in a sentence.

    Examples
    --------
    >>> plain("sglang==0.5.12"), plain("leaky")
    ('SGLang 0.5.12', 'leaky')
    """
    return connector.replace("sglang==", "SGLang ")


def heading(figure: Figure, title: str) -> None:
    """Write the title of a figure above its panels, on as many lines as its width needs."""
    width = int(figure.get_figwidth() * LETTERS)
    figure.suptitle("\n".join(textwrap.wrap(title, width)), x=0.01, ha="left")


def step(axes: Axes, values: Sequence[float], **look: Any) -> None:
    """Draw a count that holds from each call to the next, the last one for a while too."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.step([*range(len(values)), len(values) - 0.4], [*values, values[-1]], where="post", **look)


def limit_line(axes: Axes, limit: int, at: str = "left") -> None:
    """Draw RLIMIT_NOFILE as a dashed line with its value at the left or right end."""
    axes.axhline(limit, color=INK, linestyle="--", linewidth=1)
    axes.annotate(
        f"RLIMIT_NOFILE = {limit}",
        (0.01 if at == "left" else 1, limit),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha=at,
        color=INK,
        fontsize="small",
    )


def rings(
    axes: Axes,
    xs: Sequence[float],
    counts: Sequence[int],
    shifts: Sequence[tuple[int, int, str]],
    labels: Sequence[str] | None = None,
) -> None:
    """Draw what the PR recorded as rings with labels; a shift is the offset of a label and its alignment."""
    look: dict[str, Any] = {"markersize": 9, "markerfacecolor": "none", "markeredgecolor": INK, "zorder": 3}
    axes.plot(xs, counts, "o", **look)
    labels = labels or [f"PR: {count}" for count in counts]
    for x, count, (right, up, align), label in zip(xs, counts, shifts, labels, strict=True):
        axes.annotate(label, (x, count), xytext=(right, up), textcoords="offset points", ha=align, color=INK)
