"""Progress is text in a terminal and a widget in a notebook, where nothing of it stays behind."""

from __future__ import annotations

from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from support import run_python
from tqdm.std import tqdm as text_bar

from hicache_nixl.lab import progress

WIDGET = "application/vnd.jupyter.widget-view+json"
COUNT = "from hicache_nixl.lab.progress import tqdm\nfor _ in tqdm(range(3), leave=False): pass"


def displays(kernel: BlockingKernelClient, code: str) -> list[tuple[str, dict[str, Any]]]:
    """Run a cell; return what it displayed, and how it changed that, in order."""
    shown: list[tuple[str, dict[str, Any]]] = []

    def keep(message: dict[str, Any]) -> None:
        if message["msg_type"] in ("display_data", "update_display_data"):
            shown.append((message["msg_type"], message["content"]["data"]))

    reply = kernel.execute_interactive(code, timeout=60, output_hook=keep)
    assert reply["content"]["status"] == "ok", reply["content"]
    return shown


def test_outside_of_a_notebook_it_is_text(capsys):
    assert issubclass(progress.tqdm, text_bar)
    assert not progress.IN_NOTEBOOK
    list(progress.tqdm(range(3), desc="counting", disable=False))
    assert "counting: 100%" in capsys.readouterr().err


def test_where_there_is_no_terminal_it_is_nothing(capsys):
    assert list(progress.tqdm(range(3), desc="counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_worker_carries_neither_widgets_nor_ipython():
    code = (
        "import sys, hicache_nixl.lab.worker.server\nassert not {'ipywidgets', 'IPython'} & set(sys.modules)"
    )
    assert run_python("-W", "error", "-c", code).returncode == 0


class TestNotebook:
    def test_it_is_a_widget_whose_output_is_empty_in_the_end(self, kernel):
        (first, widget), (last, nothing) = displays(kernel, COUNT)
        assert (first, last) == ("display_data", "update_display_data")
        assert WIDGET in widget
        assert nothing == {"text/html": ""}

    def test_one_that_is_interrupted_leaves_nothing_either(self, kernel):
        code = "bar = tqdm(total=3, leave=False)\nbar.update()\nbar.close()\nbar.close()"
        assert displays(kernel, code)[-1] == ("update_display_data", {"text/html": ""})

    def test_switched_off_it_displays_nothing(self, kernel):
        assert displays(kernel, COUNT.replace("leave=False", "leave=False, disable=True")) == []
