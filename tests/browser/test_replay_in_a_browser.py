"""The page of a replay as its readers meet it: in a browser, without a network, on a desk and a phone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from measured import LIMIT, REPLAYED
from test_report_in_a_browser import SERIOUS, unfold

from hicache_nixl.lab.report.replay_page import replay_page

SETTINGS = {
    "schedule": "pr24671",
    "nofile_limit": LIMIT,
    "storage_dir": None,
    "read from": "/logs/" + "x" * 90,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of five connectors, one of which reaches the limit."""
    tables = {name: complete(table) for name, table in REPLAYED.items()}
    made = tmp_path_factory.mktemp("page") / "replay.html"
    made.write_text(replay_page(tables, SETTINGS, {"sglang==0.0.1": "it is not in sglang_releases.csv"}))
    return made


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the other columns of a replay."""
    more = table.assign(files=2 * table["keys"], seconds=0.01, bytes=4096 * table["keys"])
    more.attrs["log"] = {}
    return more


@pytest.mark.parametrize("viewport", ["desktop", "phone"])
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_offline_it_asks_for_nothing_and_fits_the_screen(path, new_page, viewport, color_scheme):
    wrong: list[str] = []
    page = new_page(offline=True, viewport=viewport, color_scheme=color_scheme)
    page.on("request", lambda sent: sent.url == path.as_uri() or wrong.append(sent.url[:80]))
    page.on("requestfailed", lambda sent: wrong.append(sent.url[:80]))
    page.on("console", lambda said: wrong.append(said.text))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    unfold(page)
    assert [what for what in wrong if not what.startswith("data:")] == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= page.viewport_size["width"]
    found = [one["id"] for one in Axe().run(page).response["violations"] if one["impact"] in SERIOUS]
    assert found == []


@pytest.mark.parametrize(("viewport", "narrow"), [("desktop", False), ("phone", True)])
def test_a_phone_shows_the_narrow_figure_whole(path, new_page, viewport, narrow):
    page = new_page(offline=True, viewport=viewport)
    page.goto(path.as_uri())
    box = page.locator("figure img").bounding_box()
    assert box["x"] + box["width"] <= page.viewport_size["width"]
    assert (page.locator("figure img").evaluate("image => image.naturalWidth") <= 600) is narrow
