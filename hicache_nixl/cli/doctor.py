"""hicache-nixl doctor: whose connector leaks, and what can run on this machine, on one screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..config import FILE_PLUGINS, OBJ_PLUGINS
from ..errors import ConfigError
from .app import AsJson, app, out, print_json

if TYPE_CHECKING:
    from ..doctor.diagnosis import Diagnosis
    from ..doctor.finding import Finding
    from ..doctor.plugin_check import Build

USED = FILE_PLUGINS + OBJ_PLUGINS
CHOSEN = " (loaded by import nixl)"
STYLES = {"ok": "green", "note": "yellow", "no": "red"}


@app.command()
def doctor(
    storage_dir: Annotated[
        str | None,
        typer.Option(
            help="The storage folder to check.",
            show_default="SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR, or /tmp/hicache_storage",
        ),
    ] = None,
    sglang: Annotated[
        Path | None,
        typer.Option(
            help="Check the SGLang of another environment: its root, or its site-packages folder.",
            show_default="this environment",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Check every host of this Dask scheduler, such as tcp://10.0.0.1:8786.",
            show_default="this machine",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whose connector leaks, and what can run on this machine.

    Two answers, in some seconds. First, whether the connector of the installed
    SGLang leaks file descriptors or memory registrations: it is run, and what
    stays is counted. Second, what can run here: the I/O queues and plugins of
    NIXL, the limit of open files, the storage folder with its file system and
    O_DIRECT are tried. Nothing is left behind, and no other host is contacted
    unless --scheduler names a Dask cluster: then each of its hosts is checked,
    and a table shows them, where * marks what is not as on most hosts.

    [bold]Examples[/]

        hicache-nixl doctor
        hicache-nixl doctor --storage-dir /mnt/nvme --sglang /opt/sglang/venv
        hicache-nixl doctor --scheduler tcp://10.0.0.1:8786

    [bold]--json[/]

    versions, leak, can_run and machine (lists of what, state, detail and
    advice; the state is ok, note or no), builds (name, version, chosen,
    plugins, problem), leaking, usable, enough_files. With --scheduler, hosts:
    for each one facts and diagnosis (all of the above), or reason.

    [bold]Exit codes[/]

        0  the connector can run here, and no leak was found
        1  it cannot run here: no queue works, or the storage folder cannot
           be written to
        2  an option cannot work
        3  it can run, but the connector of your SGLang leaks
        4  it can run, but the limit of open files is too low for a server
           or for the notebooks

    With --scheduler, that of the worst host; 1 also for one without an answer.
    """
    if scheduler is not None:
        _fleet(scheduler, storage_dir, sglang, as_json)
    from ..doctor import diagnosis as checks
    from ..doctor import sglang_check

    found = sglang_check.find(sglang)
    with Console(stderr=True).status("checking") as status:
        diagnosis = checks.diagnose(storage_dir, found, progress=lambda step: status.update(f"trying {step}"))
    if as_json:
        print_json(dataclasses.asdict(diagnosis))
    else:
        _show(diagnosis)
    raise typer.Exit(_ending(diagnosis)[0])


def _fleet(scheduler: str, storage_dir: str | None, sglang: Path | None, as_json: bool) -> NoReturn:
    """Check the hosts of a cluster."""
    if sglang is not None:
        raise ConfigError(
            "--sglang names a folder of this machine, and --scheduler checks others; give one of the two"
        )
    from ..lab.sweep.sweep import facts_of_fleet
    from .fleet_output import exit_code, show

    with Console(stderr=True).status("checking") as status:
        found = facts_of_fleet(scheduler, storage_dir, lambda told: status.update(f"checked {told}"))
    if as_json:
        print_json({"hosts": found})
    else:
        show(found)
    raise typer.Exit(exit_code(found))


def _ending(diagnosis: Diagnosis) -> tuple[int, str]:
    """Return the exit code, and the last line."""
    if not diagnosis.usable:
        return 1, "The connector cannot run here."
    if diagnosis.leaking:
        return 3, "The connector can run here. That of your SGLang leaks."
    if not diagnosis.enough_files:
        return 4, "The connector can run here, but the limit of open files is too low."
    return 0, "The connector can run here."


def _show(diagnosis: Diagnosis) -> None:
    versions = [f"{name} {version or 'not installed'}" for name, version in diagnosis.versions.items()]
    out.print(", ".join(versions), highlight=False)
    for part in (
        _findings("Which connector leaks?", diagnosis.leak),
        _findings("What can run here?", diagnosis.can_run),
        _findings("This machine", diagnosis.machine),
        _plugins(diagnosis.builds),
    ):
        out.print()
        out.print(part)
    code, line = _ending(diagnosis)
    out.print()
    out.print(line, style="red" if code == 1 else "yellow" if code else "green")


def _plugins(builds: Sequence[Build]) -> Table | str:
    if not builds:
        return "NIXL is not installed: pip install nixl"
    chosen = [f"{build.name} {build.version}{CHOSEN * build.chosen}" for build in builds]
    table = _table("NIXL plugin", *(build.name for build in builds), "reason")
    table.title = f"builds of NIXL: {', '.join(chosen)}"
    every = sorted({plugin.name for build in builds for plugin in build.plugins})
    for name in (plugin for plugin in every if plugin in USED):
        found = [build.plugin(name) for build in builds]
        reasons = dict.fromkeys(plugin.reason for plugin in found if plugin is not None and plugin.reason)
        states = (Text("") if plugin is None else _state(plugin.state) for plugin in found)
        table.add_row(name, *states, "; ".join(reasons))
    for build in builds:
        if build.problem:
            table.add_row(build.name, *(Text("") for _ in builds), Text(build.problem, style=STYLES["no"]))
    return table


def _findings(title: str, findings: Sequence[Finding]) -> Table:
    table = _table(title, "", "")
    for finding in findings:
        detail = Text(finding.detail)
        if finding.advice:
            detail.append(f". {finding.advice}", style="dim")
        table.add_row(finding.what, _state(finding.state), detail)
    return table


def _state(state: str) -> Text:
    return Text(state, style=STYLES[state])


def _table(*columns: str) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold underline",
        title_justify="left",
        title_style="",
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
