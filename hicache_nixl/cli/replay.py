"""hicache-nixl replay: one schedule of calls against one connector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import LAYOUTS, LIFETIMES, QUEUES
from ..errors import ConfigError
from .app import (
    INTERRUPTED,
    AsJson,
    CommandFailedError,
    Layers,
    Model,
    PageSize,
    app,
    check_new_files,
    page_of,
    print_json,
    say,
    say_interrupted,
)
from .replay_files import write_csv, write_figure, write_files, write_page
from .replay_output import as_json as result_as_json
from .replay_output import show_calls, show_summaries

FAILED_CALLS = 3  # exit code
LONGEST = 1e6  # seconds; poll(2) counts milliseconds in 32 bits
SCHEDULES = ("pr24671", "single_call", "steady")
CONNECTORS = (*LIFETIMES, "sglang==0.5.11", "sglang==0.5.12", "sglang==0.5.13.post1", "sglang==0.5.23")


def _one_of(values: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Return what completes one of these values in a shell."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


@app.command()
def replay(
    schedule: Annotated[
        str,
        typer.Argument(
            help="pr24671, single_call, steady, the log of a SGLang server with --log-level debug, or a CSV file "
            "with the columns operation and keys.",
            autocompletion=_one_of(SCHEDULES),
        ),
    ] = "pr24671",
    connector: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(LIFETIMES)}, or a release of SGLang, such as sglang==0.5.12; repeatable, to compare "
            "several.",
            show_default="leaky",
            autocompletion=_one_of(CONNECTORS),
        ),
    ] = None,
    storage_dir: Annotated[
        Path | None,
        typer.Option(help="An existing folder for the page files, which are removed at the end."),
    ] = None,
    queue: Annotated[
        str,
        typer.Option(
            help=f"I/O queue of NIXL's POSIX plugin: {', '.join(QUEUES)}.",
            autocompletion=_one_of(tuple(QUEUES)),
        ),
    ] = "libaio",
    page_bytes: Annotated[int, typer.Option(help="Bytes of a page, keys and values together.")] = 65536,
    model: Model = None,
    page_size: PageSize = 64,
    layers: Layers = None,
    layout: Annotated[
        str,
        typer.Option(
            help=f"Memory layout of the host pool: {', '.join(LAYOUTS)}.",
            autocompletion=_one_of(tuple(LAYOUTS)),
        ),
    ] = "page_first",
    mla: Annotated[bool, typer.Option("--mla", help="Use MLA pages, which are one file each.")] = False,
    direct: Annotated[
        bool,
        typer.Option(
            "--direct", help="Use O_DIRECT instead of the page cache: scoped, pooled, or SGLang from 0.5.13."
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
    calls: Annotated[
        int | None,
        typer.Option(help="With steady: number of calls, alternately set and get.", show_default="20"),
    ] = None,
    keys: Annotated[int | None, typer.Option(help="With steady: keys per call.", show_default="128")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of keys and page contents.")] = 0,
    timeout: Annotated[
        float, typer.Option(help="Seconds for the replay of a connector; starting takes some.")
    ] = 600,
    every: Annotated[bool, typer.Option("--all", help="Show every call, not only the summary.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write a row for each call to this new file.")] = None,
    png: Annotated[
        Path | None, typer.Option(help="Draw the open descriptors over the calls into this new file.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write summary, figure, settings and calls as a page that opens offline into this new file."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    r"""Run a schedule of calls against a connector and count what stays open.

    The calls run in a process of their own, with NIXL's POSIX plugin, and each
    page is compared with what was stored. The pages that a log's first gets ask
    for are stored before call 1 and not counted.

    [bold]Examples[/]

    The calls of PR #24671 before and after the fix:

        hicache-nixl replay --baseline-fds 135 --connector leaky \
            --connector try_finally --png fix.png

    The log of a server, with the pages of its model:

        hicache-nixl replay server.log --storage-dir /mnt/nvme \
            --model Qwen2.5-32B --layers 8 --html fds.html

    A released SGLang (fetched from the package registry), 40 calls:

        hicache-nixl replay steady --calls 40 --connector sglang==0.5.12

    [bold]--json[/]

    schedule, calls, keys, page_bytes, queue, layout, mla, direct, and
    connectors: a list of connector, calls, keys, fds_before, fds_at_end,
    fds_per_key, registrations_at_end, failed_calls, first_failure (call,
    operation, pages_ok, keys, errno, reason, logged), set and get (calls,
    median_seconds, median_bytes_per_second), and with --all rows. What does
    not exist is null.

    [bold]Exit codes[/]

        0    every page of every call was right
        1    a replay did not run to its end, or a file could not be written
        2    an option cannot work; nothing was run
        3    calls failed; the first one is named
        130  interrupted; the connectors that are done are summarized
    """
    from .. import lab
    from ..lab.experiments.summary import summarize
    from ..lab.worker.releases import ReleaseError

    if not 0 < timeout <= LONGEST:  # false for nan as well
        raise ConfigError(f"--timeout {timeout:g}: expected seconds, more than 0 and at most {LONGEST:g}")
    plan = _schedule(schedule, calls, keys)
    check_new_files(csv=csv, png=png, html=html)
    if (page := page_of(model, page_size, layers)) is not None:
        page_bytes, mla = page
    setups = [
        lab.Setup(
            name,
            plugin_params=lab.queue_params(queue),
            page_bytes=page_bytes,
            layout=layout,
            mla=mla,
            direct=direct,
            seed=seed,
        )
        for name in dict.fromkeys(connector or ["leaky"])
    ]
    about = {"schedule": plan.name, "calls": len(plan), "keys": plan.total("set") + plan.total("get")}
    about |= {"page_bytes": page_bytes, "queue": queue, "layout": layout, "mla": mla, "direct": direct}
    limits = {"baseline_fds": baseline_fds, "nofile_limit": nofile_limit}
    tables: dict[str, Any] = {}
    broken: dict[str, str] = {}
    during = None
    for setup in setups:
        try:
            tables[setup.connector] = lab.replay(
                plan, setup, storage_dir=storage_dir, timeout=timeout, **limits
            )
        except (lab.WorkerError, ReleaseError) as error:
            if len(setups) == 1:
                raise
            broken[setup.connector] = str(error)
        except KeyboardInterrupt:
            during = setup.connector
            break
    summaries = {name: summarize(table) for name, table in tables.items()}
    settings = {
        **about,
        "read from": None if schedule in SCHEDULES else schedule,
        "stored before call 1": f"{plan.stored_before} keys" if plan.stored_before else None,
        "model": model,
        "seed": seed,
        "storage_dir": storage_dir,
        **limits,
    }
    missing = {
        one.connector: broken.get(one.connector, "interrupted")
        for one in setups
        if one.connector not in tables
    }
    files = [
        (csv, lambda path: write_csv(path, tables)),
        (png, lambda path: write_figure(path, tables, plan.name, nofile_limit)),
        (html, lambda path: write_page(path, tables, settings, missing)),
    ]
    failed = write_files(files) if tables else []
    if as_json:
        print_json(result_as_json(about, tables, summaries, every))
    elif summaries:
        before = dict.fromkeys(str(found.fds_before) for found in summaries.values())
        say(
            f"{plan.name}: {len(plan)} calls, {about['keys']} keys, pages of {page_bytes} bytes, {layout} on {queue}; "
            f"{' or '.join(before)} descriptors are open before call 1"
        )
        for name, table in tables.items() if every else ():
            show_calls(table, name)
        show_summaries(summaries)
    failed += [f"{name} was not replayed: {why}" for name, why in broken.items()]
    if during is not None:
        done = f"{', '.join(tables)} is done" if len(tables) == 1 else f"{', '.join(tables)} are done"
        say_interrupted(
            f" during {during}; {done if tables else 'nothing was replayed'}{'; '.join(['', *failed])}"
        )
        raise typer.Exit(INTERRUPTED)
    if failed:
        raise CommandFailedError("; ".join(failed))
    raise typer.Exit(FAILED_CALLS if any(found.failed_calls for found in summaries.values()) else 0)


def _schedule(name: str, calls: int | None, keys: int | None) -> Any:
    from ..lab import Schedule

    given = {option: value for option, value in (("calls", calls), ("keys", keys)) if value is not None}
    if name == "steady":
        return Schedule.steady(given.get("calls", 20), given.get("keys", 128))
    for option in given:
        raise ConfigError(f"--{option} has no effect with {name}; expected it only with the schedule steady")
    if name in SCHEDULES:
        return getattr(Schedule, name)()
    if not name or not Path(name).exists():
        raise ConfigError(
            f"schedule {name!r} is unknown; expected one of {', '.join(SCHEDULES)}, or an existing log or CSV file"
        )
    return Schedule.from_file(name)
