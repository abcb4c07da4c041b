"""The figures of an object store say what their tables hold, also where no store could be started."""

from __future__ import annotations

import pandas as pd
import pytest
from kept_objects import counts, grown, turns

from hicache_nixl.lab import figures

pytestmark = pytest.mark.usefixtures("closed_figures")
NOTHING = pd.DataFrame()


def test_counts_tell_the_leak_in_files_and_the_registrations_in_objects():
    drawn = figures.object_counts(counts())
    assert drawn.title == (
        "After 21 calls: 672 storage descriptors with leaky in files and none with any lifetime in objects; there, leaky and "
        "try_finally leave 1344 registrations."
    )
    assert "Sockets: leaky in files: stays at 2" in drawn.alt


def test_a_leak_in_objects_is_not_called_none():
    assert "and 42 with any lifetime in objects" in figures.object_counts(counts(leaking=2)).title


def test_speed_compares_pooled_with_scoped_over_all_points():
    table = turns(ms_per_mib=0)  # only requests cost: 2 x 16 and 2 x 64 in place of one
    drawn = figures.object_speed(table)
    assert drawn.title.startswith(
        "In an object store, pooled is this many times as fast as scoped: 32 to 128 at sets"
    )
    assert (
        "pooled in objects does a set 64.0 [64.0, 64.0] and a get 64.0 [64.0, 64.0] times as fast"
        in drawn.alt
    )
    assert "1.00 [1.00, 1.00] times as fast as scoped with files" in drawn.alt


def test_speed_names_the_pages_with_which_pooled_is_no_faster():
    table = turns()
    large = (table.page_bytes == 262144) & (table.operation == "set")
    table.loc[large, "seconds"] = table["keys"][large] / 1e3
    title = figures.object_speed(table).title
    assert "of 16 KiB pages; 1 at sets and" in title
    assert title.endswith(" at gets of 256 KiB pages.")


def test_growth_says_how_much_more_is_moved_with_each_number_of_volume_servers_and_on_what():
    table = grown()
    most = (table.volumes == 3) & (table.clients == 8) & (table.operation == "get")
    table.loc[most, "pages_per_second"] *= 1.5
    assert figures.object_growth(table).title == (
        "With 1 volume server, 8 clients move 4 times as many pages as 1 in sets and 4 times in gets; with 3 of them, "
        "4 and 6 times; all on the 2 processors of this machine."
    )


def test_small_counts_have_ticks_below_and_above_ten():
    panels = figures.object_counts(counts()).figure.axes
    assert panels[1].get_yticks().tolist() == [0, 2, 5, 10, 20]
    assert panels[0].get_yticks().max() >= 672


@pytest.mark.parametrize(
    "draw", [figures.object_counts, figures.object_speed, figures.object_growth, figures.through_a_fault]
)
def test_without_a_store_a_figure_says_that_it_was_not_run(draw):
    assert draw(NOTHING).title == "Not run: no object store could be started."
