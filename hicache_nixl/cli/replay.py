"""hicache-nixl replay: one schedule against one connector."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from ..config import LAYOUTS, LIFETIMES, QUEUES
from ..errors import ConfigError
from .app import Layers, Model, PageSize, app, out, page_of

Layout = StrEnum("Layout", {name: name for name in LAYOUTS})  # type: ignore[misc]  # made from a table
Queue = StrEnum("Queue", {name: name for name in QUEUES})  # type: ignore[misc]
PAGE_FIRST, LIBAIO = Layout("page_first"), Queue("libaio")

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
    queue: Annotated[Queue, typer.Option(help="I/O queue of NIXL's POSIX plugin.")] = LIBAIO,
    page_bytes: Annotated[int, typer.Option(help="Bytes of a page, keys and values together.")] = 65536,
    model: Model = None,
    page_size: PageSize = 64,
    layers: Layers = None,
    layout: Annotated[Layout, typer.Option(help="Memory layout of the host pool.")] = PAGE_FIRST,
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
    from .. import lab

    plan = _schedule(schedule, calls, keys)
    if csv is not None and not csv.absolute().parent.is_dir():
        raise ConfigError(f"--csv {csv}: there is no folder {csv.absolute().parent}")
    if model is not None:
        page_bytes, mla = page_of(model, page_size, layers)
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


def _schedule(name: str, calls: int, keys: int) -> Any:
    from ..lab import Schedule

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


def _show(table: Any, title: str) -> None:
    shown = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for column, heading in SHOWN.items():
        shown.add_column(heading, no_wrap=True, justify="left" if column == "operation" else "right")
    for row in table[list(SHOWN)].assign(seconds=table.seconds * 1e3).itertuples(index=False):
        shown.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row))
    out.print(shown)
