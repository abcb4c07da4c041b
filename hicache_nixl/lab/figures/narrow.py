"""Figures for a phone: the same figure with its panels below each other, so that its text can be read at 390 pixels."""

from __future__ import annotations

import textwrap
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.legend import Legend
from matplotlib.text import Annotation, Text
from PIL import Image

from .look import LOOK, NOTE, heading

DPI, COLOURS = 150, 64
WIDTH = 4.0  # inches; text of 9 points has 11 pixels where this is 358 pixels wide
PANEL = 2.5  # inches that a panel of a row is high when it stands alone
LETTERS = 15  # of a label on an inch
ROW = 26  # letters of the label of a row
LINE, GAP = 0.16, 0.06  # inches for a line of such a label, and between two labels
TURNED = 0.9  # inches for labels that stand upright
LEGEND = 0.4  # inches for a legend below
RAISED = 18  # points that a note stands above its line
IN_A_ROW = 2  # entries of a legend


def save_both(figure: Figure, alt: str, wide: Path, narrow: Path) -> None:
    """Save a figure as it is, and narrow, and close it."""
    figure.savefig(wide, dpi=DPI, metadata={"Description": alt})
    save_narrow(figure, narrow)
    plt.close(figure)


def save_narrow(figure: Figure, path: Path) -> None:
    """Make a figure narrow and save it with few colours, since a page carries it beside the wide one."""
    narrow(figure).savefig(path, dpi=DPI)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(COLOURS)
    small.save(path, optimize=True, dpi=(DPI, DPI))


@mpl.rc_context(LOOK)
def narrow(figure: Figure) -> Figure:
    """Change a figure to the width of a phone: a row of panels becomes a column, and title and legends take more lines."""
    panels = figure.axes
    height = figure.get_figheight()
    spec = panels[0].get_subplotspec()
    grid = None if spec is None else spec.get_gridspec()
    if grid is not None and grid.ncols > 1:
        column = GridSpec(len(panels), 1, figure=figure)
        for place, axes in enumerate(panels):
            axes.set_subplotspec(column[place])
            axes.tick_params(labelleft=True, labelbottom=True)
            axes.set_ylabel(axes.get_ylabel() or panels[0].get_ylabel())
            if axes.get_shared_x_axes().joined(axes, panels[-1]):
                axes.set_xlabel(axes.get_xlabel() or panels[-1].get_xlabel())
        height = max(PANEL, height * 0.8 / grid.nrows) * len(panels)
    for legend in list(figure.legends):
        _in_rows(figure, legend)
    height += sum(_wrap_rows(axes) for axes in panels)
    figure.set_size_inches(WIDTH, height + LEGEND * len(figure.legends))
    heading(figure, " ".join(figure.get_suptitle().split()))
    figure.canvas.draw()
    turned = [_turn(axes) for axes in panels]
    figure.set_size_inches(WIDTH, figure.get_figheight() + TURNED * any(turned))
    for axes in panels:
        _wrap(axes)
    return figure


def _in_rows(figure: Figure, legend: Legend) -> None:
    """Replace a legend below by one with few entries in a row; ``set_ncols`` changes nothing of one that exists."""
    labels = [text.get_text() for text in legend.get_texts()]
    handles = [handle for handle in legend.legend_handles if handle is not None]
    legend.remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=IN_A_ROW, fontsize="small")


def _wrap_rows(axes: Axes) -> float:
    """Write the labels of rows on as many lines as they need; return the inches that the panel must be higher for it."""
    labels = [textwrap.fill(label.get_text(), ROW) for label in axes.get_yticklabels()]
    lines = max((label.count("\n") for label in labels), default=0) + 1
    if lines == 1:
        return 0
    axes.set_yticks(axes.get_yticks(), labels)
    return max(0, len(labels) * (lines * LINE + GAP) - axes.bbox.height / axes.figure.dpi)


def _wrap(axes: Axes) -> None:
    """Write the label of the x axis on as many lines as the panel needs; raise a note at its end above other labels."""
    letters = int(axes.bbox.width / axes.figure.dpi * LETTERS)
    lines = [part for line in axes.get_xlabel().splitlines() for part in textwrap.wrap(line, letters)]
    axes.set_xlabel("\n".join(lines))
    for text in axes.texts:
        if text.get_gid() == NOTE and isinstance(text, Annotation):
            text.xyann = (0, RAISED)


def _turn(axes: Axes) -> bool:
    """Turn the labels below or above a panel that cover each other; return whether they did."""
    labels = [label for label in axes.get_xticklabels() if label.get_visible() and label.get_text()]
    covered = any(_touch(*pair) for pair in pairwise(labels))
    for label in labels if covered else ():
        label.set_rotation(90)
    return covered


def _touch(one: Text, other: Text) -> bool:
    return bool(one.get_window_extent().x1 > other.get_window_extent().x0 - 2)
