"""The report as its readers meet it: in a browser, without a network, on a desk, a phone and paper."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page
from tiny_notebooks import failing_notebook, holding_notebook

from hicache_nixl.lab import execute as reproduction
from hicache_nixl.lab.report import build, compare_runs
from hicache_nixl.lab.runs.claims import tally
from hicache_nixl.lab.runs.folder import RunFolder

SERIOUS = ("serious", "critical")
NewPage = Callable[..., Page]


@dataclass(frozen=True)
class Pages:
    """Two runs and their comparison."""

    run: Path
    comparison: Path

    def all(self) -> list[Path]:
        """Return every page of both."""
        return [self.run / "index.html", *sorted((self.run / "html").glob("*.html")), self.comparison]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """A run of a notebook of the project and of one whose claim fails, and a comparison with one where it holds.

    Notebook 02 has what is hard to show: a patch, wide tables, several figures.
    """
    root = tmp_path_factory.mktemp("runs")
    real = reproduction.notebooks()["02_apply_the_fix"]
    run = _run(root / "now", {real.stem: real, "03_fails": failing_notebook(root, "03_fails")})
    before = _run(shutil.copytree(run, root / "before"), {"03_fails": holding_notebook(root, "03_fails")})
    return Pages(run, compare_runs(run, before).page)


def _run(folder: Path, notebooks: dict[str, Path]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, path in notebooks.items():
        reproduction.run_notebook(name, path, folder, {})
    build(folder)
    return folder


def unfold(page: Page) -> None:
    """Open everything that is folded on a page."""
    page.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")


def each_page(pages: Pages, new_page: NewPage, **how: object) -> list[tuple[str, Page]]:
    """Open every page with everything on it unfolded, each in a context of its own."""
    opened = []
    for path in pages.all():
        page = new_page(offline=True, **how)
        page.goto(path.as_uri())
        unfold(page)
        opened.append((path.name, page))
    return opened


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_offline_no_page_asks_for_anything_and_no_console_has_an_error(pages, new_page, color_scheme):
    wrong = []
    for path in pages.all():
        page = new_page(offline=True, color_scheme=color_scheme)
        page.on(
            "request", lambda sent, path=path: sent.url in (path.as_uri(),) or wrong.append(sent.url[:80])
        )
        page.on("requestfailed", lambda sent: wrong.append(sent.url[:80]))
        page.on("console", lambda said: wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
    assert [what for what in wrong if not what.startswith("data:")] == []


@pytest.mark.parametrize("viewport", ["desktop", "phone"])
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(pages, new_page, viewport, color_scheme):
    found = [
        (name, violation["id"], violation["nodes"][0]["html"][:200])
        for name, page in each_page(pages, new_page, viewport=viewport, color_scheme=color_scheme)
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in SERIOUS
    ]
    assert found == []


@pytest.mark.parametrize("viewport", ["desktop", "phone"])
def test_every_figure_is_shown_whole_and_no_page_is_wider_than_the_screen(pages, new_page, viewport):
    shown = 0
    for name, page in each_page(pages, new_page, viewport=viewport):
        width = page.viewport_size["width"]
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width, name
        for picture in page.locator("img").all():
            picture.scroll_into_view_if_needed()
            box = picture.bounding_box()
            assert picture.evaluate("image => image.complete && image.naturalWidth > 0"), name
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= width, name
            assert min(box["width"], box["height"]) > 50, name
            shown += 1
    assert shown == sum(path.read_text().count("<img ") for path in pages.all()) > 5


def test_a_phone_shows_the_narrow_figures_and_tables_are_in_a_style_of_their_own(pages, new_page):
    for viewport, narrow in (("phone", True), ("desktop", False)):
        for path in (pages.comparison, pages.run / "index.html", pages.run / "html/02_apply_the_fix.html"):
            page = new_page(offline=True, viewport=viewport)
            page.goto(path.as_uri())
            unfold(page)
            sizes = page.evaluate(
                "[...document.querySelectorAll('picture img')].map(image => image.naturalWidth)"
            )
            assert len(sizes) == page.locator("img").count() > 2, path
            assert {size <= 600 for size in sizes} == {narrow}, (path, sizes)
    assert page.locator("table.dataframe").count() == 0
    assert page.locator("table.data").count() > 2
    assert "<NA>" not in page.locator("main").text_content()


def test_a_phone_shows_machine_and_versions_of_a_notebook_without_scrolling(pages, new_page):
    page = new_page(offline=True, viewport="phone")
    page.goto((pages.run / "html/02_apply_the_fix.html").as_uri())
    table = page.locator(".wide", has_text="storage folder on").first
    path = "/" + "x" * 60  # a name without a place to break it, as mount options are
    table.evaluate(
        "(group, path) => { group.querySelector('tr:last-child td:last-child').textContent = path }", path
    )
    assert table.evaluate("group => group.scrollWidth <= group.clientWidth")


def test_every_link_leads_to_a_file_or_a_place_that_is_there(pages, new_page):
    missing = []
    for path in pages.all():
        page = new_page(offline=True)
        page.goto(path.as_uri())
        for link in page.evaluate(
            "[...document.querySelectorAll('a[href]')].map(link => link.getAttribute('href'))"
        ):
            if link.startswith("https://"):
                continue
            file, _, place = link.partition("#")
            target = (path.parent / unquote(file)).resolve() if file else path
            found = target.is_file() and (not place or f'id="{place}"' in target.read_text())
            missing += [] if found else [(path.name, link)]
    assert missing == []


def test_the_link_of_a_claim_leads_to_the_cell_that_states_it(pages, new_page):
    page = new_page(offline=True)
    page.goto((pages.run / "index.html").as_uri())
    links = page.locator("details.ledgers tbody tr a")
    targets = [(link.get_attribute("href"), link.get_attribute("aria-label")) for link in links.all()]
    assert len(targets) == len(RunFolder(pages.run).claims())
    for href, label in set(targets):
        page.goto((pages.run / "index.html").as_uri())
        unfold(page)
        page.locator(f'details.ledgers a[href="{href}"]').first.click()
        cell = page.locator(":target")
        assert "claim(" in cell.locator("details.code").text_content(), href
        assert cell.locator("summary").first.text_content() == f"code of {label.partition(', ')[2]}"


def test_what_failed_is_on_the_first_screen_of_a_desktop(pages, new_page):
    page = new_page(offline=True)
    page.goto((pages.run / "index.html").as_uri())
    failed = page.locator("#verdict table.claims tbody tr", has_text="fails")
    assert failed.count() == 1
    box = failed.bounding_box()
    assert box["y"] + box["height"] <= page.viewport_size["height"]


@pytest.mark.parametrize("printed", [False, True], ids=["on the screen", "on paper"])
def test_the_ledger_is_folded_on_the_screen_and_printed_whole(pages, new_page, printed):
    page = new_page(offline=True)
    page.goto((pages.run / "index.html").as_uri())
    page.emulate_media(media="print" if printed else "screen")
    last = page.locator("details.ledgers tbody tr").last
    height = (
        "row => row.checkVisibility({contentVisibilityAuto: true}) ? row.getBoundingClientRect().height : 0"
    )
    assert (last.evaluate(height) > 0) is printed
    assert page.locator("details:not(.kept):not([open]) > summary").first.is_visible() is not printed
    assert page.locator(".paper").count() == 0 or page.locator(".paper").first.is_visible() is printed


def test_the_link_of_a_finding_leads_to_its_figure_also_where_it_is_folded(pages, new_page):
    page = new_page(offline=True)
    for place in page_places(page, pages.run / "index.html"):
        page.goto((pages.run / "index.html").as_uri() + f"#{place}")
        assert page.locator(":target img").is_visible(), place


def page_places(page: Page, index: Path) -> list[str]:
    """Return the anchors of the figures of a page."""
    page.goto(index.as_uri())
    places = page.evaluate("[...document.querySelectorAll('section.finding')].map(finding => finding.id)")
    assert len(places) > 2
    return places


def test_sent_by_itself_the_index_is_complete(pages, new_page, tmp_path):
    alone = Path(shutil.copy(pages.run / "index.html", tmp_path / "mailed.html"))
    page = new_page(offline=True)
    page.goto(alone.as_uri())
    files = RunFolder(pages.run)
    assert page.locator("p.verdict").text_content() == tally(files.claims())
    pictures = page.locator("img")
    assert pictures.count() == len(files.figures())
    assert all(picture.evaluate("image => image.naturalWidth > 0") for picture in pictures.all())


def test_without_scripts_code_unfolds_and_stands_below_its_output(pages, new_page):
    page = new_page(offline=True, java_script_enabled=False)
    page.goto((pages.run / "html" / "02_apply_the_fix.html").as_uri())
    cell = page.locator(".cell", has=page.locator(".output")).first
    code, output = cell.locator("details.code pre"), cell.locator(".output")
    assert not code.is_visible()
    cell.locator("summary").click()
    assert code.is_visible()
    assert code.bounding_box()["y"] > output.bounding_box()["y"]


def test_a_cell_that_failed_shows_its_code_and_its_error(pages, new_page):
    page = new_page(offline=True)
    page.goto((pages.run / "html" / "03_fails.html").as_uri())
    assert page.locator(".output_error").is_visible()
    assert page.locator("details.code[open]").count() == 1


def test_it_is_light_or_dark_as_the_reader_has_it_and_light_on_paper(pages, new_page):
    paper = {}
    for scheme in ("light", "dark"):
        page = new_page(offline=True, color_scheme=scheme)
        page.goto((pages.run / "index.html").as_uri())
        read = "getComputedStyle(document.body).backgroundColor"
        paper[scheme] = page.evaluate(read)
        page.emulate_media(media="print")
        paper[f"{scheme} printed"] = page.evaluate(read)
    assert paper["light"] == paper["light printed"] == paper["dark printed"] == "rgb(255, 255, 255)"
    assert paper["dark"] != paper["light"]


def test_printed_it_is_a4_and_no_figure_is_split(pages, new_page):
    page = new_page(offline=True)
    for path in (pages.run / "index.html", pages.comparison):
        page.goto(path.as_uri())
        printed = page.pdf(prefer_css_page_size=True)
        assert b"/MediaBox [0 0 594.95996 841.91998]" in printed or b"/MediaBox [0 0 595" in printed
        page.emulate_media(media="print")
        height = (297 - 2 * 14) / 25.4 * 96  # of A4 without its margins, in CSS pixels
        for figure in page.locator("figure:visible").all():
            assert figure.evaluate("figure => getComputedStyle(figure).breakInside") == "avoid"
            assert figure.bounding_box()["height"] < height
