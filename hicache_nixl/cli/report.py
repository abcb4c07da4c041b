"""hicache-nixl report and compare: pages that open offline."""

from __future__ import annotations

import os
from pathlib import Path
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
        record = pages.read_record(run)
        page = pages.build(record)
    out.print(f"{record.verdict()}; the report is {os.path.relpath(page)}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    first: Run,
    second: Run,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder for the page; FIRST-vs-SECOND beside the first run if left out."
        ),
    ] = None,
) -> None:
    """Put two runs side by side on one page: another disk, another NIXL, before and after a change.

    Claims that changed, ratios of times with intervals, figures overlaid, tables joined:
    hicache-nixl compare runs/ssd runs/nvme
    """
    from ..lab import report as pages

    with out.status("comparing"):
        page = pages.compare_runs(first, second, to)
    out.print(f"the comparison is {os.path.relpath(page)}", highlight=False, soft_wrap=True)
