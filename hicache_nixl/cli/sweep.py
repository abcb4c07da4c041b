"""hicache-nixl sweep: notebooks for each point of a grid, on this machine or on the hosts of a Dask cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .app import AsJson, CommandFailedError, app, print_json, say
from .sweep_output import as_dict, showing_sweep

if TYPE_CHECKING:
    from ..lab.sweep.grid import Grid
    from ..lab.sweep.sweep import Result

MOST = 5  # errors in the shell


@app.command()
def sweep(
    file: Annotated[
        str | None, typer.Argument(metavar="[GRID.yaml]", help="The grid as a file.", show_default=False)
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--parameter",
            metavar="NAME=A,B",
            help="The values of a notebook parameter; several make an axis of the grid. Repeatable.",
        ),
    ] = None,
    notebook: Annotated[
        list[str] | None,
        typer.Option(help="Run this notebook at each point, by name or number: 01, or 01,03; repeatable."),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="quick or full.", show_default="quick")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on the hosts of this Dask scheduler, such as tcp://10.0.0.1:8786.",
            show_default="this machine, or that of --resume",
        ),
    ] = None,
    every_host: Annotated[
        bool | None,
        typer.Option(
            "--every-host/--any-host",
            help="Run each point on every host, or once on any host that is free.",
            show_default="every-host",
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Use only this host, by its name or the name of its worker; repeatable."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(help="Name of the new folder below runs/.", show_default="sweep-DATE-TIME"),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Go on with this sweep: run what is missing or has failed."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    r"""Run notebooks for a grid of parameters, on one machine or on many.

    Each point of the grid is an ordinary run, as of reproduce. Its folder comes
    back to runs/NAME/points, and runs/NAME/index.html shows what leaks where,
    what the fix costs there, claims that do not hold everywhere, and hosts that
    differ. A point that fails is reported, and the others go on.

    A machine runs one point at a time, since two measurements on one disk
    disturb each other. Only points whose notebooks state nothing but counts
    (01, 02) share one. A point whose worker dies runs again, elsewhere if it may.

    Values are separated by commas, and a value that is a list has brackets:
    -p page_bytes=4096,65536 -p keys_sweep=\[1,2],\[4,8]. A file has the entries
    notebooks, profile, parameters, every_host and hosts; options override it:

        notebooks: ["01", "03"]
        parameters: {queue: \[libaio, io_uring]}
        every_host: true

    [bold]Examples[/]

    This machine:

        hicache-nixl sweep --notebook 01 -p queue=libaio,io_uring \
            -p page_bytes=4096,65536

    Every host of a cluster, one question: does it leak, what does the fix cost?

        hicache-nixl sweep --scheduler tcp://10.0.0.1:8786 \
            --notebook 01,03 -p storage_dir=/mnt/nvme

    Go on after Ctrl-C or a host that failed, with the scheduler that it had:

        hicache-nixl sweep --resume sweep-20260102-030405

    [bold]--json[/]

    name, page, verdict, points (slug, host, values, state, reason, verdict,
    errors, seconds, bytes, deaths, run), hosts (the facts of each), problems.

    [bold]Exit codes[/]

        0    every claim of every point holds or is inconclusive
        1    a claim failed, or a point did, or the scheduler has gone away
        2    an option cannot work; nothing was run
        130  interrupted; what has run is kept, and --resume goes on
    """
    if resume is not None and run is not None:
        raise ConfigError("--run names a new sweep, and --resume goes on with one; give one of the two")
    with showing_sweep() as watch:
        from ..lab.sweep import sweep as sweeps  # it takes a second, which the progress covers

        given = _given(file, parameter or [], notebook, profile, every_host, host)
        if resume is not None:
            result = sweeps.resume(resume, given, scheduler=scheduler, watch=watch)
        else:
            result = sweeps.sweep(given or _grid(None, {}), scheduler=scheduler, run=run, watch=watch)
    if as_json:
        print_json(as_dict(result))
    _end(result, as_json)


def _given(
    file: str | None,
    parameters: list[str],
    notebooks: list[str] | None,
    profile: str | None,
    every_host: bool | None,
    hosts: list[str] | None,
) -> Grid | None:
    """Return the grid that was given; None where nothing was."""
    from ..lab.sweep.grid import parse_axes

    given: dict[str, Any] = {"parameters": parse_axes(parameters)} if parameters else {}
    if notebooks:
        given["notebooks"] = [name.strip() for names in notebooks for name in names.split(",")]
    others = {"profile": profile, "every_host": every_host, "hosts": hosts}
    given |= {name: value for name, value in others.items() if value is not None and value != []}
    return _grid(file, given) if file is not None or given else None


def _grid(file: str | None, given: dict[str, Any]) -> Grid:
    from ..lab.sweep.grid import read_grid

    if file == "":
        raise ConfigError("the path of the grid is empty; give one, or leave it out")
    return read_grid(None if file is None else Path(file), given)


def _end(result: Result, quiet: bool) -> None:
    """Say how the sweep has ended, and end with its exit code."""
    done = result.sweep
    at = f" --scheduler {done.scheduler}" if done.scheduler else ""
    again = f"go on: hicache-nixl sweep --resume {done.handle}{at}"
    if not quiet:
        say(f"{done.verdict()}; the page is {os.path.relpath(result.page)}")
    if result.interrupted:
        if not quiet:
            say(again)
        raise typer.Exit(130)
    if result.lost:
        raise CommandFailedError(f"{result.lost}; what has run is kept; {again}")
    wrong = [f"{one.slug}: {one.reason}" for one in done.points.values() if one.reason]
    wrong += [f"{one.slug}: {one.errors[0]}" for one in done.points.values() if one.errors and not one.reason]
    if wrong:
        rest = f"; and {len(wrong) - MOST} more, on the page" if len(wrong) > MOST else ""
        raise CommandFailedError("; ".join(wrong[:MOST]) + rest)
