"""The sockets of a notebook's kernel are in a folder of its own, which goes with the notebook, however that ends."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from tiny_notebooks import write_notebook

from hicache_nixl.lab.execute import run_notebook

LOOK = """\
import json
from ipykernel.connect import get_connection_file
from pathlib import Path
connection = json.loads(Path(get_connection_file()).read_text())
Path(run_dir, "seen").write_text(connection["transport"] + " " + connection["ip"])"""


@pytest.fixture
def temporary(monkeypatch):
    """The folder for temporary files; a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.mark.parametrize("end", ["1", "1 / 0", "import os\nos._exit(3)"], ids=["ends", "fails", "dies"])
def test_nothing_of_a_kernel_stays(tmp_path, temporary, end):
    folder = tmp_path / "run"
    folder.mkdir()
    path = write_notebook(tmp_path / "00_looks.ipynb", LOOK, end)
    run_notebook("00_looks", path, folder, {})
    transport, ip = (folder / "seen").read_text().split()
    assert transport == "ipc"
    assert Path(ip).parents[1] == temporary
    assert list(temporary.iterdir()) == []
    assert [path.name for path in folder.rglob("kernel*")] == []


def test_nothing_of_a_kernel_stays_after_an_interrupt(tmp_path, temporary):

    def interrupt(step):
        if step.done:
            assert list(temporary.glob("hicache-nixl-*/k-*"))
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run_notebook("00_looks", write_notebook(tmp_path / "00_looks.ipynb", LOOK), folder, {}, interrupt)
    assert list(temporary.iterdir()) == []
    assert [path.name for path in folder.rglob("kernel*")] == []
