"""The figure that watch writes itself, of one process or several."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from test_verdict import FLAT, LEAKING, sample, watched

from hicache_nixl.watch.figure import servers

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(plt.Text))


def test_one_process_has_its_answer_as_title_and_its_counts_as_steps():
    figure = servers({"7 (python)": watched(LEAKING)})
    (axes,) = figure.axes
    assert figure.get_suptitle().startswith("Leak: storage files grow by 120 per minute")
    assert axes.get_title(loc="left") == "process 7 (python)"
    assert axes.lines[0].get_ydata().tolist() == [2 * second for second in range(60)]
    assert "storage files (line): now 118, 120 per minute [119, 121]" in texts(figure)
    assert "all descriptors (dots): now 158" in texts(figure)
    assert "RLIMIT_NOFILE = 1000, far above the axis" in texts(figure)


def test_kinds_that_never_change_are_not_drawn_and_those_that_do_are():
    changing = watched(sample(at, 5, pipe=at % 3, eventfd=7) for at in range(60))
    drawn = texts(servers({"7": changing}))
    assert "pipes (dashes)" in drawn
    assert "eventfds" not in drawn


def test_several_processes_have_a_panel_each_and_the_leaking_ones_are_named():
    figure = servers({"7 (a)": watched(LEAKING), "8 (b)": watched(FLAT)})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["process 7 (a)", "process 8 (b)"]
    assert figure.get_suptitle() == "1 of 2 processes leak: 7 (a)"


def test_a_limit_that_is_near_is_drawn():
    figure = servers({"7": watched(sample(at, 2 * at, limit=200) for at in range(60))})
    assert "RLIMIT_NOFILE = 200" in texts(figure)
    assert "far above" not in texts(figure)
