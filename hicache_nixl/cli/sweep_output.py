"""What the command sweep prints: its progress on stderr, and its JSON."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

if TYPE_CHECKING:
    from ..lab.sweep.record import PointState
    from ..lab.sweep.sweep import Result, Step

AT_ONCE = "interrupted again: ended at once; what has run is kept\n"
SHORT = 16  # columns of "points 12 of 160"
SHOWN = 2  # running points in the bar


@contextmanager
def showing_sweep() -> Iterator[Callable[[Step], None]]:
    """Yield what ``sweep`` reports its steps to: a line for each point that ended, and a bar in a terminal."""
    console = Console(stderr=True)
    terminal = console.is_terminal and not console.is_dumb_terminal
    before = signal.getsignal(signal.SIGINT)
    told = set[str]()
    with _bar(console) as bar:
        task = bar.add_task("connecting", total=None, points="points", visible=terminal)

        def advance(step: Step) -> None:
            if step.note:
                signal.signal(signal.SIGINT, _end_at_once)
                _print(console, step.note)
            if not terminal:
                if bar.tasks[task].total is None and step.sweep.left:
                    _print(console, _plan(step))
                _tell_started(console, step, told)
            if step.ended is not None:
                _print(console, f"{step.sweep.label(step.ended.slug)}: {ended(step.ended)}")
            count = len(step.sweep.points)
            done = count - len(step.sweep.left)
            points = f"points {done} of {count}"
            bar.update(task, total=count, completed=done, points=points, description=_now(step))

        try:
            yield advance
        finally:
            signal.signal(signal.SIGINT, before)


def _plan(step: Step) -> str:
    """Say how many points there are."""
    count, left = len(step.sweep.points), len(step.sweep.left)
    done = f", {count - left} of them done before" if left < count else ""
    return f"{count} points{done}; Ctrl-C ends the sweep and keeps what has run"


def _tell_started(console: Console, step: Step, told: set[str]) -> None:
    """Print a line when points begin, where no bar shows it; ``told`` are those that were told already."""
    for slug, host in step.running.items():
        if slug in step.sweep.points and f"{slug} {host}" not in told:
            told.add(f"{slug} {host}")
            _print(console, f"{step.sweep.label(slug, host)}: started")


def ended(point: PointState) -> str:
    """Say how a point has ended."""
    if point.reason:
        return f"failed: {point.reason}"
    again = f", after {point.deaths} of its workers died" if point.deaths else ""
    return f"{point.seconds or 0:.0f} s, {point.verdict}{again}"


def as_dict(result: Result) -> dict[str, Any]:
    """Return what ``sweep --json`` prints."""
    done = result.sweep
    points = [
        {**dataclasses.asdict(point), "run": str(done.run_of(slug)) if done.run_of(slug).is_dir() else None}
        for slug, point in done.points.items()
    ]
    return {
        "name": done.name,
        "page": str(result.page),
        "verdict": done.verdict(),
        "points": points,
        "hosts": done.hosts,
        "problems": done.problems,
    }


def _now(step: Step) -> str:
    """Say what runs now."""
    failed = sum(point.state == "failed" for point in step.sweep.points.values())
    known = step.sweep.points
    running = [
        step.sweep.label(slug, host) if slug in known else f"facts of {host}"
        for slug, host in step.running.items()
    ]
    shown = "; ".join(running[:SHOWN]) + (f"; {len(running) - SHOWN} more" if len(running) > SHOWN else "")
    return (f"{failed} failed; " if failed else "") + (shown or "waiting for a host")


def _end_at_once(number: int, frame: object) -> None:
    """End without waiting: the processes of points end by themselves when their worker or its client is gone."""
    os.write(2, AT_ONCE.encode())
    os._exit(130)


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.fields[points]}", table_column=Column(no_wrap=True, min_width=SHORT)),
        BarColumn(bar_width=20, table_column=Column(min_width=20)),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
        ),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not (console.is_terminal and not console.is_dumb_terminal and sys.stderr.isatty()),
    )
