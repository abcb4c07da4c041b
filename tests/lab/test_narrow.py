"""Figures on a phone: one column of panels, with text that can be read at 390 pixels."""

from __future__ import annotations

from itertools import pairwise

import matplotlib
import pandas as pd
import pytest
from matplotlib.text import Text
from measured import PR
from test_figures import MEASURED, RUNS, TITLE, misplaced

from hicache_nixl.lab import figures
from hicache_nixl.lab.figures.narrow import narrow

matplotlib.use("Agg")

pytestmark = pytest.mark.usefixtures("closed_figures")
PAGE = 390 - 2 * 16  # pixels between the margins of the page


LONG = [f"sglang==0.5.12, io_uring, page_bytes {2**power}, not direct, set" for power in range(20)]
INTERVALS = pd.DataFrame({"time_ratio": [1.0] * 20, "low": [0.3] * 20, "high": [2.0] * 20})
PANELS = pd.concat([PR.assign(kind=f"page_first_direct {number}") for number in range(6)])
PER_CALL = INTERVALS.rename(columns={"time_ratio": "per_call"}).assign(
    unit=["registrations, per call"] * 10 + ["\u00b5s per get beyond scoped, per call"] * 10
)
OF_TWO = {  # with labels as long, panels and rows as many as comparisons of runs have
    "panels": lambda: figures.counts_of_two(PANELS, PANELS, "call", "open_fds", RUNS, TITLE, "kind"),
    "rows": lambda: figures.intervals_of_two(INTERVALS, INTERVALS, LONG, "time_ratio", RUNS, TITLE),
    "units": lambda: figures.intervals_of_two(PER_CALL, PER_CALL, LONG, "per_call", RUNS, TITLE),
    "ratios": lambda: figures.ratios_of_two(INTERVALS, LONG, RUNS, TITLE),
    "few ratios": lambda: figures.ratios_of_two(INTERVALS[:2], ["size", "rename"], RUNS, TITLE),
}
DRAWN = {name: lambda draw=draw: draw().figure for name, draw in MEASURED.items()} | OF_TWO


@pytest.mark.parametrize("name", DRAWN)
class TestNarrow:
    def test_its_smallest_text_has_nine_pixels(self, name):
        figure = narrow(DRAWN[name]())
        pixels = PAGE / figure.get_figwidth() / 72
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) * pixels > 9

    def test_its_panels_stand_below_each_other(self, name):
        figure = narrow(DRAWN[name]())
        figure.canvas.draw()
        boxes = [axes.get_window_extent() for axes in figure.axes]
        assert all(below.y1 <= above.y0 for above, below in pairwise(boxes))

    def test_every_text_lies_within_the_picture_and_covers_no_other(self, name):
        assert misplaced(narrow(DRAWN[name]())) == ([], [])
