"""The page of a sweep as its readers meet it: offline, on a desk and a phone, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page
from test_report_in_a_browser import SERIOUS, unfold
from tiny_sweeps import begun

from hicache_nixl.lab import execute as reproduction
from hicache_nixl.lab.report import build
from hicache_nixl.lab.sweep.grid import Grid
from hicache_nixl.lab.sweep.page import write_sweep_page
from hicache_nixl.lab.sweep.record import Sweep

NewPage = Callable[..., Page]
NOTEBOOK = "02_apply_the_fix"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep over three hosts: on one the notebook has run, on one it has failed, and one is missing."""
    grid = Grid(notebooks=("02",), parameters={"queue": ("libaio",)})
    made = begun(tmp_path_factory.mktemp("sweeps") / "mine", grid, [NOTEBOOK], ["node7", "node8", "node9"])
    ran, failed, _ = made.points.values()
    folder = made.run_of(ran.slug)
    folder.mkdir()
    reproduction.run_notebook(NOTEBOOK, reproduction.notebooks()[NOTEBOOK], folder, {})
    build(folder)
    ran.state, ran.verdict, ran.seconds = "ended", made.record(ran.slug).verdict(), 12.0
    failed.state, failed.reason = "failed", "plugin POSIX cannot be created with {'use_uring': 'true'}"
    made.hosts["node8"]["queues that work"] = "libaio, posix_aio"
    write_sweep_page(made)
    return made


def opened(sweep: Sweep, new_page: NewPage, **how: object) -> Page:
    page = new_page(offline=True, **how)
    page.goto(sweep.page.as_uri())
    unfold(page)
    return page


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_offline_it_asks_for_nothing_and_readers_of_all_kinds_can_use_it(sweep, new_page, color_scheme):
    wrong: list[str] = []
    page = new_page(offline=True, color_scheme=color_scheme)
    page.on("request", lambda sent: sent.url == sweep.page.as_uri() or wrong.append(sent.url[:80]))
    page.on("console", lambda said: wrong.append(said.text))
    page.goto(sweep.page.as_uri())
    unfold(page)
    wrong = [url for url in wrong if not url.startswith("data:")]
    assert wrong == []
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in SERIOUS] == []


@pytest.mark.parametrize("viewport", ["desktop", "phone"])
def test_it_is_never_wider_than_the_screen(sweep, new_page, viewport):
    page = opened(sweep, new_page, viewport=viewport)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_phone_has_its_own_form_of_the_figure(sweep, new_page):
    page = opened(sweep, new_page, viewport="phone")
    assert page.evaluate("document.querySelector('img').naturalWidth") == 600  # 4 inches


def test_a_point_leads_to_its_run_and_a_claim_to_its_cell(sweep, new_page):
    page = opened(sweep, new_page)
    links = page.eval_on_selector_all("main a", "all => all.map(one => one.href.split('#')[0])")
    folder = Path(sweep.page).parent.as_uri()
    assert f"{folder}/points/001-node7/index.html" in links
    page.click("table.points a")
    assert page.url == f"{folder}/points/001-node7/index.html"
