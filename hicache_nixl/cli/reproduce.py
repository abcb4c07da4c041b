"""hicache-nixl reproduce: the notebooks, headless."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from ..errors import ConfigError
from .app import Layers, Model, PageSize, app, existing_folder, out, page_of


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="A file of notebooks/parameters: quick or full.")] = "quick",
    notebook: Annotated[
        list[str] | None, typer.Option(help="Only this notebook, by name or number (01); may be repeated.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--parameter", metavar="NAME=VALUE", help="A notebook parameter; may be repeated."
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Name of the folder below runs/; profile and time if left out.")
    ] = None,
    model: Model = None,
    page_size: PageSize = 64,
    layers: Layers = None,
) -> None:
    """Run the notebooks headlessly through papermill into runs/NAME, and make the report runs/NAME/index.html.

    Exit code 0 when every claim holds or is inconclusive; 1 when one fails, naming notebook, cell and claim.

    On one's own disk, model and queue:
    hicache-nixl reproduce -p storage_dir=/mnt/nvme -p queue=io_uring --model Qwen2.5-32B --layers 4
    """
    from ..lab import execute as reproduction
    from ..lab import report
    from ..lab.runs.folder import RunFolder
    from ..watch import read_watch

    chosen = reproduction.chosen_notebooks(notebook or [])
    given = reproduction.parse_parameters(parameter or [])
    if "run_dir" in given:
        raise ConfigError("run_dir is set by --run")
    if model is not None:
        given["page_bytes"], given["mla"] = page_of(model, page_size, layers)
    if isinstance(given.get("storage_dir"), str) and given["storage_dir"]:
        given["storage_dir"] = str(existing_folder(given["storage_dir"]))
    if isinstance(given.get("watched"), str) and given["watched"]:
        # Absolute, since the notebook runs in the folder of its run; and read, to fail before anything runs.
        given["watched"] = str(Path(given["watched"]).expanduser().resolve())
        read_watch(given["watched"])
    parameters = reproduction.parameters_for(chosen, reproduction.read_profile(profile), given)
    folder = reproduction.new_run_folder(run or reproduction.default_run_name(profile))
    shown = os.path.relpath(folder)
    RunFolder(folder).plan(list(chosen))
    outcomes = []
    try:
        for name, path in chosen.items():
            outcomes.append(reproduction.run_notebook(name, path, folder, parameters[name]))
            if outcomes[-1].error:
                break
    except KeyboardInterrupt:
        out.print(
            f"\ninterrupted in {name}; what ran is in {shown}/ (hicache-nixl report {shown})", highlight=False
        )
        raise typer.Exit(130) from None
    table = Table("notebook", "seconds", "claims hold", box=box.SIMPLE_HEAD, pad_edge=False)
    for outcome in outcomes:
        held = f"{outcome.count('holds')} of {len(outcome.claims)}"
        table.add_row(outcome.notebook, f"{outcome.seconds:.0f}", held)
    out.print(table)
    for outcome in outcomes:
        for claim in outcome.claims[outcome.claims.verdict == "inconclusive"].itertuples():
            out.print(
                f"inconclusive: {claim.id}: {claim.measured}, expected {claim.expected}", highlight=False
            )
    with out.status("making the report"):
        record = report.read_record(folder)
        page = report.build(record)
    for connector, reason in record.not_run().items():
        out.print(f"not run: {connector}: {reason}", highlight=False)
    out.print(
        f"{reproduction.verdict(outcomes)}; the report is {os.path.relpath(page)}",
        highlight=False,
        soft_wrap=True,
    )
    errors = [error for outcome in outcomes for error in outcome.errors()]
    if errors:
        raise reproduction.NotebookFailedError(
            f"{'; '.join(errors)}. The executed notebook is in {shown}/notebooks/"
        )
