"""Fixtures: Debian's chromium, driven by Playwright, and fresh pages in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

HERE = Path(__file__).resolve().parent
VIEWPORTS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}  # CSS pixels
PATIENCE = 30_000  # milliseconds for an action or a wait of a page
INSTALL = "apt-get update && apt-get install --yes --no-install-recommends chromium fonts-dejavu-core"
FLAGS = [
    "--no-sandbox",  # root has no user namespaces in many containers
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-crash-reporter",
    "--disable-sync",
    "--no-first-run",
]


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder slow."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("slow")
            item.add_marker(pytest.mark.timeout(600))  # fixtures run whole notebooks


def pytest_collection_finish(session: pytest.Session) -> None:
    """Install chromium where it is missing: before the first test, so that no test's time limit counts it."""
    wanted = any(HERE in item.path.parents for item in session.items)
    if not wanted or session.config.option.collectonly or os.geteuid() != 0:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with open(__file__) as one_at_a_time:  # of the processes that share the tests
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if shutil.which("chromium") is None:
            with capture.global_and_fixture_disabled():  # the progress belongs on the terminal
                subprocess.run(["sh", "-c", INSTALL], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for the tests of one module.

    Not of the session: Playwright's sync API keeps an event loop running in this thread for as long as it
    lives, and the tests of other folders run loops of their own.
    """
    program = shutil.which("chromium")
    if program is None:
        pytest.fail(f"chromium is not installed; as root: {INSTALL}", pytrace=False)
    home = str(tmp_path_factory.mktemp("chromium"))  # where it would leave crash reports and caches otherwise
    environment = {**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program, args=FLAGS, env=environment) as browser,
    ):
        yield browser


@pytest.fixture
def new_page(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Make pages, each in a context of its own: no cookies, storage or cache of another one's.

    ``new_page(viewport="desktop", color_scheme="light", offline=False)``; other keywords are Playwright's.
    """
    contexts: list[BrowserContext] = []

    def make(
        viewport: str = "desktop", color_scheme: str = "light", offline: bool = False, **more: object
    ) -> Page:
        context = chromium.new_context(
            viewport=VIEWPORTS[viewport], color_scheme=color_scheme, offline=offline, **more
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        return context.new_page()

    yield make
    for context in contexts:
        context.close()
