"""What the command server prints: the progress of an installation, what is installed, a running server and its log."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .app import check_new_files, out, say
from .store_output import size_of

if TYPE_CHECKING:
    from ..lab.server import Server

INTERVAL = 0.2  # seconds
ASKED = """{"input_ids": [$(seq -s, 3 700)], "sampling_params": {"max_new_tokens": 4, "temperature": 0}}"""


@contextmanager
def showing_installation() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what an installation reports to: a bar in a terminal, a line for each step elsewhere; both on stderr."""
    console = Console(stderr=True)
    said: set[str] = set()

    def line(doing: str, size: int, expected: int) -> None:
        if doing not in said:
            said.add(doing)
            console.print(f"installing {doing}", markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal or console.is_dumb_terminal:
        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[told]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None, told="", visible=False)

        def advance(doing: str, size: int, expected: int) -> None:
            told = f"{size_of(size)} of about {size_of(expected)}"
            bar.update(task, description=doing, total=expected, completed=size, told=told, visible=True)

        yield advance


def table(found: dict[str, Any]) -> None:
    """Print what ``server list --json`` has."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("sglang", "installed", "size"):
        shown.add_column(name, justify="right" if name == "size" else "left")
    for release in found["releases"]:
        state = "yes" if release["installed"] else "in part" if release["bytes"] else "no"
        shown.add_row(release["version"], state, size_of(release["bytes"]) if release["bytes"] else "")
    out.print(shown)
    say(f"shared by all: {size_of(found['common'])}; models and others: {size_of(found['other'])}")
    say(f"{size_of(found['bytes'])} in {found['folder']}")


def started(server: Server) -> None:
    """Print where a server is, and what to do with it."""
    folder = shlex.quote(str(server.storage_dir))
    body = ASKED.replace('"', '\\"')
    say(f"sglang {server.version} with backend {server.backend}: {server.process.url}")
    say(f"storage files are opened by process {server.pid}, in {folder}")
    say("ask it (the second time, the tokens are from the cache):")
    say(f"    curl -s {server.process.url}/generate -H 'content-type: application/json' -d \"{body}\"")
    say("forget what is not in storage:")
    say(f"    curl -s -X POST {server.process.url}/flush_cache")
    say("watch its descriptors:")
    say(f"    hicache-nixl watch {server.pid} --storage-dir {folder}")
    say("press Ctrl-C to end it")
    sys.stdout.flush()


@contextmanager
def log_file(path: Path | None) -> Iterator[IO[bytes]]:
    """Yield an open file for the log of a server: a new one of this name, or one without a name."""
    check_new_files(log=path)
    with open(path, "w+b") if path else tempfile.TemporaryFile() as file:
        yield file


@contextmanager
def copied_to_stderr(file: IO[bytes]) -> Iterator[None]:
    """Copy to stderr what another process appends to a file."""
    stop = threading.Event()
    copier = threading.Thread(target=_copy, args=(file.fileno(), stop))
    copier.start()
    try:
        yield
    finally:
        stop.set()
        copier.join()


def _copy(fd: int, stop: threading.Event) -> None:
    at, last = 0, False
    while not last:
        last = stop.wait(INTERVAL)
        while part := os.pread(fd, 65536, at):
            at += len(part)
            sys.stderr.write(part.decode(errors="replace"))
            sys.stderr.flush()
