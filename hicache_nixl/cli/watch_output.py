"""What watch prints: a live table or lines while it watches, and the summary at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..watch import group as watched
    from ..watch.places import Place, Places
    from ..watch.verdict import Watch

FIRST_GAP = 10.0  # seconds between two lines where there is no terminal; later a tenth of the time watched
STYLES = {"leak": "bold red", "no leak": "bold green", "undecided": "bold"}
Show = Callable[[], None]


class Output(Console):
    """A console that knows whether its reader is gone, as after ``| head``."""

    @property
    def lost(self) -> bool:
        """Whether what is printed goes nowhere."""
        return getattr(self.file, "lost", False)


def say(out: Console, line: str, style: str = "") -> None:
    """Print a line as it is, however long it is."""
    text = escape(line)
    out.print(f"[{style}]{text}[/]" if style else text, highlight=False, soft_wrap=True)


@contextmanager
def shown(out: Console, group: watched.Group, paths: bool) -> Iterator[Show]:
    """Show each sample: as a live table in a terminal, elsewhere as a line now and then."""
    if not out.is_terminal or out.is_dumb_terminal:
        yield _lines(out, group)
        return
    with Live(console=out, auto_refresh=False, transient=True) as live:
        yield lambda: live.update(_screen(group, paths), refresh=True)


def _lines(out: Console, group: watched.Group) -> Show:
    """Return a function that prints at the first sample, when the verdict changes, and more and more seldom."""
    due, known = 0.0, ""

    def show() -> None:
        nonlocal due, known
        if group.seconds < due and group.state == known:
            return
        due, known = max(group.seconds + FIRST_GAP, group.seconds * 1.1), group.state
        for name, seen in _named(group):
            now = f"{seen.last.time:%H:%M:%S} UTC: " if seen.last else ""
            say(out, f"{now}{name}{_limit(seen)}; {seen.answer()}")

    return show


def tell_end(out: Console, group: watched.Group, ended: str, notes: Sequence[str], paths: bool) -> None:
    """Print the summary."""
    from ..watch import wording

    samples = sum(member.seen.count for member in group.members)
    say(out, f"{ended}; watched for {wording.span(group.seconds)}, {wording.samples(samples)}")
    for member in group.judged:
        seen, many = member.seen, len(group.members) > 1
        if many:
            say(out, f"process {member.process.name}:")
        if out.is_terminal and not many:
            out.print(_kinds(seen))
        say(out, seen.answer(), STYLES[seen.state])
        say(out, _limit(seen))
        if ended_growth := wording.ended(seen):
            say(out, f"earlier: {ended_growth}")
        if seen.found or paths:
            for place in _grew_most(member.process.places, paths):
                say(out, f"+{place.grown}, now {place.now}: {place.path}")
    for note in notes:
        say(out, f"note: {note}")


def _named(group: watched.Group) -> list[tuple[str, Watch]]:
    """Return what is known of each process, with its name where there are several."""
    many = len(group.members) > 1
    return [(f"process {one.process.name}: " if many else "", one.seen) for one in group.judged]


def _limit(seen: Watch) -> str:
    from ..watch import wording

    return wording.limit(seen)


def _grew_most(places: Places, all_of_them: bool) -> list[Place]:
    """Return the folders and files that grew most, briefly only the first folder."""
    return [*places.folders(), *_several_times(places)] if all_of_them else places.folders()[:1]


def _several_times(places: Places) -> list[Place]:
    """Return the files that are open more than once; the others are counted with their folder."""
    return [file for file in places.files() if file.now > 1]


def _screen(group: watched.Group, paths: bool) -> Group:
    from ..watch import wording

    members = group.judged
    parts: list[RenderableType] = []
    if len(group.members) > 1:
        parts.append(_processes(group))
    else:
        seen = members[0].seen
        parts += [_kinds(seen), Text(f"limit: {_limit(seen)}"), Text(seen.answer(), style=STYLES[seen.state])]
    if paths:
        parts += [_places(member.process.places) for member in members if member.process.places.files()]
    samples = sum(member.seen.count for member in group.members)
    watched = f"{wording.samples(samples)} in {wording.span(group.seconds)}"
    return Group(*parts, Text(f"{watched}; press Ctrl-C to stop"))


def _kinds(seen: Watch) -> Table:
    """Return a row for each kind of descriptor of a process."""
    from ..watch import wording

    table = _table(
        ("descriptors", "left"), ("now", "right"), ("most", "right"), ("growth [95 %]", "left"), ("", "left")
    )
    for row, column in zip(seen.table().itertuples(), seen.shown(), strict=True):
        grown = seen.growth(column)
        leaks = column in seen.leaks
        rate = wording.rate(grown) if grown else ""
        style = STYLES["leak"] if leaks else "bold" if column == "open_fds" else ""
        table.add_row(
            row.descriptors, f"{row.now}", f"{row.most}", rate, "leak" if leaks else "", style=style
        )
    return table


def _processes(group: watched.Group) -> Table:
    """Return a row for each process."""
    from ..watch import wording
    from ..watch.sample import NAMES

    table = _table(
        ("process", "left"),
        ("open", "right"),
        ("limit", "right"),
        ("grows most [95 %]", "left"),
        ("", "left"),
    )
    for member in group.members:
        seen, sample = member.seen, member.seen.last
        name = seen.judged if seen.found else seen.not_excluded() or seen.judged
        grown = seen.growth(name)
        rate = f"{NAMES[name]} {wording.rate(grown)}" if grown else ""
        now = f"{sample.counts['open_fds']}" if sample else ""
        limit = "" if sample is None else "none" if sample.limit is None else f"{sample.limit}"
        state = "ended" if member.ended else seen.state
        table.add_row(member.process.name, now, limit, rate, state, style=STYLES.get(state, "dim"))
    return table


def _places(places: Places) -> Table:
    """Return a row for each folder and file that grew most."""
    table = _table(("grew most", "left"), ("by", "right"), ("now", "right"))
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for place in (*places.folders(), *_several_times(places)):
        table.add_row(place.path, f"+{place.grown}", f"{place.now}")
    return table


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in columns:
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    return table
