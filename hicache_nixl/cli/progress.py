"""The progress of a run on stderr: a bar for each notebook in a terminal, one line for each one elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from ..lab.bench.measure import Turn
    from ..lab.execute import Outcome, Step

ENDING = "interrupted, ending ..."
REMOVING = "interrupted, removing what was stored ..."
Watch = Callable[["Step"], None]


@contextmanager
def showing_progress() -> Iterator[Watch]:
    """Yield what ``execute`` reports its steps to."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda step: _line(console, step)
        return
    with _bars(console) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(step: Step) -> None:
            if step.notebook not in tasks:
                tasks[step.notebook] = bars.add_task(step.notebook, at=time.monotonic(), ended="")
            bars.update(
                tasks[step.notebook],
                total=step.cells,
                completed=step.done,
                at=time.monotonic(),
                ended=ENDING if step.interrupted else ended(step.outcome) if step.outcome else "",
                refresh=step.interrupted,
            )

        yield advance


@contextmanager
def showing_turns() -> Iterator[Callable[[Turn], None]]:
    """Yield what a benchmark reports its turns to."""
    console = Console(stderr=True)
    started: dict[str, float] = {}

    def line(turn: Turn) -> None:
        if turn.removing:
            console.print(REMOVING, markup=False, highlight=False, soft_wrap=True)
            return
        since = started.setdefault(turn.group, time.monotonic())
        if turn.ended:
            told = f"{turn.group}: {time.monotonic() - since:.0f} s"
            console.print(told, markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal or console.is_dumb_terminal:
        yield line
        return
    with _bars(console, "turn") as bars:
        tasks: dict[str, TaskID] = {}

        def advance(turn: Turn) -> None:
            if turn.removing:
                line(turn)  # above the bars
                return
            since = started.setdefault(turn.group, time.monotonic())
            if turn.group not in tasks:
                tasks[turn.group] = bars.add_task(turn.group, at=since, ended="")
            now = time.monotonic()
            told = f"{now - since:.0f} s" if turn.ended else ""
            bars.update(tasks[turn.group], total=turn.turns, completed=turn.done, at=now, ended=told)

        yield advance


def ended(outcome: Outcome) -> str:
    """Say how a notebook has ended."""
    from ..lab.runs.claims import tally

    return f"{outcome.seconds:.0f} s, {tally(outcome.claims)}{', stopped by an error' * bool(outcome.error)}"


def _line(console: Console, step: Step) -> None:
    if step.interrupted or step.outcome is not None:
        told = f"{step.notebook}: {ended(step.outcome) if step.outcome else ENDING}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)


def _bars(console: Console, unit: str = "cell") -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn(f"{unit} {{task.completed:.0f}} of {{task.total:.0f}}"),
        _TimeLeft(),
        console=console,
        transient=sys.stdout.isatty(),  # the table that is printed at the end takes their place
        redirect_stdout=False,
        redirect_stderr=False,
    )


class _TimeLeft(ProgressColumn):
    """The time that a notebook has taken, and has left if its other cells take as long as those before."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Return the text for a bar."""
        if told := task.fields["ended"]:
            return Text(told)
        taken = time.monotonic() - (task.start_time or 0)
        if not task.completed or not task.total:
            return Text("starting")
        left = (task.fields["at"] - (task.start_time or 0)) / task.completed * task.total - taken
        return Text(f"{taken:.0f} s" + (f", about {left:.0f} s left" if left >= 1 else ""))
