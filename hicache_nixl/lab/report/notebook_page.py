"""An executed notebook as a page: output first, code folded."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from markupsafe import Markup
from nbconvert import HTMLExporter

from ..runs.folder import RunFolder, notebook_file
from .pages import TEMPLATES, data_uri, write_page


def write_notebook_page(folder: Path, name: str, node: nbformat.NotebookNode | None = None) -> Path:
    """Write the page of one executed notebook of a run.

    Each cell has the anchor ``cell-N``, with the number that the lists of claims and figures give.

    Parameters
    ----------
    node : nbformat.NotebookNode, optional
        The notebook, when the caller has read it already.

    Raises
    ------
    AltTextError
    """
    files = RunFolder(folder)
    node = node or files.read_notebook(name)
    beside = list(files.notebooks())
    place = beside.index(name)
    return write_page(
        files.page(name),
        "notebook.html.j2",
        title=title_of(node, name),
        body=Markup(_cells(node, _narrow(files, name))),
        executed=notebook_file(name),
        run=folder.name,
        before=beside[place - 1] if place else None,
        after=beside[place + 1] if place + 1 < len(beside) else None,
    )


def title_of(node: nbformat.NotebookNode, name: str) -> str:
    """Return the title of a notebook: its first line of prose, else its name."""
    for cell in node.cells:
        title = re.match(r"#\s+(.+)", cell.source)
        if cell.cell_type == "markdown" and title:
            return title[1].strip()
    return name


def _narrow(files: RunFolder, name: str) -> dict[str, str]:
    """Return the figures of a notebook as phones show them, by alt text."""
    rows = files.figures(name).itertuples()
    paths = {row.alt: files.narrow(name, row.figure) for row in rows}
    return {alt: data_uri(path) for alt, path in paths.items() if path.exists()}


def _cells(node: nbformat.NotebookNode, narrow: dict[str, str]) -> str:
    exporter = HTMLExporter(
        template_name="notebook_cells",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    body, _ = exporter.from_notebook_node(node, resources={"narrow": narrow})
    return body
