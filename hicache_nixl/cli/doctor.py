"""hicache-nixl doctor: what can run on this machine, on one screen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .app import app, out

if TYPE_CHECKING:
    from ..doctor.diagnosis import Diagnosis
    from ..doctor.finding import Finding
    from ..doctor.plugin_check import Build

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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check what can run on this machine.

    Tries everything in some seconds: the builds and plugins of NIXL, the I/O
    queues of its POSIX plugin, the limits of open files, the storage folder with
    its file system and O_DIRECT, and whether the connector of the installed
    SGLang has the leak (open files), the second leak (memory registrations), or
    neither. Nothing is left behind, and no other host is contacted.

    [bold]Examples[/]

        hicache-nixl doctor
        hicache-nixl doctor --storage-dir /mnt/nvme --sglang /opt/sglang/venv

    [bold]Exit codes[/]

        0  the connector can run here: the POSIX plugin works on a queue, and
           the storage folder can be written to
        1  it cannot
        2  an option cannot work
    """
    from ..doctor import diagnosis as checks
    from ..doctor import sglang_check

    found = sglang_check.find(sglang)
    with Console(stderr=True).status("checking") as status:
        diagnosis = checks.diagnose(storage_dir, found, progress=lambda step: status.update(f"trying {step}"))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(diagnosis), indent=2))
    else:
        _show(diagnosis)
    raise typer.Exit(0 if diagnosis.usable else 1)


def _show(diagnosis: Diagnosis) -> None:
    versions = [f"{name} {version or 'not installed'}" for name, version in diagnosis.versions.items()]
    out.print(", ".join(versions), highlight=False)
    if diagnosis.builds:
        builds = [f"{build.name} {build.version}{CHOSEN * build.chosen}" for build in diagnosis.builds]
        out.print(f"builds of NIXL: {', '.join(builds)}", highlight=False)
    for part in (
        _plugins(diagnosis.builds),
        _findings("this machine", diagnosis.machine),
        _findings("can run", diagnosis.can_run),
    ):
        out.print()
        out.print(part)
    out.print()
    if diagnosis.usable:
        out.print("The connector can run here.", style="green")
    else:
        out.print("The connector cannot run here.", style="red")


def _plugins(builds: Sequence[Build]) -> Table | str:
    if not builds:
        return "NIXL is not installed: pip install nixl"
    table = _table("NIXL plugin", *(build.name for build in builds), "reason")
    for name in sorted({plugin.name for build in builds for plugin in build.plugins}):
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
    table = Table(box=None, pad_edge=False, header_style="bold underline")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
