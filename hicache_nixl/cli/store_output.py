"""What the command store prints: the facts, a row for each space and segment, and damaged pages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from ..watch.wording import span
from .app import out, say

if TYPE_CHECKING:
    from ..lifetimes.pooled.facts import Facts, Segment

MOST = 20  # damaged pages that are named in the shell
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def show_facts(facts: Facts) -> None:
    """Print what is in a store."""
    say(f"{facts.path}: format {facts.format}, {'in use' if facts.in_use else 'no process has it open'}")
    summary = _table(("", "left"), ("", "left"))
    for what, told in _lines(facts).items():
        summary.add_row(what, told)
    out.print(summary)
    if facts.spaces:
        spaces = _table(("space", "left"), ("pages", "right"))
        for space, pages in facts.spaces.items():
            spaces.add_row(space, str(pages))
        out.print(spaces)
    if facts.segments:
        names = ("segment", "generation", "age", "used", "dead", "pages")
        segments = _table(*((name, "right") for name in names), ("state", "left"))
        for segment in facts.segments:
            segments.add_row(*_cells(segment))
        out.print(segments)


def _lines(facts: Facts) -> dict[str, str]:
    index, counted = facts.index, facts.counters
    used = sum(segment.used for segment in facts.segments)
    missed = counted["pages_asked"] - counted["pages_found"]
    return {
        "pages": str(facts.pages),
        "stored": f"{size_of(facts.stored)} of {size_of(facts.capacity)}",
        "dead": f"{size_of(facts.dead)}{_part(facts.dead, used, ' of what segments hold')}",
        "segments": f"{len(facts.segments)} of {facts.most_segments}, {size_of(facts.segment_bytes)} each",
        "index": f"{index['occupied']} of {index['slots']} slots{_part(index['occupied'], index['slots'])}, "
        f"{size_of(index['bytes'])} in {index['file']}",
        "gets": f"{counted['gets']}, {counted['pages_found']} hits{_part(counted['pages_found'], counted['pages_asked'])} "
        f"and {missed} misses, {size_of(counted['bytes_found'])}",
        "sets": f"{counted['sets']}, {counted['pages_stored']} pages, {size_of(counted['bytes_stored'])}",
        "recycled": f"{counted['segments_recycled']} segments",
    }


def _part(part: int, whole: int, of: str = "") -> str:
    return f" ({100 * part / whole:.0f} %{of})" if whole else ""


def _cells(segment: Segment) -> list[str]:
    states = [word for word, holds in (("written", segment.is_written), ("read", segment.is_read)) if holds]
    return [
        str(segment.number),
        str(segment.generation),
        span(max(time.time() - segment.taken, 0)) if segment.taken else "",
        size_of(segment.used),
        size_of(segment.dead),
        str(segment.pages),
        f"being {' and '.join(states)}" if states else "idle",
    ]


def show_damaged(verified: dict[str, Any]) -> None:
    """Print which pages are damaged."""
    damaged = verified["damaged"]
    for page in damaged[:MOST]:
        say(
            f"damaged: {page['key']}, segment {page['segment']}, offset {page['offset']}: "
            f"{page['size']} bytes, {page['problem']}"
        )
    if len(damaged) > MOST:
        say(f"         and {len(damaged) - MOST} more, in --json")
    done = "removed from the index" if verified["repaired"] else "not removed: --repair does that"
    say(
        f"{verified['pages']} pages with {size_of(verified['bytes'])} were read, {len(damaged)} are damaged"
        f"{f'; they are {done}' if damaged else ''}"
    )


def show_damaged_rows(count: int) -> None:
    """Print how many rows of the index are damaged, if any are."""
    if count:
        say(f"{count} rows of the index are damaged: their pages are missing until they are stored again")


def show_compacted(compacted: dict[str, Any]) -> None:
    """Print what was moved and freed."""
    say(
        f"{compacted['freed']} segments were freed, {compacted['moved']} pages with {size_of(compacted['moved_bytes'])} "
        f"moved, {compacted['damaged']} damaged pages removed"
    )
    if compacted["kept"]:
        say(f"a segment that is mostly dead was kept: {compacted['kept']}")


def size_of(size: int) -> str:
    """Write a number of bytes in the unit that suits it.

    Examples
    --------
    >>> [size_of(size) for size in (0, 1023, 65536, 1 << 28, 100 << 30)]
    ['0 bytes', '1023 bytes', '64.0 KiB', '256 MiB', '100 GiB']
    """
    value, unit = float(size), 0
    while value >= 1024 and unit + 1 < len(UNITS):
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if not unit or value >= 100 else f"{value:.1f} {UNITS[unit]}"


def _table(*columns: tuple[str, Any]) -> Table:
    """Return a table without rows; a column is its heading and where it is aligned."""
    headed = any(heading for heading, _ in columns)
    table = Table(
        box=box.SIMPLE_HEAD if headed else None, show_header=headed, collapse_padding=True, pad_edge=False
    )
    for heading, side in columns:
        table.add_column(heading, justify=side, no_wrap=headed)
    return table
