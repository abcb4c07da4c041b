"""hicache-nixl watch: the descriptors of a live server, from outside."""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import threading
import time
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

from ..errors import ConfigError, FileError
from .app import app

if TYPE_CHECKING:
    from ..watch.process import Subject
    from ..watch.recording import WatchFile
    from ..watch.verdict import Watch

LEAK, OPEN = 3, 4  # exit codes: a leak was found, the question stays open
SLICE = 1.0  # seconds at most until the end of the process is noticed
SHORTEST, LONGEST = 0.05, 3600.0  # seconds between two samples
FIRST_GAP = 10.0  # seconds between two lines where there is no terminal; later a tenth of the time watched
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Show = Callable[["Watch"], None]


class Output(Console):
    """A console whose reader may go away, as ``head`` does: from then on it prints nothing."""

    lost = False

    def on_broken_pipe(self) -> None:
        """Go on without a reader; the console of rich would end the program here."""
        self.quiet = self.lost = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # for what is flushed at the end
        os.close(nowhere)


out = Output()


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

    Exit code 3: a leak was found. 0: none was seen. 4: not settled, as what was opened has not been closed so far,
    or not judged, with too few samples or a process at its limit. 2: it cannot be watched.

    SGLang's storage files are opened by its scheduler, a process of its own (with several, watch each):

    hicache-nixl watch "$(pgrep -o -f sglang::scheduler)" --storage-dir /mnt/nvme

    In a script, under traffic, after the warm-up:

    hicache-nixl watch "$(pgrep -o -f sglang::scheduler)" --storage-dir /mnt/nvme --duration 300; [ $? -ne 3 ] || alert

    The record beside the points of PR #24671:

    hicache-nixl watch 4711 --csv server.csv; hicache-nixl reproduce --notebook 01 -p watched=server.csv

    A leak is what stays open between the calls. Storage files that rise in 3 separate steps, and of which none is
    closed, are one. So is, for any files, a floor that rises: cut into five, the samples have a lowest count that
    rises from each fifth to the next, above the mean of the fifth but one before, and a growth whose interval of
    95 % lies above zero, for a tenth of the time so judged and three times in a row. That takes 12 samples, and
    some ten calls. What goes up and down with the calls is no leak, nor what was closed again.

    Without --storage-dir, regular files that a server keeps for minutes may be taken for a leak, about one time in
    eight in 20 minutes of watching: name the folder.

    When nobody reads the output any more (watch ... | head), it goes on if there is a --csv or a --duration, and else
    ends with the exit code of what it has seen.
    """
    from ..watch.process import Subject
    from ..watch.recording import WatchFile
    from ..watch.verdict import NEEDED, Watch, samples, span

    _check_times(interval, duration, NEEDED)
    subject, seen = Subject(_one(pid or []), storage_dir), Watch()
    with ExitStack() as ends:
        stop = ends.enter_context(_stopped_by_signals())
        record = ends.enter_context(WatchFile(csv)) if csv is not None else None
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
    if csv is not None and seen.count:
        watched = shlex.quote(f"watched={csv}")
        told = f"samples: {shlex.quote(str(csv))}; beside the PR's points: "
        _say(f"{told}hicache-nixl reproduce --notebook 01 -p {watched}")
    raise typer.Exit(LEAK if seen.found else 0 if seen.settled else OPEN)


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
    from ..lab.worker.descriptors import ProcessGoneError

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
        if out.lost and record is None and duration is None:
            return "nobody reads this any more", broken
        due = max(due + interval, time.monotonic())
        if _wait(subject, stop, min(due, end)):
            return "interrupted", broken
        if due > end and time.monotonic() >= end:  # earlier if the process has ended, as the next sample says
            return "the time is over", broken


def _wait(subject: Subject, stop: threading.Event, until: float) -> bool:
    """Wait until then, or until the process ends, and tell whether it was stopped."""
    while (left := until - time.monotonic()) > 0:
        if stop.wait(min(left, SLICE)):
            return True
        if left > SLICE and not subject.alive():
            break
    return stop.is_set()


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
    from ..watch.verdict import NEEDED, rate, samples, span

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
