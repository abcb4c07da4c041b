"""JupyterLab as ``make lab`` starts it: notebook 01 opens with its kernel, runs to its end, and its panel moves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from hicache_nixl.lab.worker.releases import CACHE_VARIABLE, cache_folder

ROOT = Path(__file__).resolve().parents[2]
CLONE = (
    ".gitattributes",
    ".gitignore",
    "Makefile",
    "pyproject.toml",
    "requirements.lock",
    "data",
    "hicache_nixl",
    "notebooks",
)
FOLDERS = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")  # of Jupyter: nothing of this comes into the home folder
TOKEN = "only-for-this-test"
RUNNING = 300  # seconds for the whole notebook; it takes about 20 on a quiet machine
NOTEBOOK = "01_reproduce_the_leak"
WIDGET = "application/vnd.jupyter.widget-view+json"
OUTPUT = ".jp-Notebook .jp-OutputArea-output"
DRAWN = """panel => [...panel.querySelectorAll(".jp-OutputArea-output img")].filter(picture => {
    const box = picture.getBoundingClientRect();
    return picture.naturalWidth > 0 && box.width > 100 && box.bottom > 0 && box.top < innerHeight;
}).map(picture => picture.src)"""


def own_clone(folder: Path) -> Path:
    """Copy what the notebooks need, so that what a run writes does not come into this clone."""
    folder.mkdir()
    for name in CLONE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(
        folder,
        "-c",
        "user.name=a reader",
        "-c",
        "user.email=reader@example.org",
        "commit",
        "--quiet",
        "-m",
        "as cloned",
    )
    return folder


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in a clone, without the settings of whoever runs the tests."""
    nobody = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, **nobody},
        capture_output=True,
        text=True,
        timeout=60,
    )


def address(log: Path, server: subprocess.Popen[bytes]) -> str:
    """Return the address that JupyterLab prints, once it does."""
    for _ in range(600):
        if found := re.search(r"http://127\.0\.0\.1:\d+/lab\S*", log.read_text()):
            return found[0].replace("token=...", f"token={TOKEN}")
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"no address within a minute:\n{log.read_text()}")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_clone(tmp_path_factory.mktemp("jupyterlab") / "clone")


@pytest.fixture(scope="module")
def running(clone: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """JupyterLab out of the Makefile, on a free port, without a browser of its own; its address and process."""
    environment = {**os.environ, "PYTHONPATH": str(clone), CACHE_VARIABLE: str(cache_folder())}
    environment |= {f"JUPYTER_{name}": str(clone.parent / name.lower()) for name in FOLDERS}
    environment |= {"IPYTHONDIR": str(clone.parent / "ipython")}
    arguments = f"--no-browser --ServerApp.ip=127.0.0.1 --ServerApp.port=0 --IdentityProvider.token={TOKEN}"
    command = [
        "make",
        f"--old-file={sys.prefix}/.installed",
        "lab",
        f"VENV={sys.prefix}",
        f"ARGS={arguments}",
    ]
    log = clone.parent / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, cwd=clone, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield address(log, server), server
    finally:
        end(server)


@pytest.fixture(scope="module")
def server(running: tuple[str, subprocess.Popen[bytes]]) -> str:
    """The address of JupyterLab."""
    return running[0]


@pytest.fixture
def stop(running: tuple[str, subprocess.Popen[bytes]]) -> Callable[[], None]:
    """What ends JupyterLab."""
    return lambda: end(running[1])


def end(server: subprocess.Popen[bytes]) -> None:
    """Ask JupyterLab to end; its kernels and their workers must end with it."""
    started = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    server.wait(timeout=30)
    _, alive = psutil.wait_procs(started, timeout=30)
    for process in alive:
        process.kill()
    assert alive == []


@pytest.fixture(scope="module")
def opened(chromium: Browser, server: str) -> Iterator[Page]:
    """Notebook 01, as the printed address opens it."""
    with chromium.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(server)
        page.locator(".jp-Notebook").wait_for()
        yield page


@dataclass
class Seen:
    """What a reader saw while the notebook ran, and the notebook as it was saved then."""

    page: Page
    bars: int
    notebook: nbformat.NotebookNode

    def code(self) -> list[nbformat.NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    def outputs(self) -> list[nbformat.NotebookNode]:
        return [output for cell in self.code() for output in cell.outputs]


@pytest.fixture(scope="module")
def seen(opened: Page, clone: Path) -> Seen:
    """Run all cells from the menu, follow the one that runs, and save."""
    status = opened.locator(".jp-Notebook-ExecutionIndicator")
    expect(status).to_have_attribute("data-status", "idle", timeout=60_000)  # the kernel has started
    opened.get_by_role("menuitem", name="Run", exact=True).click()
    opened.get_by_text("Run All Cells", exact=True).click()
    expect(status).not_to_have_attribute("data-status", "idle", timeout=60_000)  # the cells have started
    bars, idle, deadline = 0, 0, time.monotonic() + RUNNING
    while idle < 5:  # it is so for a moment between two cells, too
        assert time.monotonic() < deadline, "the notebook runs for too long"
        state = status.get_attribute("data-status")
        idle = idle + 1 if state == "idle" else 0
        bars = max(bars, opened.locator(f"{OUTPUT} [role=progressbar], {OUTPUT} .progress-bar").count())
        follow(opened)
        time.sleep(0.1)
    opened.keyboard.press("Control+s")
    path = clone / "notebooks" / f"{NOTEBOOK}.ipynb"
    unsaved = opened.locator(".lm-TabBar-tab.lm-mod-current.jp-mod-dirty")
    expect(unsaved).to_have_count(0)
    return Seen(opened, bars, nbformat.read(path, as_version=4))


def follow(page: Page) -> None:
    """Bring the first cell that waits or runs into view, as far as JupyterLab has drawn it."""
    page.evaluate(
        """() => {
            const waiting = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")];
            waiting.find(prompt => prompt.textContent.includes("*"))?.scrollIntoView({block: "center"});
        }"""
    )


def pictures_on_the_way(page: Page) -> set[str]:
    """Scroll from top to bottom; return the pictures that were on the screen, drawn."""
    found: set[str] = set()
    scroller = page.locator(".jp-WindowedPanel-outer").first
    scroller.evaluate("panel => panel.scrollTop = 0")
    top = -1
    while top != (top := scroller.evaluate("panel => panel.scrollTop")):
        time.sleep(0.25)  # for JupyterLab to draw what has come into view
        found |= set(scroller.evaluate(DRAWN))
        scroller.evaluate("panel => panel.scrollBy(0, 600)")
    return found


class TestOpening:
    def test_the_printed_address_opens_the_first_notebook(self, opened):
        expect(opened.locator(".lm-DockPanel-tabBar .lm-mod-current")).to_contain_text(NOTEBOOK)
        expect(opened.locator(".jp-Notebook h1").first).to_contain_text(
            "Does the leak reproduce to the number?"
        )

    def test_its_kernel_is_the_projects_and_nobody_was_asked(self, opened):
        expect(opened.locator(".jp-NotebookPanel-toolbar .jp-KernelName")).to_have_text("hicache-nixl")
        assert opened.locator(".jp-Dialog").count() == 0

    def test_nothing_pops_up(self, opened):
        time.sleep(2)  # news and updates are asked for after the start
        assert opened.locator(".Toastify__toast").count() == 0


class TestRunAll:
    def test_every_cell_runs_in_order_without_an_error(self, seen):
        assert [cell.execution_count for cell in seen.code()] == list(range(1, len(seen.code()) + 1))
        assert [output for output in seen.outputs() if output.output_type == "error"] == []

    def test_nothing_is_printed_to_stderr(self, seen):
        assert [output.text for output in seen.outputs() if output.get("name") == "stderr"] == []

    def test_progress_is_shown_while_it_runs(self, seen):
        assert seen.bars > 0

    def test_the_panel_is_the_only_widget_that_is_saved(self, seen):
        widgets = [cell.source for cell in seen.code() for output in cell.outputs if WIDGET in str(output)]
        assert [source.partition("(")[0] for source in widgets] == ["lab.panel"]

    def test_every_figure_is_on_the_screen_and_every_widget_drawn(self, seen):
        pictures = [output.data.get("image/png") for output in seen.outputs() if "data" in output]
        figures = {f"data:image/png;base64,{picture.strip()}" for picture in pictures if picture}
        on_screen = pictures_on_the_way(seen.page)
        assert len(figures) >= 3
        assert len(figures - on_screen) == 0
        assert len(on_screen) == len(figures) + 1  # the panel's
        assert seen.page.get_by_text("javascript error").count() == 0


class TestGit:
    def test_what_was_saved_makes_no_difference(self, seen, clone):
        path = clone / "notebooks" / f"{NOTEBOOK}.ipynb"
        assert (
            path.stat().st_size > 3 * (ROOT / "notebooks" / path.name).stat().st_size
        )  # its outputs are in it
        ended = git(clone, "diff", "--exit-code", "--", "notebooks")
        assert (ended.returncode, ended.stdout) == (0, "")

    def test_an_edit_does(self, seen, clone):
        path = clone / "notebooks" / f"{NOTEBOOK}.ipynb"
        saved = path.read_text()
        try:
            path.write_text(saved.replace("Does the leak reproduce", "Does the leak still reproduce"))
            ended = git(clone, "diff", "--stat", "--exit-code", "--", "notebooks")
            assert ended.returncode == 1
            assert "1 file changed, 1 insertion(+), 1 deletion(-)" in ended.stdout
        finally:
            path.write_text(saved)


class TestPanel:
    @pytest.fixture
    def picture(self, seen: Seen) -> Locator:
        cell = seen.page.locator(".jp-CodeCell", has_text="lab.panel(")
        seen.page.get_by_role("heading", name="Can I try other calls?").scroll_into_view_if_needed()
        picture = cell.locator(".jp-OutputArea-output img")
        picture.scroll_into_view_if_needed()
        return picture

    def test_a_choice_moves_the_plot(self, seen, picture):
        expect(picture).to_have_attribute(
            "alt", re.compile(r"leaky: \+32 descriptors per call of 16 keys\.$")
        )
        before = picture.get_attribute("src")
        seen.page.get_by_role("button", name="try_finally").click()
        expect(picture).to_have_attribute("alt", re.compile(r"try_finally: \+0 descriptors per call"))
        assert picture.get_attribute("src") != before


def test_when_jupyterlab_has_ended_git_status_is_clean_too(seen, clone, stop):
    """Last, since it ends the server."""
    stop()
    assert git(clone, "status", "--porcelain", "--", "notebooks").stdout == ""
