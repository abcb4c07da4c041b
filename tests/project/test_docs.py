"""docs/ holds the reference run: small, complete, and without a path of the machine that made it."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from hicache_nixl.lab import plan

ROOT = Path(__file__).resolve().parents[2]
DOCS, SERVERS = ROOT / "docs/reference", ROOT / "docs/reference-server"
PROFILES = {DOCS: "quick", SERVERS: "server"}  # of the two runs
spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs/build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def picture() -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGBA").save(out, "PNG", compress_level=0)
    return out.getvalue()


def notebooks(profile: str) -> list[str]:
    return plan.notebooks_of_profile(profile, plan.notebooks())


@pytest.mark.parametrize("run", PROFILES, ids=PROFILES.values())
def test_every_notebook_is_there_executed_with_figures(run):
    for name in notebooks(PROFILES[run]):
        cells = nbformat.read(run / f"notebooks/{name}.ipynb", 4).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs), name


def test_it_is_the_run_whose_tables_are_in_data():
    for table in ("claims.csv", "provenance.json"):
        assert (DOCS / table).read_bytes() == (ROOT / "data/reference" / table).read_bytes()
    readme = (ROOT / "README.md").read_text()
    assert build.times(DOCS / "claims.csv") in readme
    assert build.speeds(ROOT / "data/reference" / build.SPEEDS) in readme
    assert "get, 4 KiB | " in readme


@pytest.mark.parametrize("run", PROFILES, ids=PROFILES.values())
def test_every_link_of_its_report_leads_to_a_file(run):
    links = set(re.findall(r'href="([^"#:]+)["#]', (run / "index.html").read_text()))
    assert {f"notebooks/{name}.ipynb" for name in notebooks(PROFILES[run])} <= links
    assert [link for link in links if not (run / link).exists()] == []


def test_it_is_small():
    assert sum(path.stat().st_size for run in PROFILES for path in run.rglob("*")) < 8e6


@pytest.fixture
def copied(tmp_path):
    """A run with a picture in a file, a page and a notebook, copied."""
    run = tmp_path / "runs/one"
    (run / "figures").mkdir(parents=True)
    (run / "figures/a.png").write_bytes(picture())
    embedded = base64.encodebytes(picture()).decode()
    image = f'<img src="data:image/png;base64,{base64.b64encode(picture()).decode()}">'
    (run / "index.html").write_text(f'<a href="{tmp_path}/runs/one">{image}</a>')
    (run / "a.ipynb").write_text(json.dumps({"image/png": embedded, "path": f"{tmp_path}/runs/one"}))
    build.copy_run(run, tmp_path / "docs/one", root=tmp_path)
    return tmp_path / "docs/one"


def test_a_copy_has_no_path_of_the_machine(copied, tmp_path):
    assert json.loads((copied / "a.ipynb").read_text())["path"] == "runs/one"
    assert str(tmp_path) not in (copied / "index.html").read_text()


def test_a_copy_has_smaller_pictures_of_the_same_size(copied):
    embedded = base64.b64decode(json.loads((copied / "a.ipynb").read_text())["image/png"])
    alone = (copied / "figures/a.png").read_bytes()
    assert base64.b64encode(alone).decode() in (copied / "index.html").read_text()
    for png in (embedded, alone):
        assert len(png) < len(picture()) / 10
        assert Image.open(io.BytesIO(png)).size == (256, 256)


def test_a_block_of_readme_is_replaced_between_its_marks():
    text = "a\n<!-- x.csv -->\nold\n<!-- end -->\nb\n"
    assert build.replaced(text, "x.csv", "new\n") == "a\n<!-- x.csv -->\nnew\n<!-- end -->\nb\n"
