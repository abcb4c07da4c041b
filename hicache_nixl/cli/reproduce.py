"""hicache-nixl reproduce: run the notebooks without a browser."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from .app import CommandFailedError, Layers, Model, PageSize, app, out, page_of, say
from .progress import showing_progress

if TYPE_CHECKING:
    from ..lab.execute import Reproduction


@app.command()
def reproduce(
    profile: Annotated[
        str,
        typer.Option(
            help="What to run: quick (about 7 minutes) or full (about 10 minutes), or server: real SGLang servers (about 15 minutes)."
        ),
    ] = "quick",
    notebook: Annotated[
        list[str] | None,
        typer.Option(help="Run only this notebook, by name or number: 01, 1, or several as 1,3; repeatable."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--parameter",
            metavar="NAME=VALUE",
            help="Set a notebook parameter, overriding the profile; repeatable.",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(help="Name of the new folder below runs/.", show_default="PROFILE-DATE-TIME"),
    ] = None,
    model: Model = None,
    page_size: PageSize = 64,
    layers: Layers = None,
) -> None:
    r"""Run the notebooks, check their claims and write a report.

    The executed notebooks, tables, figures and claims are written to runs/NAME,
    and the report to runs/NAME/index.html. Nothing is written into a run that
    exists. -p sets parameters of the notebooks, such as storage_dir and queue.
    stderr shows the progress. Ctrl-C ends the run and keeps what has run.

    [bold]Examples[/]

    Run all notebooks:

        hicache-nixl reproduce

    Your disk, model and queue:

        hicache-nixl reproduce -p storage_dir=/mnt/nvme \
            -p queue=io_uring --model Qwen2.5-32B --layers 4

    One notebook with the full profile:

        hicache-nixl reproduce --profile full --notebook 03

    [bold]Exit codes[/]

        0    every claim holds or is inconclusive
        1    a claim failed, or a notebook did: printed with its cell
        2    an option cannot work; nothing was run
        130  interrupted; what has run is kept, and its report can be made
    """
    from ..lab.execute import execute
    from ..lab.plan import parse_parameters

    given = parse_parameters(parameter or [])
    if (page := page_of(model, page_size, layers)) is not None:
        given["page_bytes"], given["mla"] = page
    wanted = [name.strip() for names in notebook or [] for name in names.split(",")]
    with showing_progress() as watch:
        result = execute(wanted, profile=profile, parameters=given, run=run, watch=watch)
    shown = os.path.relpath(result.folder)
    _show(result)
    if result.interrupted is not None:
        told = result.verdict
        say(told if "interrupted" in told else f"interrupted in {result.interrupted}; {told}")
        say(f"kept in {shown}/: the executed notebooks with their tables, figures and claims")
        say(f"make its report: hicache-nixl report {shown}")
        raise typer.Exit(130)
    assert result.page is not None  # it was not interrupted
    say(f"{result.verdict}; the report is {os.path.relpath(result.page)}")
    if errors := result.errors():
        raise CommandFailedError(f"{'; '.join(errors)}. The executed notebook is in {shown}/notebooks/")


def _show(result: Reproduction) -> None:
    from ..lab.runs.claims import applicable

    table = Table("notebook", "seconds", "claims hold", box=box.SIMPLE_HEAD, pad_edge=False)
    for outcome in result.outcomes:
        held = f"{outcome.count('holds')} of {len(applicable(outcome.claims))}"
        unfinished = ", unfinished" if outcome.notebook in result.unfinished else ""
        table.add_row(outcome.notebook, f"{outcome.seconds:.0f}", held + unfinished)
    ran = {outcome.notebook for outcome in result.outcomes}
    for name in result.unfinished:
        if name not in ran:
            table.add_row(name, "", "interrupted" if name == result.interrupted else "not run")
    out.print(table)
    for outcome in result.outcomes:
        for claim in outcome.claims[outcome.claims.verdict == "inconclusive"].itertuples():
            say(f"inconclusive: {claim.id}: {claim.measured}, expected {claim.expected}")
    for connector, reason in result.not_run.items():
        say(f"not run: {connector}: {reason}")
