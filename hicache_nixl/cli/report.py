"""hicache-nixl report and compare: pages that open offline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .app import AsJson, CommandFailedError, app, out, print_json, say

if TYPE_CHECKING:
    from ..lab.report import Comparison

MOST = 5  # lines of each kind in the shell
err = Console(stderr=True)

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
        1  it could not be written, as into a folder that is read-only
        2  there is no such run
    """
    from ..lab import report as pages

    with out.status("making the report"):
        record = pages.read_record(run)
        try:
            page = pages.build(record)
        except OSError as error:
            raise CommandFailedError(
                f"{error.filename or record.folder} cannot be written: {error.strerror}; copy the run to a folder of yours"
            ) from None
    say(f"{record.verdict()}; the report is {os.path.relpath(page)}")


@app.command()
def compare(
    first: Run,
    second: Run,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder for the page.", show_default="FIRST-vs-SECOND beside the second run"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs on one page, and say whether anything got worse.

    For two disks, two versions of NIXL, or before and after a change: settings
    that differ, claims that changed, figures overlaid, and tables joined. The
    page is written beside the second run, which is the newer one.

    Worse is a claim that held and fails, a count that changed and fails, a
    notebook that does not finish any more, and a ratio of two connectors, when
    the whole interval of its change is above 1.25. Times of two runs are shown
    and not judged, since a shared machine changes from hour to hour.

    [bold]Examples[/]

        hicache-nixl compare runs/ssd runs/nvme

    In CI, fail when a change made something worse:

        hicache-nixl compare runs/main runs/branch || exit 1

    [bold]Exit codes[/]

        0  nothing is worse in the second run
        1  the page could not be written
        2  one of the runs does not exist
        3  something is worse
    """
    from ..lab import report as pages

    with err.status("comparing"):
        result = pages.compare_runs(first, second, to)
    if as_json:
        print_json(result.as_dict())
    else:
        _show(result)
    if result.of("worse"):
        raise typer.Exit(3)


def _show(result: Comparison) -> None:
    first, second = result.runs
    differing = [f"{row.what}: {row.a} -> {row.b}" for row in result.settings.itertuples()]
    for line in differing[:MOST]:
        say(f"setting  {line}")
    _rest(differing, "settings")
    only = f"only in {first}: {result.only[0]}, only in {second}: {result.only[1]}"
    say(f"claims   in both: {result.shared}, {only}")
    for effect in ("worse", "better", "changed"):
        found = result.of(effect)
        for change in found[:MOST]:
            say(f"{effect:8} {change.what} {change.first} -> {change.second}")
        _rest(found, effect)
    say(f"{result.verdict}; the comparison is {os.path.relpath(result.page)}")


def _rest(lines: Sequence[object], what: str) -> None:
    if len(lines) > MOST:
        say(f"         and {len(lines) - MOST} more {what}, on the page")
