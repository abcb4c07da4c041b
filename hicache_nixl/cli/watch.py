"""hicache-nixl watch: the descriptors of a live server, from outside."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError, FileError
from .app import app, out

if TYPE_CHECKING:
    from ..lab.subjects import Subject
    from ..lab.watching import Watch, WatchFile

LEAK = 3  # exit code
SHORTEST, LONGEST = 0.05, 3600.0  # seconds between two samples
FIRST_GAP = 10.0  # seconds between two lines where there is no terminal; later a tenth of the time watched
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Show = Callable[["Watch"], None]


@app.command()
def watch(
    pid: Annotated[
        list[str] | None, typer.Argument(metavar="PID", help="The process to watch, one.", show_default=False)
    ] = None,
    storage_dir: Annotated[
        str | None,
        typer.Option(
            help="The folder of the page files, as the server sees it: its files are counted apart, and a leak "
            "is judged on them; else on all regular files."
        ),
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds from sample to sample.")] = 1.0,
    duration: Annotated[
        float | None, typer.Option(help="End after so many seconds; else with Ctrl-C or with the process.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every sample to this new file.")] = None,
) -> None:
    """Watch the open descriptors of a live server from outside, and say whether they leak.

    Exit code 3 when a leak was found, 0 when not, 2 when the process cannot be watched.

    SGLang's storage files are opened by its scheduler, a process of its own (with several, watch each):

    hicache-nixl watch "$(pgrep -o -f sglang::scheduler)" --storage-dir /mnt/nvme

    In a script, under traffic, after the warm-up:

    hicache-nixl watch "$(pgrep -o -f sglang::scheduler)" --storage-dir /mnt/nvme --duration 60; [ $? -ne 3 ] || alert

    The record beside the points of PR #24671:

    hicache-nixl watch 4711 --csv server.csv; hicache-nixl reproduce --notebook 01 -p watched=server.csv

    A leak is what stays open between the calls: cut into five, the samples have a floor that rises from each
    fifth to the next, above the mean of the fifth but one before, and a growth whose interval of 95 % lies above
    zero, three times in a row. That takes 12 samples. A single step is no leak, nor is what goes up and down with
    the calls, nor what was closed again.
    """
    from ..lab.subjects import Subject
    from ..lab.watching import NEEDED, Watch, WatchFile, samples, span

    _check_times(interval, duration, NEEDED)
    subject, seen = Subject(_one(pid or []), storage_dir), Watch()
    with ExitStack() as ends:
        record = ends.enter_context(WatchFile(csv)) if csv is not None else None
        stop = ends.enter_context(_stopped_by_signals())
        _say(f"watching process {subject.name} every {interval:g} s{_until(duration)}")
        for note in subject.notes:
            _say(f"note: {note}")
        show = ends.enter_context(_shown())
        ended, broken = _follow(subject, seen, record, stop, interval, duration, show)
    last = seen.last.seconds if seen.last else 0.0
    _say(f"{ended}; watched for {span(last)}, {samples(seen.count)}")
    _say(seen.answer(), "bold red" if seen.found else "bold")
    _say(f"open descriptors: {seen.limit_told()}")
    _say(f"other kinds that grow: {seen.others() or 'none'}")
    for line in (broken, subject.suggestion()):
        if line:
            _say(f"note: {line}")
    if csv is not None:
        _say(f"samples: {csv}; beside the PR's points: hicache-nixl reproduce --notebook 01 -p watched={csv}")
    raise typer.Exit(LEAK if seen.found else 0)


def _follow(
    subject: Subject,
    seen: Watch,
    record: WatchFile | None,
    stop: threading.Event,
    interval: float,
    duration: float | None,
    show: Show,
) -> tuple[str, str | None]:
    """Take samples until something ends it; why it ended, and what became of the record if it broke off."""
    from ..lab.fds import ProcessGoneError

    broken = None
    due = time.monotonic()
    end = math.inf if duration is None else due + duration
    while True:
        try:
            sample = subject.sample()
        except ProcessGoneError as error:
            return str(error), broken
        seen.add(sample)
        if record is not None:
            try:
                record.write(sample)
            except FileError as error:  # what is watched matters more than its record
                broken = f"{record.path} ends after {sample.seconds:.0f} s: {error.strerror}"
                record = None
        show(seen)
        due = max(due + interval, time.monotonic())
        if stop.wait(min(due, end) - time.monotonic()):
            return "interrupted", broken
        if due > end:
            return "the time is over", broken


@contextmanager
def _shown() -> Iterator[Show]:
    """Show each sample: as a live table in a terminal, else as a line now and then."""
    if not out.is_terminal or out.is_dumb_terminal:
        yield _lines()
        return
    with Live(console=out, auto_refresh=False) as live:
        yield lambda seen: live.update(_screen(seen), refresh=True)


def _lines() -> Show:
    """Return what prints a line at the first sample, when a leak is found, and ever more seldom."""
    due, found = 0.0, False

    def show(seen: Watch) -> None:
        nonlocal due, found
        seconds = seen.last.seconds if seen.last else 0.0
        if seconds < due and seen.found == found:
            return
        due, found = max(seconds + FIRST_GAP, seconds * 1.1), seen.found
        now = f"{seen.last.time:%H:%M:%S} UTC: " if seen.last else ""
        _say(f"{now}{seen.limit_told()}; {seen.answer()}")

    return show


def _screen(seen: Watch) -> Group:
    from ..lab.watching import NEEDED, rate, samples, span

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("descriptors", no_wrap=True)
    for heading in ("now", "most"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("growth [95 %]", ""):
        table.add_column(heading, no_wrap=True)
    for row, column in zip(seen.table().itertuples(), seen.shown(), strict=True):
        grown = seen.growth(column)
        verdict = "" if not row.grows else "leak" if column == seen.judged else "grows"
        told = rate(grown) if grown else ""
        style = "bold red" if verdict == "leak" else "bold" if column == "open_fds" else ""
        table.add_row(row.descriptors, f"{row.now:,}", f"{row.most:,}", told, verdict, style=style)
    seconds = seen.last.seconds if seen.last else 0.0
    progress = f"{samples(seen.count)} in {span(seconds)}" + (
        f", judged from {NEEDED} on" if seen.count < NEEDED else ""
    )
    lines = [f"limit: {seen.limit_told()}", f"{seen.answer()}", f"{progress}; Ctrl-C ends it"]
    return Group(table, *(Text(line) for line in lines))


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Let Ctrl-C and SIGTERM end the watch between two samples, so that none is lost half-way."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _one(pids: list[str]) -> int:
    pids = " ".join(pids).split()  # a quoted "$(pgrep ...)" is one word, whatever it found
    if not pids:
        raise ConfigError("no PID was given; if it came from pgrep, no process matches its pattern")
    if len(pids) > 1:
        raise ConfigError(f"{len(pids)} processes were given ({' '.join(pids)}); watch takes one: watch each")
    try:
        return int(pids[0])
    except ValueError:
        raise ConfigError(f"PID {pids[0]!r}: it takes the number of a process, as pgrep prints it") from None


def _check_times(interval: float, duration: float | None, needed: int) -> None:
    if not SHORTEST <= interval <= LONGEST:  # false for nan as well
        raise ConfigError(f"--interval {interval:g}: it takes {SHORTEST:g} to {LONGEST:g} seconds")
    if duration is None:
        return
    shortest = interval * (needed - 1)
    if not shortest <= duration < math.inf:
        raise ConfigError(
            f"--duration {duration:g}: at --interval {interval:g} it takes {shortest:g} seconds or more, for "
            f"{needed} samples"
        )


def _until(duration: float | None) -> str:
    return "; Ctrl-C ends it" if duration is None else f" for {duration:g} s"


def _say(line: str, style: str = "") -> None:
    text = escape(line)
    out.print(f"[{style}]{text}[/]" if style else text, highlight=False, soft_wrap=True)
