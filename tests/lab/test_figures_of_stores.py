"""The figures that compare stores: shared lines are told apart, and titles name what is compared."""

from __future__ import annotations

import pytest
from measured import BOUNDED, bench_times
from test_figures import DRAWN, misplaced

from hicache_nixl.lab import figures
from hicache_nixl.lab.bench.results import medians, ratios
from hicache_nixl.lab.figures.look import STYLES

pytestmark = pytest.mark.usefixtures("closed_figures")


class TestThroughputs:
    def test_without_the_release_pooled_is_compared_with_scoped(self):
        times = bench_times(scoped=3.0).query("arm not in ['sglang==0.5.23', 'sglang-file']")
        title = figures.throughputs(medians(times), ratios(times)).title
        told = "does a set 3.00 [3.00, 3.00] times and a get 3.00 [3.00, 3.00] times as fast as scoped."
        assert title == f"With pages of 64 KiB, pooled {told}"


class TestBounded:
    def test_a_label_names_all_connectors_of_its_line_with_their_last_count(self):
        told = {text.get_text() for axes in DRAWN["bounded"]().axes for text in axes.texts}
        assert "leaky, SGLang 0.5.11: 2572" in told
        assert "leaky, try_finally, SGLang 0.5.11, 0.5.12: 5124" in told
        assert "scoped, pooled, SGLang 0.5.13.post1, 0.5.23: 4" in told

    def test_a_shared_line_has_dashes_in_the_colour_of_each_connector(self):
        _, registered = DRAWN["bounded"]().axes
        rising = [line for line in registered.lines if line.get_ydata()[-1] == 5124]
        assert {line.get_color() for line in rising} == {STYLES["leaky"][0], STYLES["try_finally"][0]}
        assert all(line.is_dashed() for line in rising)

    def test_connectors_that_differ_once_have_lines_of_their_own(self):
        table = BOUNDED.copy()
        table.loc[(table.arm == "scoped") & (table.call == 7), "open_fds"] += 1
        texts_of = [text.get_text() for text in figures.bounded(table).figure.axes[0].texts]
        assert "scoped: 12" in texts_of

    def test_labels_of_lines_that_are_close_cover_neither_each_other(self):
        table = BOUNDED.assign(open_fds=BOUNDED.open_fds.mask(BOUNDED.arm == "scoped", 5))
        table["open_fds"] = table.open_fds.mask(table.arm == "try_finally", 4)
        assert misplaced(figures.bounded(table).figure) == ([], [])
