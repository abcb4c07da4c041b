"""hicache-nixl store: what is in a store of lifetime pooled, and whether its pages are as they were stored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import ConfigError
from .app import AsJson, app, print_json
from .store_output import show_compacted, show_damaged, show_damaged_rows, show_facts, size_of

DAMAGED = 3  # exit code


@app.command()
def store(
    folder: Annotated[
        str,
        typer.Argument(
            help="The storage folder, or the folder pooled in it.",
            show_default=False,
        ),
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every page and compare it with its checksum.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --verify: remove damaged pages from the index.")
    ] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Free segments that are mostly dead; their pages are moved.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a store of lifetime pooled: pages, hits, segments, damage.

    It can be used beside servers on the store, and changes nothing without
    --repair and --compact. Hits and misses are those of all processes since the store was
    made; a server adds its own with a call, at most once a second, and at its end.

    A segment is a file that pages are appended to. Its dead bytes are those of
    pages that were stored again elsewhere or cleared, and gaps; they are used
    again when the segment is recycled. A space is the pages of one model, rank
    and layout.

    [bold]Examples[/]

        hicache-nixl store /mnt/nvme/hicache
        hicache-nixl store /mnt/nvme/hicache --verify --repair

    [bold]--json[/]

    path, format, in_use, pages, stored, dead, capacity, segment_bytes,
    most_segments, segments (number, generation, taken, used, live, dead, pages,
    is_written, is_read), spaces (pages by number), index (file, bytes, slots,
    occupied, load), counters (gets, pages_asked, pages_found, bytes_found,
    sets, pages_stored, bytes_stored, segments_recycled), all sizes in bytes;
    with --verify also verified (pages, bytes, damaged_rows, repaired, damaged: a
    list of key, segment, offset, size, problem), with --compact also compacted (freed, moved,
    moved_bytes, damaged, kept).

    [bold]Exit codes[/]

        0  no damage was found, or none was looked for
        1  the store could not be read to its end
        2  there is no store, or it cannot be read: of another user, or of a
           newer version
        3  damaged pages were found; --repair and --compact remove them
    """
    from ..lifetimes.pooled.inspection import Inspection

    if repair and not verify:
        raise ConfigError("--repair has no effect without --verify; give both")
    if not folder:
        raise ConfigError("the folder is an empty path; give the storage folder")
    with Inspection(folder) as inspection:
        done: dict[str, Any] = {}
        if verify:
            done["verified"] = _verify(inspection, repair)
        if compact:
            done["compacted"] = _compact(inspection)
        facts = inspection.facts()
    if as_json:
        print_json({**facts.as_dict(), **done})
    else:
        show_facts(facts)
        if verify:
            show_damaged(done["verified"])
            show_damaged_rows(done["verified"]["damaged_rows"])
        if compact:
            show_compacted(done["compacted"])
    found = any(result["damaged"] or result.get("damaged_rows") for result in done.values())
    raise typer.Exit(DAMAGED if found else 0)


def _verify(inspection: Any, repair: bool) -> dict[str, Any]:
    """Read every page; return what ``--json`` prints of it."""
    rows = inspection.rows()
    total = int(rows["size"].sum())
    with _bar("reading pages", total) as advance:
        damaged, bad = inspection.verify(rows, advance)
    if repair and damaged:
        inspection.repair(bad)
    return {
        "pages": len(rows),
        "bytes": total,
        "damaged_rows": inspection.damaged_rows(),
        "repaired": len(damaged) * repair,
        "damaged": [asdict(page) for page in damaged],
    }


def _compact(inspection: Any) -> dict[str, Any]:
    """Free segments; return what ``--json`` prints of it."""
    from ..lifetimes.pooled.compaction import compact, to_compact

    total = sum(segment.live for segment in to_compact(inspection.facts().segments))
    with _bar("moving pages", total) as advance:
        return asdict(compact(inspection, advance))


@contextmanager
def _bar(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what is told of bytes that are done; a bar on stderr shows them where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda size: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[done]} of {task.fields[all]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, transient=sys.stdout.isatty(), redirect_stdout=False) as bar:
        task = bar.add_task(doing, total=total, done=size_of(0), all=size_of(total))

        def advance(size: int) -> None:
            bar.advance(task, size)
            bar.update(task, done=size_of(int(bar.tasks[0].completed)))

        yield advance
