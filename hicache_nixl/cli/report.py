"""hicache-nixl report and compare: pages that open offline."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .app import app, out

Run = Annotated[str, typer.Argument(help="The folder of a run, or its name below runs/.", show_default=False)]


@app.command()
def report(run: Run) -> None:
    """Make the report of a run anew, from what is in its folder: runs/NAME/index.html and the notebooks' pages.

    reproduce does it at its end; this is for a run that was interrupted, and for a template that changed.
    """
    from ..lab import report as pages

    with out.status("making the report"):
        page = pages.build(run)
        verdict = pages.read_record(run).verdict()
    out.print(f"{verdict}; the report is {os.path.relpath(page)}", highlight=False, soft_wrap=True)
