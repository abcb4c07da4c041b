"""What the command server prints: the progress of an installation, what is installed, a running server and its log."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .app import check_new_files, out, say
from .store_output import size_of

if TYPE_CHECKING:
    from ..lab.server import Server

INTERVAL = 0.2  # seconds
ASKED = """{"input_ids": [$prompt], "sampling_params": {"max_new_tokens": 4, "temperature": 0}}""".replace(
    '"', '\\"'
)
# For any shell; it ends with the server.  A new prompt is asked, and asked again when it is in storage only.
LOOP = f"""url=URL
    while curl -sf $url/health; do
      prompt=$(shuf -i 3-999 -n 700 | paste -sd, -)
      for times in new again; do
        printf '%-5s ' $times
        curl -s $url/generate -H 'content-type: application/json' -d "{ASKED}" |
          grep -Eo '"cached_tokens_details":(null|[{{][^}}]*[}}])'
        sleep 1; curl -s -o /dev/null -X POST $url/flush_cache
      done
    done"""


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


def starting(server: Server, log: Path | None) -> None:
    """Print on stderr what is being started, since it takes long."""
    where = shlex.quote(str(log)) if log else "stderr"
    line = f"starting {described(server)}, which takes 20 s or more; log: {where}"
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def described(server: Server) -> str:
    """Return the settings of a server that matter."""
    lifetime = f", lifetime {server.lifetime}" if server.backend == "hicache_nixl" else ""
    return f"sglang {server.version} (backend {server.backend}{lifetime}, layout {server.layout})"


def program() -> str:
    """Return how this command was started, for another shell."""
    started_as = Path(sys.argv[0])
    if started_as.name != "hicache-nixl":
        return f"{shlex.quote(sys.executable)} -m hicache_nixl.cli"
    found = shutil.which("hicache-nixl")
    on_path = found is not None and os.path.realpath(found) == os.path.realpath(started_as)
    return "hicache-nixl" if on_path else shlex.quote(os.path.abspath(started_as))


def started(server: Server) -> None:
    """Print where a server is, and what to do with it.

    By ``echo``: rich prints a line twice that Ctrl-C interrupts.
    """
    folder = shlex.quote(str(server.storage_dir))
    lines = [
        f"{described(server)}: {server.process.url}",
        f"storage files are opened by process {server.pid}, in {folder}",
        "watch its descriptors, in a second shell:",
        f"    {program()} watch {server.pid} --storage-dir {folder}",
        "ask a new prompt, empty the device and host caches, keep the storage, and ask it again, in a third shell:",
        f"    {LOOP.replace('URL', server.process.url)}",
        "of the second answer, 640 tokens are from storage; null means that none were, as at the limit of descriptors",
        "press Ctrl-C to end it",
    ]
    typer.echo("\n".join(lines))


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
