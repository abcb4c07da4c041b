"""hicache-nixl replay: one schedule of calls against one connector."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from ..config import LAYOUTS, LIFETIMES, QUEUES
from ..errors import ConfigError
from .app import Layers, Model, PageSize, app, out, page_of, say

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
        str,
        typer.Argument(
            help="pr24671, single_call, steady, or a CSV file with the columns operation and keys, such as the log "
            "of a server."
        ),
    ] = "pr24671",
    connector: Annotated[
        str, typer.Option(help=f"{', '.join(LIFETIMES)}, or a release of SGLang, such as sglang==0.5.12.")
    ] = "leaky",
    storage_dir: Annotated[
        Path | None,
        typer.Option(help="An existing folder for the page files, which are removed at the end."),
    ] = None,
    queue: Annotated[
        str, typer.Option(help=f"I/O queue of NIXL's POSIX plugin: {', '.join(QUEUES)}.")
    ] = "libaio",
    page_bytes: Annotated[int, typer.Option(help="Bytes of a page, keys and values together.")] = 65536,
    model: Model = None,
    page_size: PageSize = 64,
    layers: Layers = None,
    layout: Annotated[
        str, typer.Option(help=f"Memory layout of the host pool: {', '.join(LAYOUTS)}.")
    ] = "page_first",
    mla: Annotated[bool, typer.Option("--mla", help="Use MLA pages, which are one file each.")] = False,
    direct: Annotated[
        bool,
        typer.Option(
            "--direct", help="Use O_DIRECT instead of the page cache: scoped, or SGLang from 0.5.13."
        ),
    ] = False,
    baseline_fds: Annotated[
        int | None,
        typer.Option(
            help="Open descriptors up to this number before the first call; the PR's server had 135."
        ),
    ] = None,
    nofile_limit: Annotated[
        int | None, typer.Option(help="RLIMIT_NOFILE of the replay's process; without it, the hard limit.")
    ] = None,
    calls: Annotated[int, typer.Option(help="With steady: number of calls, alternately set and get.")] = 20,
    keys: Annotated[int, typer.Option(help="With steady: keys per call.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of keys and page contents.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds for the whole replay.")] = 600,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file as well.")] = None,
) -> None:
    r"""Run a schedule of calls against a connector and count what stays open.

    The calls run in a process of their own, with NIXL's POSIX plugin, and each
    page is compared with what was stored. The table has one row per call: open
    descriptors, open storage files, memory registrations, correct pages.

    [bold]Examples[/]

    The calls of PR #24671 before and after the fix:

        hicache-nixl replay --baseline-fds 135
        hicache-nixl replay --baseline-fds 135 --connector try_finally

    The log of a server, with the pages of its model:

        hicache-nixl replay log.csv --storage-dir /mnt/nvme \
            --model Qwen2.5-32B --layers 8 --csv fds.csv

    A released SGLang (fetched from the package registry), 40 calls:

        hicache-nixl replay steady --calls 40 --connector sglang==0.5.12

    [bold]Exit codes[/]

        0  the replay ran, even if calls failed
        1  the replay did not run to its end
        2  an option cannot work; nothing was run
    """
    from .. import lab

    plan = _schedule(schedule, calls, keys)
    if csv is not None and not csv.absolute().parent.is_dir():
        raise ConfigError(
            f"--csv {csv}: no folder {csv.absolute().parent}; expected a file in an existing folder"
        )
    if (page := page_of(model, page_size, layers)) is not None:
        page_bytes, mla = page
    table = lab.replay(
        plan,
        connector,
        storage_dir=storage_dir,
        plugin_params=lab.queue_params(queue),
        page_bytes=page_bytes,
        layout=layout,
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
    say(
        f"open fds {first} -> {last}; left at the end: {files} open storage files, {regions} NIXL registrations"
    )
    if len(failed):
        call = failed.iloc[0]
        reason = os.strerror(call.errno) if call.errno else "no errno"
        logged = table.attrs["log"].get(int(call.call), ["nothing was logged"])[0]
        say(f"call {call.call} is the first that failed: {reason}\n{logged}")


def _schedule(name: str, calls: int, keys: int) -> Any:
    from ..lab import Schedule

    ready = {"pr24671": Schedule.pr24671, "single_call": Schedule.single_call}
    if name in ready:
        return ready[name]()
    if name == "steady":
        return Schedule.steady(calls, keys)
    if not Path(name).exists():
        raise ConfigError(
            f"schedule {name!r} is unknown; expected one of {', '.join(ready)}, steady, or an existing CSV file"
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
