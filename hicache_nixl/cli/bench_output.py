"""What the command bench prints, and what it writes into the folder of its run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from .app import out, say

if TYPE_CHECKING:
    import pandas as pd

    from ..lab.bench.measure import Measured
    from ..lab.bench.plan import Plan
    from ..lab.bench.results import Results

NAME, FIGURE = "bench", "throughput"  # prefix of the tables in a run's folder, and the figure


def say_aside(line: str) -> None:
    """Print a line on stderr."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def what_is_measured(plan: Plan) -> str:
    """Say exactly what the times are."""
    from ..lab.bench.plan import KEYS, MOST_CALLS

    where = []
    if any(not point.direct for point in plan.points):
        where.append("Page cache: a get reads what was set in the same turn, so no disk is measured")
    if any(point.direct for point in plan.points):
        where.append("O_DIRECT: past the page cache, and as fast as the disk and its own caches are")
    return (
        f"Seconds of one call with {KEYS} keys. In a turn an arm stores new pages, looks them up, and loads them, each in up "
        f"to {MOST_CALLS} calls one after another. Multi-head pages in page_first without copies (K and V are two pieces), scattered over a host pool of this "
        f"package. Every arm has a process, and its calls a thread; the arms take turns in {plan.rounds} rounds, in "
        "another order each time, and after each turn its bytes are synced and dropped from the page cache. A time is the median of the turns, a ratio the "
        "median, over the rounds, of the ratio of two arms' turns in the same round, with its 95 % interval. "
        f"{'. '.join(where)}."
    )


def show(measured: Measured, results: Results) -> None:
    """Print what is measured, the times, the ratios with their targets, and the further rows."""
    say(what_is_measured(measured.plan))
    for line in measured.left_out:
        say(line)
    main, beside = (results.medians[results.medians.further == which] for which in (False, True))
    for (direct, queue), group in main.groupby(["direct", "queue"], sort=False):
        _show_times(group, f"{_cache(direct)}, {queue}: milliseconds of a call")
        chosen = results.ratios[~results.ratios.further]
        chosen = chosen[(chosen.direct == direct) & (chosen.queue == queue)]
        _show_ratios(chosen, f"{_cache(direct)}, {queue}: how many times as fast", "pooled /")
    if len(beside):
        point = beside.iloc[0]
        where = f"{_cache(point.direct)}, {point.queue}"
        _show_times(
            beside,
            f"{where}, measured again: pooled with other host pages and stores, milliseconds of a call",
        )
        for arm, about in _about(beside):
            say(f"  {arm}: {about}")
        chosen = results.ratios[results.ratios.further]
        _show_ratios(chosen, f"{where}: how many times as fast", "arm / arm")
    _show_openings(results.openings)
    _show_descriptors(results.descriptors)


def _about(medians: pd.DataFrame) -> list[tuple[str, str]]:
    from ..lab.bench.plan import EVERY

    return [(arm, EVERY[arm].about) for arm in dict.fromkeys(medians.arm)]


def _show_times(medians: pd.DataFrame, title: str) -> None:
    arms = list(dict.fromkeys(medians.arm))
    table = table_of(title, "page", "call", *(arm.replace("==", "\n").replace("-", "\n") for arm in arms))
    for (size, operation), group in medians.groupby(["page_bytes", "operation"], sort=False):
        found = dict(zip(group.arm, group.ms, strict=True))
        cells = (f"{found[arm]:.3g}" if arm in found else "-" for arm in arms)
        table.add_row(shown_size(size), operation, *cells)
    out.print(table)


def _show_ratios(ratios: pd.DataFrame, title: str, pair: str) -> None:
    from ..lab.bench.results import VERDICTS
    from ..lab.statistics import Estimate

    table = table_of(title, "page", "call", pair, "times as fast", "target", "")
    for row in ratios.sort_values(["page_bytes"], kind="stable").itertuples():
        found = Estimate(row.speed_ratio, row.low, row.high, row.pairs)
        target = f"{row.target:g}" if row.verdict else ""
        arms = f"{row.arm} / {row.against}".removeprefix(pair).strip()
        table.add_row(
            shown_size(row.page_bytes), row.operation, arms, str(found), target, VERDICTS[row.verdict]
        )
    if table.row_count:
        out.print(table)


def _show_openings(openings: pd.DataFrame) -> None:
    if not len(openings):
        return
    table = table_of("opening a store of pooled, with its NIXL agents", "pages in it", "milliseconds")
    for row in openings.itertuples():
        table.add_row(str(row.pages), f"{row.ms:.3g} [{row.low_ms:.3g}, {row.high_ms:.3g}]")
    out.print(table)


def _show_descriptors(descriptors: pd.DataFrame) -> None:
    table = table_of("most descriptors open between calls", "arm", "storage files", "with NIXL's")
    for row in descriptors.itertuples():
        table.add_row(row.arm, str(row.storage_fds), str(row.open_fds))
    out.print(table)


def _cache(direct: bool) -> str:
    from ..lab.bench.plan import cache_name

    return cache_name(direct)


def shown_size(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    from ..lab.figures.words import size_of

    return size_of(count)


def table_of(title: str, *headings: str) -> Table:
    """Return an empty table."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for heading in headings:
        left = heading in ("call", "arm", "arm / arm", "pooled /", "")
        table.add_column(heading, justify="left" if left else "right")
    return table


def save(folder: Path, measured: Measured, results: Results, storage_dir: Path | None) -> None:
    """Write tables, targets as claims, and the figure into the folder of a run."""
    import matplotlib

    matplotlib.use("Agg")
    from ..lab.bench.results import claims
    from ..lab.figures.bench import throughputs
    from ..lab.runs.run import Run

    plan = measured.plan
    parameters: dict[str, Any] = {
        "arms": list(plan.arms),
        "rounds": plan.rounds,
        "left_out": measured.left_out,
    }
    parameters["storage_dir"] = None if storage_dir is None else str(storage_dir)
    run = Run(NAME, folder, parameters, strict=False)
    run.table("times", measured.times)
    run.table("opening", measured.opening)
    for name in ("medians", "ratios", "openings", "descriptors"):
        run.table(name, getattr(results, name))
    drawn = throughputs(results.medians, results.ratios)
    run.figure(FIGURE, drawn.figure, drawn.alt, ["medians"])
    run.claim(*claims(results.ratios), figure=FIGURE)
    run.finish()


def copy_figure(folder: Path, path: Path) -> None:
    """Copy the figure of a run to a path."""
    from ..lab.runs.folder import RunFolder

    shutil.copyfile(RunFolder(folder).figure(NAME, FIGURE), path)
