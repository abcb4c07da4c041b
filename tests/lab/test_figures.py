"""Every figure draws what is in its tables, and its title, labels and alt text follow from them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import matplotlib
import pandas as pd
import pytest
from kept_objects import OBJECTS
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from measured import (
    BASELINE,
    BENCHMARK,
    BENCHMARK_TIMES,
    BOTH,
    COST,
    CREATED,
    FACTS,
    FAULTS,
    INTO_LIMIT,
    LAW,
    LIMIT,
    PAIR,
    PR,
    PR_FLAT,
    RATIOS,
    RECORDED,
    REPLAYED,
    SERVER,
    SLOWER,
    STORES,
    TIMES,
    bench_times,
    timed,
)
from served import SERVED
from shared_store import SHARED

from hicache_nixl.lab import figures
from hicache_nixl.lab.bench.results import medians, ratios
from hicache_nixl.lab.worker.schedule import recorded_log
from hicache_nixl.watch.figure import watched
from hicache_nixl.watch.verdict import Watch

matplotlib.use("Agg")

TITLE = "The answer of this figure"
RUNS = ("ssd", "nvme")
pytestmark = pytest.mark.usefixtures("closed_figures")


def drawn_server(table: pd.DataFrame) -> Figure:
    return watched(recorded_log(), table, Watch.of(table), TITLE)


MEASURED: dict[str, Callable[[], figures.Drawn]] = {  # with a title and an alt text of their own
    "growth": lambda: figures.growth(PR, RECORDED),
    "law": lambda: figures.law(LAW),
    "end": lambda: figures.end(INTO_LIMIT, LIMIT),
    "hero": lambda: figures.hero(INTO_LIMIT, PR_FLAT, RECORDED, LIMIT),
    "two_counts": lambda: figures.two_counts(BOTH, "open_fds", "open descriptors"),
    "faults": lambda: figures.faults({"leaky": FAULTS, "try_finally": FAULTS.assign(most_fds=0)}),
    "second_leak": lambda: figures.second_leak(
        {"try_finally": SLOWER}
        | dict.fromkeys(("scoped", "sglang==0.5.12", "sglang==0.5.13.post1"), SLOWER.assign(registrations=1))
    ),
    "behaviours": lambda: figures.behaviours(FACTS),
    "creation": lambda: figures.creation(CREATED, "ext4"),
    "benchmarks": lambda: figures.benchmarks(BENCHMARK_TIMES, BENCHMARK, PAIR),
    "pairs_and_ratios": lambda: figures.pairs_and_ratios(TIMES, RATIOS, "page_bytes", "set"),
    "over_calls": lambda: figures.over_calls(TIMES),
    "latency": lambda: figures.latency(TIMES),
    "replays": lambda: figures.replays(REPLAYED, "pr24671", LIMIT),
    "throughputs": lambda: figures.throughputs(medians(bench_times()), ratios(bench_times())),
    "cost": lambda: figures.cost(
        pd.concat([COST, COST.assign(before="sglang==0.5.11", after="sglang==0.5.12")])
    ),
    **STORES,
    **OBJECTS,
    **SERVED,
    **SHARED,
    "served_watch": lambda: figures.served_watch(SERVER),
}
TITLED: dict[str, Callable[[], Figure]] = {  # with a title that their caller works out
    "steps": lambda: figures.steps(INTO_LIMIT, BASELINE, LIMIT, "try_finally", TITLE),
    "counts_of_two": lambda: figures.counts_of_two(PR, PR_FLAT, "call", "open_fds", RUNS, TITLE),
    "intervals_of_two": lambda: figures.intervals_of_two(
        RATIOS, RATIOS.assign(unit="us"), list("abcd"), "time_ratio", RUNS, TITLE
    ),
    "ratios_of_two": lambda: figures.ratios_of_two(RATIOS, list("abcd"), RUNS, TITLE),
    "watched": lambda: drawn_server(SERVER),
}
DRAWN = {**{name: lambda draw=draw: draw().figure for name, draw in MEASURED.items()}, **TITLED}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def lines_with(figure: Figure, marker: str) -> list[Line2D]:
    return [line for line in figure.findobj(Line2D) if line.get_marker() == marker and len(line.get_xdata())]


def rendered(figure: Figure) -> list[tuple[str, Bbox]]:
    """Draw a figure and return its visible texts with the places that they take."""
    figure.canvas.draw()
    found = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    ticks = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.majorTicks, *axis.minorTicks)
        for label in (tick.label1, tick.label2)
    }
    shown = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis._update_ticks()
        for label in (tick.label1, tick.label2)
        if label.get_visible()
    }
    kept = [text for text in found if text not in ticks or text in shown]
    return [(text.get_text(), text.get_window_extent()) for text in kept]


def misplaced(figure: Figure) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the texts that are not wholly within the picture, and the pairs that cover each other."""
    shown, whole = rendered(figure), figure.bbox.padded(1)
    outside = [
        text for text, box in shown if not all(map(whole.contains, *zip(box.min, box.max, strict=True)))
    ]
    covered = [
        (one, other)
        for (one, box), (other, place) in combinations(shown, 2)
        if (common := Bbox.intersection(box, place)) and min(common.size) > 2
    ]
    return outside, covered


class TestEveryFigure:
    def test_every_figure_of_the_lab_is_drawn_here(self):
        assert {*figures.__all__, "watched"} - {"Drawn"} == set(DRAWN)

    @pytest.mark.parametrize("name", DRAWN)
    def test_every_text_lies_within_the_picture_and_covers_no_other(self, name):
        assert misplaced(DRAWN[name]()) == ([], [])

    @pytest.mark.parametrize("name", DRAWN)
    def test_every_axis_that_counts_something_says_what(self, name):
        for axes in DRAWN[name]().axes:
            shared = axes.get_shared_x_axes().get_siblings(axes)
            assert any(one.get_xlabel() for one in shared)

    @pytest.mark.parametrize("name", DRAWN)
    def test_drawing_changes_nothing_for_the_figures_of_others(self, name):
        before = dict(matplotlib.rcParams)
        DRAWN[name]()
        assert dict(matplotlib.rcParams) == before

    @pytest.mark.parametrize("name", MEASURED)
    def test_the_alt_text_says_what_the_title_says(self, name):
        drawn = MEASURED[name]()
        assert len(drawn.title) > 20
        numbers = [word for word in drawn.title.rstrip(".").replace(",", " ").split() if word.isdigit()]
        assert [number for number in numbers if number not in drawn.alt] == []


class TestGrowth:
    def test_rings_stand_at_the_recorded_points_with_their_counts(self):
        figure = DRAWN["growth"]()
        (rings,) = lines_with(figure, "o")
        assert list(rings.get_xdata()) == [1, 10, 21]
        assert list(rings.get_ydata()) == [167, 1351, 4167]
        assert {"PR: 167", "PR: 1351", "PR: 4167"} <= set(texts(figure))

    def test_the_curve_begins_at_the_baseline_and_ends_at_the_last_count(self):
        steps = max(DRAWN["growth"]().axes[0].lines, key=lambda line: len(line.get_xdata()))
        assert steps.get_ydata()[0] == BASELINE
        assert steps.get_ydata()[-1] == 4167
        assert steps.get_drawstyle() == "steps-post"

    def test_a_released_connector_is_drawn_as_dots_that_are_named(self):
        figure = figures.growth(PR, RECORDED, {"sglang==0.5.11": PR}).figure
        assert lines_with(figure, ".")[0].get_ydata().tolist() == PR.open_fds.tolist()
        assert any("SGLang 0.5.11, as released" in text for text in texts(figure))


class TestLimit:
    @pytest.mark.parametrize("name", ["end", "hero"])
    def test_the_limit_is_a_dashed_line_with_its_value(self, name):
        figure = DRAWN[name]()
        assert f"RLIMIT_NOFILE = {LIMIT}" in texts(figure)
        dashed = [line for line in figure.axes[0].lines if set(line.get_ydata()) == {LIMIT}]
        assert [line.get_linestyle() for line in dashed] == ["--"]

    @pytest.mark.parametrize("name", ["end", "hero"])
    def test_a_cross_marks_the_first_emfile_and_names_its_call(self, name):
        first = INTO_LIMIT[INTO_LIMIT.errno == 24].iloc[0]
        figure = DRAWN[name]()
        (cross,) = lines_with(figure, "x")
        assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (first.call, first.open_fds)
        assert f"EMFILE, call {first.call}" in texts(figure)

    @pytest.mark.parametrize(
        "draw",
        [lambda: figures.end(PR, 20000), lambda: figures.hero(PR, PR_FLAT, RECORDED, 20000)],
        ids=["end", "hero"],
    )
    def test_there_is_no_cross_where_the_limit_was_not_met(self, draw):
        figure = draw().figure
        assert lines_with(figure, "x") == []
        assert not any(text.startswith("EMFILE") for text in texts(figure))
        assert "RLIMIT_NOFILE = 20000" in texts(figure)

    def test_the_share_of_correct_pages_falls_to_nothing(self):
        shares = [line.get_ydata() for line in DRAWN["end"]().axes[1].lines]
        assert {float(share) for line in shares for share in line} == {0.0, 1.0}


class TestHero:
    def test_before_and_after_share_one_linear_axis_from_0(self):
        left, right = DRAWN["hero"]().axes
        assert [axes.get_title(loc="left") for axes in (left, right)] == [
            "before (leaky)",
            "after (try_finally)",
        ]
        assert left.get_ylim() == right.get_ylim()
        assert left.get_ylim()[0] == 0
        assert left.get_yscale() == "linear"

    def test_each_panel_draws_its_table(self):
        left, right = DRAWN["hero"]().axes
        for axes, table in ((left, INTO_LIMIT), (right, PR_FLAT)):
            steps = max(axes.lines, key=lambda line: len(line.get_xdata()))
            assert list(steps.get_ydata())[1:-1] == table.open_fds.tolist()


class TestComparisons:
    def test_two_counts_are_labelled_directly(self):
        assert {"before (leaky)", "after (try_finally)"} <= set(texts(DRAWN["two_counts"]()))

    def test_the_label_of_a_flat_line_keeps_clear_of_the_note_about_its_origin(self):
        places = dict(rendered(DRAWN["two_counts"]()))
        (note,) = [box for text, box in places.items() if text.startswith("135 are open")]
        assert note.x0 - places["after (try_finally)"].x1 > 30

    def test_two_counts_draws_the_column_that_it_is_given(self):
        figure, _ = figures.two_counts(BOTH, "registrations", "live registrations")
        assert figure.axes[0].get_ylabel() == "live registrations"
        assert figure.axes[0].lines[0].get_ydata()[-1] == PR.registrations.iloc[-1]

    def test_faults_names_every_step_and_kind_and_draws_the_most_that_is_left(self):
        figure = DRAWN["faults"]()
        assert {"open: error", "post: interrupt"} <= set(texts(figure))
        drawn = [list(line.get_xdata()) for line in figure.axes[0].lines]
        assert drawn == [[0, 16], [0, 0]]

    def test_second_leak_has_a_panel_for_each_thing_that_grows(self):
        axes = DRAWN["second_leak"]().axes
        assert [panel.get_title(loc="left") for panel in axes] == [
            "live registrations",
            "get: ms longer than with scoped",
            "MiB of memory since call 1",
        ]
        assert list(axes[0].lines[0].get_ydata()) == SLOWER.registrations.tolist()

    def test_behaviours_has_a_cell_for_each_fact_coloured_by_what_it_is(self):
        axes = DRAWN["behaviours"]().axes[0]
        cells = {text.get_text() for text in axes.texts}
        assert {"16", "32", "7", "yes", "no"} <= cells
        assert len({patch.get_facecolor() for patch in axes.patches}) == 2

    def test_benchmarks_name_every_point_and_both_arms(self):
        figure = DRAWN["benchmarks"]()
        points = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert points == [
            f"{cache}, libaio, {size} KiB" for cache in ("page cache", "O_DIRECT") for size in (4, 64)
        ]
        assert "time with try_finally / time with leaky" in figure.axes[1].get_xlabel()

    def test_every_pair_is_a_line_from_before_to_after(self):
        left = DRAWN["pairs_and_ratios"]().axes[0]
        pairs = [line for line in left.lines if line.get_color() == "0.75"]
        assert len(pairs) == 2 * TIMES.pair.nunique()
        assert all(line.get_xdata()[1] > line.get_xdata()[0] for line in pairs)

    def test_ratios_have_their_points_and_intervals_beside_the_line_of_no_difference(self):
        right = DRAWN["pairs_and_ratios"]().axes[1]
        assert [label.get_text() for label in right.get_yticklabels()] == ["4 KiB", "64 KiB"]
        assert "95 % interval" in right.get_xlabel()
        assert any(set(line.get_xdata()) == {1} for line in right.lines)
        assert right.get_xscale() == "log"
        shown = next(line for line in right.lines if line.get_marker() == "D")
        assert list(shown.get_xdata()) == RATIOS[RATIOS.operation == "set"].time_ratio.tolist()

    def test_throughput_over_the_calls_has_a_point_per_call_and_starts_at_zero(self):
        figure = DRAWN["over_calls"]()
        for axes, operation in zip(figure.axes, ("set", "get"), strict=True):
            drawn = sum(len(line.get_xdata()) for line in axes.lines)
            assert drawn == (TIMES.operation == operation).sum()
            assert axes.get_ylim()[0] == 0

    @pytest.mark.parametrize(
        ("repeats", "tail", "what"), [(12, 1.0, "slowest\nof 24"), (100, 0.99, "p99")], ids=["few", "many"]
    )
    def test_latency_has_a_percentile_only_where_there_are_calls_for_it(self, repeats, tail, what):
        figure = figures.latency(timed(repeats=repeats)).figure
        assert {"median", what, "set", "get"} <= set(texts(figure))
        assert ("p99" in texts(figure)) is (what == "p99")
        assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
        for axes in figure.axes:
            marked = sorted({float(line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"})
            assert marked == [0.5, tail]


class TestWatched:
    def test_the_points_of_the_pr_stand_at_the_seconds_of_its_log(self):
        (rings,) = lines_with(DRAWN["watched"](), "o")
        assert list(rings.get_xdata()) == [0, 68, 158]
        assert list(rings.get_ydata()) == [167, 1351, 4167]

    def test_both_panels_share_one_scale_from_0(self):
        left, right = DRAWN["watched"]().axes
        assert left.get_ylim() == right.get_ylim()
        assert left.get_ylim()[0] == 0

    def test_all_descriptors_and_the_storage_files_are_drawn_with_counts_and_growth(self):
        figure = DRAWN["watched"]()
        storage, every, _ = figure.axes[1].lines
        assert every.get_ydata().tolist() == SERVER.open_fds.tolist()
        assert storage.get_ydata().tolist() == SERVER.storage_fds.tolist()
        told = ("storage files: 1888 at the end", "1920 per minute [1919, 1921]")
        assert {*told, "dots: all descriptors, 1928 at the end"} <= set(texts(figure))

    def test_without_a_storage_folder_the_regular_files_are_drawn(self):
        figure = drawn_server(SERVER.assign(storage_fds=pd.NA, regular=7))
        assert set(figure.axes[1].lines[0].get_ydata()) == {7}
        assert "regular files: 7 at the end" in texts(figure)

    def test_a_short_watch_says_that_it_has_no_growth(self):
        figure = drawn_server(SERVER[:5])
        assert "too few samples to estimate growth" in texts(figure)

    def test_a_near_limit_is_a_dashed_line_with_its_value(self):
        figure = DRAWN["watched"]()
        assert f"RLIMIT_NOFILE = {LIMIT}" in texts(figure)
        dashed = [line for line in figure.axes[1].lines if set(line.get_ydata()) == {LIMIT}]
        assert [line.get_linestyle() for line in dashed] == ["--"]

    @pytest.mark.parametrize(
        ("limit", "told"),
        [(2**20, "RLIMIT_NOFILE = 1048576, far above the axis"), (pd.NA, "no RLIMIT_NOFILE")],
    )
    def test_a_limit_far_above_or_none_is_said_and_leaves_the_scale_alone(self, limit, told):
        figure = drawn_server(SERVER.assign(limit=limit))
        assert told in texts(figure)
        assert figure.axes[0].get_ylim()[1] < 10_000


class TestTwoRuns:
    @pytest.mark.parametrize("name", ["counts_of_two", "intervals_of_two"])
    def test_both_runs_are_named(self, name):
        assert set(RUNS) <= set(texts(DRAWN[name]()))

    def test_both_counts_are_drawn_the_first_below_the_second(self):
        first, second = DRAWN["counts_of_two"]().axes[0].lines
        assert list(first.get_ydata()) == PR.open_fds.tolist()
        assert list(second.get_ydata()) == PR_FLAT.open_fds.tolist()
        assert first.get_linewidth() > second.get_linewidth()

    def test_each_connector_has_a_panel(self):
        table = pd.concat(
            [PR.assign(connector=name) for name in ("leaky", "scoped", "sglang==0.5.11", "x", "y")]
        )
        figure = figures.counts_of_two(table, table, "call", "open_fds", RUNS, TITLE, "connector")
        assert [axes.get_title(loc="left") for axes in figure.axes] == [
            "before (leaky)",
            "scoped",
            "SGLang 0.5.11",
            "x",
            "y",
        ]

    def test_each_unit_has_a_panel_with_its_own_scale(self):
        slopes = pd.DataFrame(
            {"per_call": [128.0, 4.0], "low": [128, 3.0], "high": [128, 5.0], "unit": ["fds", "us"]}
        )
        figure = figures.intervals_of_two(slopes, slopes, ["a", "b"], "per_call", RUNS, TITLE)
        assert [axes.get_xlabel() for axes in figure.axes] == ["fds", "us"]
        assert figure.axes[1].get_xlim()[1] < 10

    def test_twice_and_half_are_equally_far_from_one(self):
        axes = DRAWN["ratios_of_two"]().axes[0]
        assert axes.get_xscale() == "log"
