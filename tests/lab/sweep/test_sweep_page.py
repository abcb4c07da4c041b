"""The page of a sweep, of one point and of two hundred: panels, claims that do not hold everywhere, hosts that differ."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from tiny_sweeps import begun

from hicache_nixl.lab.figures.sweeps import MOST_PANELS, costs, left_open, panels_of
from hicache_nixl.lab.statistics import Estimate
from hicache_nixl.lab.sweep import page
from hicache_nixl.lab.sweep.grid import Grid
from hicache_nixl.lab.sweep.measures import Measured, as_table, elsewhere
from hicache_nixl.lab.sweep.page import write_sweep_page
from hicache_nixl.lab.sweep.record import Sweep

QUEUES = ("libaio", "io_uring")
LEFT = {"leaky": [0, 32, 64], "try_finally": [0, 0, 0]}


def ledger(**verdicts: str) -> pd.DataFrame:
    rows = [
        {
            "notebook": "03_x",
            "cell": "4",
            "id": name,
            "sentence": f"About {name}.",
            "measured": "7",
            "verdict": said,
        }
        for name, said in verdicts.items()
    ]
    return pd.DataFrame(rows)


def of_hosts(folder: Path, count: int) -> Sweep:
    grid = Grid(notebooks=("03",), parameters={"queue": QUEUES} if count > 1 else {})
    sweep = begun(folder, grid, ["03_x"], [f"node{number}" for number in range(count)])
    for point in sweep.points.values():
        point.state, point.verdict, point.seconds = "ended", "2 of 2 claims hold", 3.0
    return sweep


def measured(sweep: Sweep) -> list[Measured]:
    """Return points of which those on io_uring are slower, and one of them has failed."""
    found = []
    for number, point in enumerate(sweep.points.values()):
        place = {"host": point.host, **point.values} if len(sweep.points) > 1 else {}
        slow = point.values.get("queue") == "io_uring"
        if number == 3:
            point.state, point.reason = "failed", "plugin POSIX cannot be created"
            found.append(
                Measured(point, place, {}, {}, ledger().reindex(columns=["notebook", "id", "verdict"]))
            )
            continue
        ratio = Estimate(1.2, 1.1, 1.3, 9) if slow else Estimate(1.0, 0.97, 1.02, 9)
        claims = ledger(cost_set="fails" if slow else "holds", flat="holds")
        found.append(Measured(point, place, LEFT, {"cost_set": ratio, "cost_get": ratio}, claims))
    return found


@pytest.mark.parametrize("count", [1, 100], ids=["one point", "200 points"])
def test_it_is_written_with_both_forms_of_each_figure(folder, monkeypatch, count):
    sweep = of_hosts(folder, count)
    monkeypatch.setattr(page, "measured", measured)
    text = write_sweep_page(sweep).read_text()
    assert {path.name for path in (folder / "figures").glob("*.png")} == {"left_open.png", "cost_fix.png"}
    assert len(list((folder / "figures/narrow").glob("*.png"))) == 2
    assert len(re.findall(r'<img src="data:image/png[^>]*alt="[^"]+"', text)) == 2
    assert "<script" not in text
    assert len(pd.read_csv(folder / "points.csv")) == len(sweep.points)
    assert len(text) < 2e6
    assert plt.get_fignums() == []


def test_what_differs_and_what_failed_is_on_it(folder, monkeypatch):
    sweep = of_hosts(folder, 3)
    sweep.hosts["node2"]["NIXL"] = "1.4.0"
    sweep.problems["node9"] = "it did not answer"
    monkeypatch.setattr(page, "measured", measured)
    text = " ".join(re.sub(r"<[^>]+>", " ", write_sweep_page(sweep).read_text()).split())
    assert "failed: plugin POSIX cannot be created" in text
    assert "About cost_set. cost_set at 3 of 5 exactly where queue is io_uring" in text
    assert "About flat." not in text
    assert "NIXL 1.5.1 2: node0, node1" in text
    assert "1.4.0 1: node2" in text
    assert "no facts of node9: it did not answer" in text


def test_where_nothing_was_checked_it_does_not_say_that_claims_hold(folder):
    text = write_sweep_page(begun(folder, Grid(notebooks=("03",)), ["03_x"], ["a"])).read_text()
    assert "No claim was checked." in text
    assert "Every claim" not in text


class TestPanels:
    def places(self, hosts: int) -> list[dict[str, str]]:
        return [{"host": f"n{number}", "queue": queue} for number in range(hosts) for queue in QUEUES]

    def test_each_point_has_one_where_there_are_few(self):
        assert panels_of(self.places(2)) == [
            ("n0, libaio", [0]),
            ("n0, io_uring", [1]),
            ("n1, libaio", [2]),
            ("n1, io_uring", [3]),
        ]

    def test_points_of_a_host_share_one_where_there_are_many(self):
        assert panels_of(self.places(40))[1] == ("n1", [2, 3])

    def test_there_are_never_more_than_can_be_read(self):
        assert [len(panels_of(self.places(hosts))) <= MOST_PANELS for hosts in (1, 24, 25, 48, 49, 500)] == [
            True
        ] * 6


class TestFigures:
    def test_the_title_says_what_each_connector_leaves(self, closed_figures):
        drawn = left_open([{"queue": "a"}, {"queue": "b"}], [LEFT, {}])
        assert drawn.title == "At the one point, leaky leaves 64 files open, try_finally leaves 0."
        assert "storage files" in drawn.alt
        said = [text.get_text() for axes in drawn.figure.axes for text in axes.texts]
        assert said == ["no result"]

    def test_the_title_says_where_the_fix_is_slower(self, closed_figures):
        slow, same = {"set": Estimate(1.2, 1.1, 1.3, 9)}, {"set": Estimate(1.0, 0.97, 1.02, 9)}
        drawn = costs([{"q": "a"}, {"q": "b"}, {"q": "c"}], [slow, same, same], ("try_finally", "leaky"))
        assert drawn.title.endswith("leaky: set 1.00 to 1.20, slower at 1 of 3.")
        drawn = costs([{"q": "a"}, {"q": "b"}], [same, same], ("try_finally", "leaky"))
        assert drawn.title.endswith("set 1.00 to 1.00, no slower at all 2.")

    @pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
    @pytest.mark.parametrize("hosts", [1, 2, 7])
    def test_titles_of_panels_stay_inside(self, closed_figures, hosts, narrow):
        places = [
            {"host": f"node{number}.rack", "queue": queue} for number in range(hosts) for queue in QUEUES
        ]
        figure = left_open(places, [LEFT] * len(places), narrow).figure
        figure.canvas.draw()
        for axes in figure.axes:
            if axes.get_visible():
                assert axes._left_title.get_window_extent().x1 <= figure.bbox.x1


class TestElsewhere:
    def test_a_claim_that_fails_comes_before_one_that_is_inconclusive(self, folder):
        sweep = of_hosts(folder, 2)
        points = [
            Measured(
                point,
                {"queue": str(point.values["queue"])},
                {},
                {},
                ledger(a="inconclusive", b=said, c="holds"),
            )
            for point, said in zip(sweep.points.values(), ("holds", "fails", "holds", "fails"), strict=True)
        ]
        found = elsewhere(points)
        assert [(one.id, one.verdict, one.holds, one.stated) for one in found] == [
            ("b", "fails", 2, 4),
            ("a", "inconclusive", 0, 4),
        ]
        assert [one.where for one in found] == ["exactly where queue is io_uring", "at every point"]
        assert found[0].tally() == "fails at 2"

    def test_the_table_has_a_row_for_each_point_with_what_it_measured(self, folder):
        table = as_table(measured(of_hosts(folder, 2)))
        assert table.left_open_leaky.tolist()[:3] == [64, 64, 64]
        assert table.cost_set_low.tolist()[:2] == [0.97, 1.1]
        assert table.state.tolist() == ["ended", "ended", "ended", "failed"]
