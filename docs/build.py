"""Make a run the reference run: its copy in docs/, its tables in data/ and its results in README.md.

``make reference`` calls it: ``python docs/build.py runs/reference PRINTED runs/reference-server``, where PRINTED is what
``reproduce`` printed, and the last one the run with real servers, of which docs/ has a copy.
"""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
import sys
from pathlib import Path

from PIL import Image

COLOURS = 128  # figures have few colours; the rest are shades at the edges of letters and lines
EMBEDDED_PNG = re.compile(r"iVBORw0KGgo(?:[A-Za-z0-9+/]|\\n)+={0,2}")  # base64, in JSON with \n in it
PAGE_OF_NOTEBOOK = re.compile(r"\bhtml/(\w+)\.html(?:#cell-\d+)?")
ROOT = Path(__file__).resolve().parents[1]
KEPT = ("ratios", "benchmarks", "speeds")  # tables of the notebooks
TABLES = ("claims.csv", "provenance.json", *(f"tables/*_{name}.csv" for name in KEPT))  # kept in data/
SPEEDS = "07_bounded_by_design_speeds.csv"
HERO = "figures/03_before_and_after_hero.png"
TIMES = {
    "get, page cache": "newest_get_cached",
    "get, O_DIRECT": "newest_get_direct",
    "set, page cache": "newest_set_cached",
    "set, O_DIRECT": "newest_set_direct",
}


def make_reference(run: Path, printed: str, served: Path, root: Path = ROOT) -> None:
    """Replace the reference run below ``root`` by another run, and the one with servers."""
    for folder in (run, served):
        if not folder.is_dir():
            sys.exit(f"{folder}: no such run; the reference run stays as it is")
    copy_run(run, root / "docs/reference", root)
    copy_run(served, root / "docs/reference-server", root)
    data = root / "data/reference"
    shutil.rmtree(data)
    data.mkdir()
    for pattern in TABLES:
        for table in run.glob(pattern):
            shutil.copy(table, data)
    shutil.copy(run / HERO, data / "hero.png")
    lines = "\n".join(line.rstrip() for line in printed.splitlines() if line.strip()) + "\n"
    (data / "reproduce.txt").write_text(lines)
    readme = root / "README.md"
    text = replaced(readme.read_text(), "data/reference/reproduce.txt", f"```text\n{lines}```\n")
    text = replaced(text, "data/reference/claims.csv", times(data / "claims.csv"))
    readme.write_text(replaced(text, f"data/reference/{SPEEDS}", speeds(data / SPEEDS)))


def times(claims: Path) -> str:
    """Return the table of README that compares the times of our connector with those of the newest release."""
    with claims.open(newline="") as rows:
        measured = {row["id"]: row["measured"].removesuffix(" (time ratio)") for row in csv.DictReader(rows)}
    head = "| time of a call, SGLang 0.5.23 = 1 | median of the ratios [95 % interval] |\n| --- | --- |\n"
    return head + "".join(f"| {call} | {measured[claim]} |\n" for call, claim in TIMES.items())


def speeds(table: Path) -> str:
    """Return the table of README that says how many times as fast ``pooled`` is as others."""
    others = {
        "sglang==0.5.23": "SGLang 0.5.23",
        "sglang-file": "SGLang 0.5.23, backend `file`",
        "scoped": "`scoped`",
    }
    head = (
        f"| `pooled`, times as fast as | {' | '.join(others.values())} |\n| --- |{' --- |' * len(others)}\n"
    )
    with table.open(newline="") as rows:
        lines = [
            f"| {row['operation']}, {int(row['page_bytes']) >> 10} KiB | {' | '.join(row[name] for name in others)} |\n"
            for row in csv.DictReader(rows)
        ]
    return head + "".join(lines)


def replaced(text: str, name: str, block: str) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end -->``."""
    begin, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}{block}{end}{rest.partition(end)[2]}"


def copy_run(run: Path, target: Path, root: Path = ROOT) -> None:
    """Replace ``target`` by a copy of a run's folder; its report links to the executed notebooks, not to their pages.

    Parameters
    ----------
    root : Path
        The folder that paths in the copy are relative to.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("html", "narrow"))
    for picture in target.rglob("*.png"):
        picture.write_bytes(smaller(picture.read_bytes()))
    for page in [*target.rglob("*.html"), *target.rglob("*.ipynb")]:
        text = PAGE_OF_NOTEBOOK.sub(r"notebooks/\1.ipynb", page.read_text().replace(f"{root}/", ""))
        page.write_text(EMBEDDED_PNG.sub(lambda found: _embedded(found[0]), text))


def smaller(png: bytes) -> bytes:
    """Return a picture with a palette in place of 32 bits per pixel."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(out.getvalue(), png, key=len)


def _embedded(text: str) -> str:
    return base64.b64encode(smaller(base64.b64decode(text.replace("\\n", "")))).decode()


if __name__ == "__main__":
    make_reference(Path(sys.argv[1]), Path(sys.argv[2]).read_text(), Path(sys.argv[3]))
