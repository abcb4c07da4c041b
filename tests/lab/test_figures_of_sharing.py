"""The figure of a store through a fault says what is lost, and marks the kill and the return."""

from __future__ import annotations

import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from shared_store import THROUGH, through

from hicache_nixl.lab import figures

pytestmark = pytest.mark.usefixtures("closed_figures")


def test_the_title_says_what_is_lost_what_fails_meanwhile_and_how_long_a_call_takes():
    told = (
        "pooled, two copies: 0 of 320 pages are lost; until the volume server is back, no page fails, and a call takes "
        "at most 0.05 s; pooled, one copy: 0 of 320 pages are lost; until the volume server is back, up to 16 pages "
        "cannot be read, and a call takes at most 4 s."
    )
    assert figures.through_a_fault(THROUGH).title == told[0].upper() + told[1:]


def test_pages_that_stay_lost_are_counted():
    table = through("000", unread=16)
    table.iloc[-1, table.columns.get_loc("failed")] = 7
    assert "7 of 320 pages are lost" in figures.through_a_fault(table).title


def test_sets_that_fail_meanwhile_are_counted():
    table = through("000")
    table.loc[(table.away != "") & (table.operation == "set"), "failed"] = 8
    title = figures.through_a_fault(table).title
    assert "until the volume server is back, 40 answers are False, and a call takes" in title


def test_other_bytes_are_those_of_loaded_pages():
    table = through("000")
    table.loc[table.operation == "set", "wrong"] = 1
    assert "0 loaded pages have other bytes" in figures.through_a_fault(table).alt


def test_without_the_endpoint_it_is_named():
    title = figures.through_a_fault(through("000", "S3", unread=320)).title
    assert "until S3 is back, up to 320 pages cannot be read" in title


def test_the_kill_and_the_return_are_marked_where_their_calls_began():
    figure = figures.through_a_fault(THROUGH).figure
    for axes in figure.axes:
        marks = {
            text.get_text(): text.xy[0]
            for text in axes.findobj(Text)
            if text.get_text() in ("killed", "back")
        }
        assert marks == {"killed": 5.0, "back": 10.0}
        assert axes.get_yscale() == "log"


def test_the_time_between_them_is_shaded_and_named():
    figure = figures.through_a_fault(THROUGH).figure
    for axes in figure.axes:
        (band,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
        assert (band.get_x(), band.get_width()) == (5.0, 5.0)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()].count("volume server away") == 1
