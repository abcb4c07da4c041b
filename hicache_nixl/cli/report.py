"""hicache-nixl report and compare: pages that open offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .app import app, out, say

Run = Annotated[str, typer.Argument(help="The folder of a run, or its name below runs/.", show_default=False)]


@app.command()
def report(run: Run) -> None:
    """Make the report of a run again from what is in its folder.

    Writes runs/NAME/index.html and a page for each notebook. `reproduce` does
    this at its end; use it for a run that was interrupted.

    [bold]Example[/]

        hicache-nixl report runs/quick-20260102-030405

    [bold]Exit codes[/]

        0  the report was written, also if claims fail in it
        2  there is no such run
    """
    from ..lab import report as pages

    with out.status("making the report"):
        record = pages.read_record(run)
        page = pages.build(record)
    say(f"{record.verdict()}; the report is {os.path.relpath(page)}")


@app.command()
def compare(
    first: Run,
    second: Run,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder for the page.", show_default="FIRST-vs-SECOND beside the first run"
        ),
    ] = None,
) -> None:
    """Compare two runs on one page.

    For two disks, two versions of NIXL, or before and after a change: claims
    that changed, ratios of times with intervals, figures overlaid, and tables
    joined.

    [bold]Example[/]

        hicache-nixl compare runs/ssd runs/nvme

    [bold]Exit codes[/]

        0  the page was written
        2  one of the runs does not exist
    """
    from ..lab import report as pages

    with out.status("comparing"):
        page = pages.compare_runs(first, second, to)
    say(f"the comparison is {os.path.relpath(page)}")
