"""hicache-nixl watch: the open descriptors of a running server, from outside."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from .app import app

if TYPE_CHECKING:
    from ..watch.verdict import Watch

LEAK, OPEN = 3, 4  # exit codes: a leak was found, the question stays open
FIRST_GAP = 10.0  # seconds between two lines where there is no terminal; later a tenth of the time watched
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Show = Callable[["Watch"], None]


class Output(Console):
    """A console that prints nothing more once its reader is gone, as after ``| head``."""

    lost = False

    def on_broken_pipe(self) -> None:
        """Continue without a reader; rich's own console would end the program here."""
        self.quiet = self.lost = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # for what is flushed at exit
        os.close(nowhere)


out = Output()


@app.command()
def watch(
    pid: Annotated[
        list[str] | None, typer.Argument(metavar="PID", help="The process to watch.", show_default=False)
    ] = None,
    storage_dir: Annotated[
        str | None,
        typer.Option(
            help="Folder of the page files, as the server sees it. A leak is then judged on the files below it, "
            "otherwise on all regular files."
        ),
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two samples.")] = 1.0,
    duration: Annotated[
        float | None,
        typer.Option(help="Stop after so many seconds; without it, at Ctrl-C or when the process ends."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every sample to this new file.")] = None,
) -> None:
    r"""Watch the open descriptors of a running server and say whether they leak.

    Reads /proc only; the server is not changed or restarted. Run it on a server
    that has warmed up, under traffic, for ten calls or more. SGLang's storage
    files are opened by its scheduler, a process of its own; if there are
    several, watch each of them.

    [bold]Examples[/]

    Watch until Ctrl-C:

        hicache-nixl watch "$(pgrep -o -f sglang::scheduler)" \
            --storage-dir /mnt/nvme

    In a script, five minutes; prints lines instead of a table:

        hicache-nixl watch "$(pgrep -o -f sglang::scheduler)" \
            --storage-dir /mnt/nvme --duration 300 || echo "exit code $?"

    Keep the samples, and see them beside those of PR #24671:

        hicache-nixl watch 4711 --csv server.csv
        hicache-nixl reproduce --notebook 01 -p watched=server.csv

    [bold]Exit codes[/]

        0  no leak seen
        2  an option cannot work, or the process cannot be watched
        3  leak
        4  undecided: files stayed open in fewer than three steps, or there
           were too few samples, or the process is at its limit

    [bold]What counts as a leak[/]

    Descriptors that stay open between calls. For the files below --storage-dir:
    three separate increases without a decrease. For any files: the samples are
    cut into five parts, and the lowest count rises from each part to the next,
    by a growth whose 95 % interval is above zero, and does so in as many samples
    in a row as a fifth of them. 12 samples are needed. Counts that rise and fall
    with the calls are not a leak. What is closed again later is no longer one.

    Without --storage-dir, files that a server keeps open for minutes may be
    taken for a leak: in 14 of 200 simulated watches of 20 minutes.
    """
    from ..watch import wording
    from ..watch.follow import Follower, check_times
    from ..watch.process import WatchedProcess
    from ..watch.recording import WatchFile

    check_times(interval, duration)
    process = WatchedProcess(_only_pid(pid or []), storage_dir)
    with ExitStack() as ends:
        stop = ends.enter_context(_stopped_by_signals())
        record = ends.enter_context(WatchFile(csv)) if csv is not None else None
        follower = Follower(process, record, interval, duration)
        until = "; press Ctrl-C to stop" if duration is None else f" for {duration:g} s"
        _say(f"watching process {process.name} every {interval:g} s{until}")
        for note in process.notes:
            _say(f"note: {note}")
        show = ends.enter_context(_shown())
        ended = follower.run(stop, show, is_read=lambda: not out.lost)
    seen = follower.seen
    _say(f"{ended}; watched for {wording.span(seen.seconds)}, {wording.samples(seen.count)}")
    _say(seen.answer(), "bold red" if seen.found else "bold")
    _say(f"open descriptors: {wording.limit(seen)}")
    _say(f"other kinds that grow: {wording.other_kinds(seen) or 'none'}")
    for last_note in filter(None, (follower.broken, process.suggestion())):
        _say(f"note: {last_note}")
    if csv is not None and seen.count:
        watched = shlex.quote(f"watched={csv}")
        _say(f"samples: {shlex.quote(str(csv))}; to see them beside those of the PR:")
        _say(f"hicache-nixl reproduce --notebook 01 -p {watched}")
    raise typer.Exit(LEAK if seen.found else 0 if seen.settled else OPEN)


@contextmanager
def _shown() -> Iterator[Show]:
    """Show each sample: as a live table in a terminal, elsewhere as a line now and then."""
    if not out.is_terminal or out.is_dumb_terminal:
        yield _lines()
        return
    with Live(console=out, auto_refresh=False) as live:
        yield lambda seen: live.update(_screen(seen), refresh=True)


def _lines() -> Show:
    """Return a function that prints a line at the first sample, when a leak is found, and more and more seldom."""
    due, found = 0.0, False

    def show(seen: Watch) -> None:
        from ..watch import wording

        nonlocal due, found
        if seen.seconds < due and seen.found == found:
            return
        due, found = max(seen.seconds + FIRST_GAP, seen.seconds * 1.1), seen.found
        now = f"{seen.last.time:%H:%M:%S} UTC: " if seen.last else ""
        _say(f"{now}{wording.limit(seen)}; {seen.answer()}")

    return show


def _screen(seen: Watch) -> Group:
    from ..watch import wording

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("descriptors", no_wrap=True)
    for heading in ("now", "most"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("growth [95 %]", ""):
        table.add_column(heading, no_wrap=True)
    for row, column in zip(seen.table().itertuples(), seen.shown(), strict=True):
        grown = seen.growth(column)
        verdict = "" if not row.grows else "leak" if column == seen.judged else "grows"
        rate = wording.rate(grown) if grown else ""
        style = "bold red" if verdict == "leak" else "bold" if column == "open_fds" else ""
        table.add_row(row.descriptors, f"{row.now:,}", f"{row.most:,}", rate, verdict, style=style)
    watched = f"{wording.samples(seen.count)} in {wording.span(seen.seconds)}"
    lines = [f"limit: {wording.limit(seen)}", seen.answer(), f"{watched}; press Ctrl-C to stop"]
    return Group(table, *(Text(line) for line in lines))


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Let Ctrl-C and SIGTERM end the watch between two samples, so that each sample is complete."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _only_pid(pids: list[str]) -> int:
    pids = " ".join(pids).split()  # a quoted "$(pgrep ...)" is one word, whatever it found
    if not pids:
        raise ConfigError("no PID was given; if it came from pgrep, no process matches its pattern")
    if len(pids) > 1:
        raise ConfigError(
            f"{len(pids)} PIDs were given ({' '.join(pids)}); expected one: watch each by itself"
        )
    try:
        return int(pids[0])
    except ValueError:
        raise ConfigError(f"PID {pids[0]!r}: expected the number of a process, as pgrep prints it") from None


def _say(line: str, style: str = "") -> None:
    text = escape(line)
    out.print(f"[{style}]{text}[/]" if style else text, highlight=False, soft_wrap=True)
