"""The control panel: a choice runs and is drawn, an error is one line, and nothing lives on between two choices."""

from __future__ import annotations

import base64
import os
import re
import signal
from pathlib import Path
from typing import Any

import papermill
import pytest
from jupyter_client.blocking import BlockingKernelClient
from processes import workers_of
from tiny_notebooks import write_notebook

from hicache_nixl.config import LIFETIMES
from hicache_nixl.lab import panel
from hicache_nixl.lab.experiments.panel import CALLS, Panel
from hicache_nixl.lab.worker.schedule import Schedule, predicted_fds

BASELINE, LIMIT = 135, 1024
PNG = b"\x89PNG\r\n"
WIDGET = "application/vnd.jupyter.widget-view+json"
SHOW = "from hicache_nixl import lab\nlab.panel()"


@pytest.fixture
def shown(tmp_path: Path) -> Panel:
    """A panel as it first comes up: leaky, 16 keys per call, page_first, libaio."""
    return Panel(tmp_path, 4096, BASELINE, LIMIT)


def picture_of(panel: Panel) -> tuple[bytes, str]:
    """Return the PNG that a panel shows, and its alt text."""
    alt, data = re.fullmatch(
        r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"[^>]*>', panel.picture.value
    ).groups()
    return base64.b64decode(data), alt


class TestPicture:
    def test_it_comes_up_with_the_leak_and_meets_the_prediction(self, shown):
        predicted, _ = predicted_fds(Schedule.steady(CALLS, 16), 2, BASELINE, LIMIT)
        assert shown.table.open_fds.tolist() == predicted
        png, alt = picture_of(shown)
        assert png.startswith(PNG)
        assert alt == (
            "Open descriptors over 12 calls, and the limit of 1024. leaky: +32 descriptors per call of 16 keys."
        )
        assert shown.status.value == (
            "After 12 calls, 384 storage files are open and 768 NIXL registrations alive."
        )

    def test_each_choice_is_run_and_drawn(self, shown):
        """One after another in the same panel, as somebody would choose them."""
        choices = [
            ("keys", 128, "leaky: +256 descriptors per call of 128 keys, until call 4 meets EMFILE"),
            ("keys", 1, "leaky: +2 descriptors per call of 1 key"),
            ("layout", "layer_first", "leaky: +1 descriptors per call of 1 key"),
            ("lifetime", "try_finally", "try_finally: +0 descriptors per call of 1 key"),
            ("lifetime", "pooled", "pooled: +0 descriptors per call of 1 key"),
            ("lifetime", "scoped", "scoped: +0 descriptors per call of 1 key"),
            ("queue", "posix_aio", "scoped: +0 descriptors per call of 1 key"),
        ]
        before, _ = picture_of(shown)
        for control, value, title in choices:
            getattr(shown, control).value = value
            png, alt = picture_of(shown)
            assert alt.endswith(f" {title}.")
            assert png.startswith(PNG)
            assert png != before or control == "queue"
            before = png
        assert shown.table.pages_ok.eq(1).all()

    def test_every_lifetime_can_be_chosen(self, shown):
        assert shown.lifetime.options == LIFETIMES

    def test_the_status_names_the_call_that_is_running(self, shown):
        told: list[str] = []
        shown.status.observe(lambda change: told.append(change["new"]), names="value")
        shown.keys.value = 4
        assert told[:-1] == [
            "running ...",
            *(f"running call {n} of {CALLS} ..." for n in range(1, CALLS + 1)),
        ]


class TestErrors:
    def test_an_error_is_one_line_and_the_picture_of_another_choice_is_removed(self, shown, tmp_path):
        tmp_path.rmdir()
        shown.keys.value = 32
        assert shown.status.value.startswith(f"error: storage_dir {tmp_path}: No such file or directory")
        assert "\n" not in shown.status.value
        assert shown.picture.value == ""

    def test_the_next_choice_that_works_is_shown(self, shown, tmp_path):
        tmp_path.rmdir()
        shown.keys.value = 32
        tmp_path.mkdir()
        shown.keys.value = 8
        assert "+16 descriptors" in picture_of(shown)[1]
        assert shown.status.value.startswith("After 12 calls")

    def test_an_interrupt_ends_the_worker_and_is_reported(self, shown, tmp_path):
        def interrupt(change: Any) -> None:
            if change["new"].startswith("running call 3 "):
                signal.raise_signal(signal.SIGINT)

        shown.status.observe(interrupt, names="value")
        with pytest.raises(KeyboardInterrupt):
            shown.keys.value = 8
        assert shown.status.value == "interrupted; choose again"
        assert workers_of() == []
        assert list(tmp_path.iterdir()) == []


def test_between_two_choices_nothing_is_kept(shown, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for lifetime in LIFETIMES:
        shown.lifetime.value = lifetime
        assert workers_of() == []
        assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def widgets_shown(kernel: BlockingKernelClient, code: str, answers_input: bool) -> int:
    """Run a cell as a front-end does that can answer ``input()``, or as a headless client that cannot."""
    outputs: list[dict[str, Any]] = []
    reply = kernel.execute_interactive(
        code,
        allow_stdin=answers_input,
        timeout=60,
        output_hook=lambda message: outputs.append(message["content"].get("data", {})),
    )
    assert reply["content"]["status"] == "ok"
    return sum(WIDGET in data for data in outputs)


class TestWithoutAReader:
    def test_outside_of_a_notebook_there_is_none(self):
        assert panel() is None

    def test_a_front_end_is_shown_one(self, kernel):
        assert widgets_shown(kernel, SHOW, answers_input=True) == 1

    def test_a_headless_client_is_shown_none(self, kernel):
        assert widgets_shown(kernel, SHOW, answers_input=False) == 0

    def test_a_run_that_is_kept_shows_none(self, kernel):
        kept = SHOW.replace("panel()", "panel(run_dir='kept')")
        assert widgets_shown(kernel, kept, answers_input=True) == 0

    def test_papermill_shows_none_even_inside_of_jupyterlab(self, tmp_path, monkeypatch):
        monkeypatch.setenv("JPY_SESSION_NAME", "outer.ipynb")  # as in the kernel of a notebook that starts it
        notebook = write_notebook(tmp_path / "00_panel.ipynb", SHOW)
        executed = papermill.execute_notebook(str(notebook), None, progress_bar=False)
        assert [cell.outputs for cell in executed.cells if cell.source == SHOW] == [[]]
