"""Figures on a phone: one column of panels, with text that can be read at 390 pixels."""

from __future__ import annotations

from itertools import pairwise

import matplotlib
import pytest
from matplotlib.text import Text
from test_figures import DRAWN, MEASURED, misplaced

from hicache_nixl.lab.figures.narrow import narrow

matplotlib.use("Agg")

pytestmark = pytest.mark.usefixtures("closed_figures")
PAGE = 390 - 2 * 16  # pixels between the margins of the page


@pytest.mark.parametrize("name", MEASURED)
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
