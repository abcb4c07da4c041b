"""The command hicache-nixl."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .config import LIFETIMES, QUEUES
from .errors import ConfigError, HiCacheNixlError
from .host_pool import LAYOUTS
from .models import model_geometry

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A HiCache storage backend on NIXL, and the investigation of what its descriptors cost.",
)
out = Console()

Layout = StrEnum("Layout", {name: name for name in LAYOUTS})
Queue = StrEnum("Queue", {name: name for name in QUEUES})

Model = Annotated[
    str | None, typer.Option(help="Take the pages of a model, such as Qwen2.5-32B, instead of page_bytes.")
]
PageSize = Annotated[int, typer.Option(help="With --model: tokens per page.")]
Layers = Annotated[
    int | None, typer.Option(help="With --model: fewer layers than it has, for a small machine.")
]

SHOWN = {  # column of a replay: its heading
    "call": "call",
    "operation": "operation",
    "keys": "keys",
    "files": "files",
    "seconds": "ms",
    "open_fds": "open fds",
    "storage_fds": "storage",
    "registrations": "regs",
    "pages_ok": "ok",
    "errno": "errno",
}


@app.command()
def replay(
    schedule: Annotated[
        str, typer.Argument(help="pr24671, single_call, steady, or a CSV with columns operation and keys.")
    ] = "pr24671",
    connector: Annotated[
        str, typer.Option(help=f"{', '.join(LIFETIMES)}, or a release of SGLang, such as sglang==0.5.12.")
    ] = "leaky",
    storage_dir: Annotated[
        Path | None,
        typer.Option(help="An existing folder for the page files; the replay cleans up in it."),
    ] = None,
    queue: Annotated[Queue, typer.Option(help="I/O queue of NIXL's POSIX plugin.")] = Queue.libaio,
    page_bytes: Annotated[int, typer.Option(help="Bytes of a page, keys and values together.")] = 65536,
    model: Model = None,
    page_size: PageSize = 64,
    layers: Layers = None,
    layout: Annotated[Layout, typer.Option(help="Memory layout of the host pool.")] = Layout.page_first,
    mla: Annotated[bool, typer.Option("--mla", help="MLA pages: one file each.")] = False,
    direct: Annotated[
        bool, typer.Option("--direct", help="O_DIRECT, past the page cache: scoped, and SGLang from 0.5.13.")
    ] = False,
    baseline_fds: Annotated[
        int | None,
        typer.Option(help="Pad the worker with open descriptors up to this number first (PR: 135)."),
    ] = None,
    nofile_limit: Annotated[
        int | None, typer.Option(help="The worker's RLIMIT_NOFILE; its hard limit if left out.")
    ] = None,
    calls: Annotated[int, typer.Option(help="With steady: number of calls, set and get in turn.")] = 20,
    keys: Annotated[int, typer.Option(help="With steady: keys per call.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of keys and page contents.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds for the whole replay.")] = 600,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file as well.")] = None,
) -> None:
    """Run a schedule of calls in a process of its own and show what it keeps open, call by call.

    A server's own log: hicache-nixl replay log.csv --model Qwen2.5-32B --layers 8 --storage-dir /mnt/nvme
    """
    from . import lab

    plan = _schedule(schedule, calls, keys)
    if csv is not None and not csv.absolute().parent.is_dir():
        raise ConfigError(f"--csv {csv}: there is no folder {csv.absolute().parent}")
    if model is not None:
        page_bytes, mla = _page_of(model, page_size, layers)
    table = lab.replay(
        plan,
        connector,
        storage_dir=storage_dir,
        plugin_params=lab.queue_params(str(queue)),
        page_bytes=page_bytes,
        layout=str(layout),
        mla=mla,
        direct=direct,
        baseline_fds=baseline_fds,
        nofile_limit=nofile_limit,
        seed=seed,
        timeout=timeout,
    )
    if csv is not None:
        table.to_csv(csv, index=False)
    _show(table, f"{connector}: {plan.name}, pages of {page_bytes} bytes")
    first, last = int(table.open_fds.iloc[0]), int(table.open_fds.iloc[-1])
    failed = table[table.pages_ok < table["keys"]]
    files, regions = int(table.storage_fds.iloc[-1]), int(table.registrations.iloc[-1])
    out.print(
        f"open fds {first} -> {last}; left at the end: {files} open storage files, {regions} NIXL registrations"
    )
    if len(failed):
        call = failed.iloc[0]
        reason = os.strerror(call.errno) if call.errno else "no errno"
        logged = table.attrs["log"].get(int(call.call), ["nothing was logged"])[0]
        out.print(
            f"call {call.call} is the first that failed: {reason}\n{logged}", markup=False, highlight=False
        )


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
    """Run the notebooks headlessly through papermill into runs/NAME, with a page of each.

    Exit code 0 when every claim holds or is inconclusive; 1 when one fails, naming notebook, cell and claim.

    On one's own disk, model and queue:
    hicache-nixl reproduce -p storage_dir=/mnt/nvme -p queue=io_uring --model Qwen2.5-32B --layers 4
    """
    from .lab import reproduction

    chosen = reproduction.chosen_notebooks(notebook or [])
    given = reproduction.parse_parameters(parameter or [])
    if "run_dir" in given:
        raise ConfigError("run_dir is set by --run")
    if model is not None:
        given["page_bytes"], given["mla"] = _page_of(model, page_size, layers)
    if isinstance(given.get("storage_dir"), str) and given["storage_dir"]:
        given["storage_dir"] = str(_existing_folder(given["storage_dir"]))
    parameters = reproduction.parameters_for(chosen, reproduction.read_profile(profile), given)
    folder = reproduction.new_run_folder(run or reproduction.default_run_name(profile))
    shown = os.path.relpath(folder)
    outcomes = []
    try:
        for name, path in chosen.items():
            outcomes.append(reproduction.run_notebook(name, path, folder, parameters[name]))
            if outcomes[-1].error:
                break
    except KeyboardInterrupt:
        out.print(f"\ninterrupted in {name}; what ran is in {shown}/", highlight=False)
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
    out.print(f"{reproduction.verdict(outcomes)}; tables, figures and pages are in {shown}/", highlight=False)
    errors = [error for outcome in outcomes for error in outcome.errors()]
    if errors:
        raise reproduction.NotebookFailedError(
            f"{'; '.join(errors)}. The executed notebook is in {shown}/notebooks/"
        )


def main() -> None:
    """Run the command; an error that we know is one line."""
    try:
        app()
    except HiCacheNixlError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(1 if not isinstance(error, ConfigError) else 2)


def _schedule(name: str, calls: int, keys: int) -> Any:
    from .lab import Schedule

    ready = {"pr24671": Schedule.pr24671, "single_call": Schedule.single_call}
    if name in ready:
        return ready[name]()
    if name == "steady":
        return Schedule.steady(calls, keys)
    if not Path(name).exists():
        raise ConfigError(
            f"schedule {name!r} is unknown; it takes {', '.join(ready)}, steady or a CSV file that exists"
        )
    return Schedule.from_csv(name)


def _page_of(model: str, page_size: int, layers: int | None) -> tuple[int, bool]:
    """Return the bytes of a model's page, and whether it is an MLA page."""
    geometry = model_geometry(model)
    return geometry.page_bytes(page_size, layers), geometry.is_mla


def _existing_folder(path: str) -> Path:
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"storage_dir {path}: no such folder; it takes an existing, writable folder")
    return folder


def _show(table: Any, title: str) -> None:
    shown = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for column, heading in SHOWN.items():
        shown.add_column(heading, no_wrap=True, justify="left" if column == "operation" else "right")
    for row in table[list(SHOWN)].assign(seconds=table.seconds * 1e3).itertuples(index=False):
        shown.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row))
    out.print(shown)
