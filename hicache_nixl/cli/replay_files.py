"""What the command replay writes: a table, a figure, and a page that opens offline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    Tables = Mapping[str, pd.DataFrame]

DPI = 150


def write_files(files: Iterable[tuple[Path | None, Callable[[Path], None]]]) -> list[str]:
    """Write each file that has a path; return what could not be written, and why."""
    failed = []
    for path, write in files:
        if path is None:
            continue
        try:
            write(path)
        except OSError as error:
            path.unlink(missing_ok=True)  # it is new, and holds a part at most
            failed.append(f"{path} was not written: {error.strerror or error}")
    return failed


def write_csv(path: Path, tables: Tables) -> None:
    """Write a row for each call of each connector."""
    import pandas as pd

    frames = []
    for name, table in tables.items():
        frame = table.copy()
        frame.insert(0, "connector", name)
        frame.attrs = {}  # pandas compares them, and a log is no part of the file
        frames.append(frame)
    pd.concat(frames).to_csv(path, index=False)


def write_figure(path: Path, tables: Tables, name: str, limit: int | None) -> None:
    """Draw the open descriptors over the calls of a schedule."""
    import matplotlib

    matplotlib.use("Agg")
    from ..lab.figures.replays import replays

    drawn = replays(tables, name, limit)
    drawn.figure.savefig(path, dpi=DPI, metadata={"Description": drawn.alt})


def write_page(path: Path, tables: Tables, settings: Mapping[str, Any], missing: Mapping[str, str]) -> None:
    """Write the page; ``missing`` says why a connector has no table."""
    import matplotlib

    matplotlib.use("Agg")
    from ..lab.report.replay_page import replay_page

    path.write_text(replay_page(tables, settings, missing), encoding="utf-8")
