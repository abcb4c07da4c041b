"""Notebooks of a few cells, as small as what papermill, claims and pages can be shown on."""

from __future__ import annotations

from pathlib import Path

import nbformat

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

PARAMETERS = """\
storage_dir: str = ""  # an existing folder
queue: str = "libaio"
page_bytes: int = 65536
mla: bool = False
margin: float = 1.25
sizes: list = [1, 4]
run_dir: str = ""
strict: bool = True"""

BEGIN = """\
import matplotlib.pyplot as plt
import pandas as pd
from hicache_nixl import lab
run = lab.Run("{name}", run_dir, {{"page_bytes": page_bytes, "mla": mla, "sizes": sizes}}, strict)"""

DRAW = """\
figure, axes = plt.subplots(figsize=(2, 2))
run.figure("square", figure, {alt!r})"""

HOLD = 'run.claim(lab.exactly("sum", "One and one is two.", 2, 1 + 1))'
FAIL = 'run.claim(lab.exactly("flat", "The count is flat.", 135, 167))'
WAVER = """\
from hicache_nixl.lab.statistics import Estimate
run.claim(lab.at_most("cost", "It costs little.", margin, Estimate(1.2, 1.1, 1.3, 8)))"""
FINISH = "run.finish()"
DIE = "import os\nos._exit(3)"
ALT = 'An empty square, <b> & "quoted"'


def write_notebook(path: Path, *cells: str) -> Path:
    """Write a notebook of code cells after a parameters cell; its name goes into ``{name}``."""
    notebook = nbformat.v4.new_notebook(metadata=METADATA)
    notebook.cells.append(nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}))
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(notebook, path)
    return path


def holding_notebook(folder: Path, name: str = "00_holds") -> Path:
    cells = (BEGIN.format(name=name), DRAW.format(alt=ALT), HOLD, WAVER, FINISH)
    return write_notebook(folder / f"{name}.ipynb", *cells)


def failing_notebook(folder: Path, name: str = "01_fails") -> Path:
    cells = (BEGIN.format(name=name), HOLD, FAIL, FINISH, "print('never printed')")
    return write_notebook(folder / f"{name}.ipynb", *cells)
