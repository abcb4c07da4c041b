"""The command bench with --object-store: what it runs, prints and writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .app import out, say
from .bench_output import FIGURE, NAME, say_aside, shown_size, table_of
from .progress import showing_turns

if TYPE_CHECKING:
    import pandas as pd

    from ..lab.bench.object_plan import ObjectPlan
    from ..lab.bench.objects import MeasuredObjects

UNKNOWN = "-"
COLUMNS = {
    "p50": "p50_ms",
    "p99": "p99_ms",
    "pages/s": "pages_s",
    "requests": "requests",
    "client": "client_us",
    "store": "store_us",
}


def plan_of(
    *,
    quick: bool,
    page_kib: list[int],
    arms: list[str],
    volumes: int | None,
    endpoint: str | None,
    bucket: str | None,
) -> ObjectPlan:
    """Return the plan for options of the command.

    Raises
    ------
    ConfigError
    """
    from ..lab.bench.object_plan import make_plan
    from ..lab.object_store import endpoint_of

    if endpoint is None:
        if bucket is not None:
            raise ConfigError("--bucket needs --endpoint: the store that is started has a bucket of its own")
        return make_plan(quick=quick, page_kib=page_kib, arms=arms, volumes=1 if volumes is None else volumes)
    if volumes is not None:
        raise ConfigError("--volumes has no effect with --endpoint; leave one of them out")
    own = endpoint_of(endpoint, bucket)
    return make_plan(quick=quick, page_kib=page_kib, arms=arms, endpoint=own)


def measured(plan: ObjectPlan, storage_dir: Path | None, needed: str) -> MeasuredObjects:
    """Run it with its progress on stderr."""
    from ..lab.bench.objects import measure

    say_aside(needed)
    with showing_turns() as watch:
        return measure(plan, storage_dir, watch)


def what_is_measured(plan: ObjectPlan) -> str:
    """Say exactly what the numbers are."""
    from ..lab.bench.plan import KEYS

    requests = (
        "its requests and processor time are not known"
        if plan.endpoint
        else "requests are those that its S3 counted, and its processor time, left out without a request, is that of all of its "
        "processes"
    )
    return (
        f"Calls with {KEYS} keys, {plan.where}: {requests}. In a turn an arm stores new pages, looks them up, and loads "
        "them; all pages are compared with what was stored, outside of the times. Every arm has a process, all with one build "
        f"of NIXL; they take turns in {plan.rounds} rounds, in another order each time. But for pooled-other, the "
        "connector that stored the pages looks them up and loads them; pooled knows what it stored itself without "
        "asking, so that its exists is a lookup in memory, with no ratio, and not among the fastest. p50 and p99 are of all "
        "calls, and pages/s is the pages of a call divided by its p50. A ratio is the median, over the rounds, of the ratio of "
        "two arms' turns in the same round, with its 95 % interval."
    )


def show(measured: MeasuredObjects, table: pd.DataFrame, lines: list[str]) -> None:
    """Print a table for each operation, and which arm is the fastest."""
    say(what_is_measured(measured.plan))
    for line in measured.left_out:
        say(line)
    for operation, group in table.groupby("operation", sort=False):
        _show_times(operation, group)
    _show_ratios(table)
    for line in filter(None, lines):
        say(line)


def _show_times(operation: Any, table: pd.DataFrame) -> None:
    """Print the numbers of an operation, without the columns of which nothing is known."""
    known = {heading: column for heading, column in COLUMNS.items() if table[column].notna().any()}
    requests = "requests and " if "requests" in known else ""
    title = f"{operation}: milliseconds of a call; for each page, {requests}microseconds of processor time"
    shown = table_of(title, "page", "arm", *known)
    for _, row in table.sort_values("page_bytes", kind="stable").iterrows():
        numbers = (_short(row[column]) for column in known.values())
        shown.add_row(shown_size(row.page_bytes), _shown_arm(row.arm, operation), *numbers)
    out.print(shown)


def _shown_arm(arm: str, operation: Any) -> str:
    from ..lab.bench.object_results import IN_MEMORY

    return f"{arm} (in memory)" if (arm, operation) == IN_MEMORY else arm


def _show_ratios(table: pd.DataFrame) -> None:
    from ..lab.bench.arms import OPERATIONS
    from ..lab.bench.object_results import no_ratios, two_digits

    if why := no_ratios(table):
        say(why)
        return
    known = table[table.ratio.notna()]
    operations = [operation for operation in OPERATIONS if operation in set(known.operation)]
    shown = table_of("times as fast as sglang-seaweedfs, with intervals", "page", "arm", *operations)
    for (page_bytes, arm), group in known.groupby(["page_bytes", "arm"], sort=False):
        cells = {
            row.operation: f"{two_digits(row.ratio)} [{two_digits(row.low)}-{two_digits(row.high)}]"
            for row in group.itertuples()
        }
        shown.add_row(
            shown_size(page_bytes), arm, *(cells.get(operation, UNKNOWN) for operation in operations)
        )
    out.print(shown)


def _short(number: float) -> str:
    """Return three digits, or all of those in front of the point."""
    if math.isnan(number):
        return UNKNOWN
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def save(folder: Path, measured: MeasuredObjects, table: pd.DataFrame, storage_dir: Path | None) -> None:
    """Write tables and the figure into the folder of a run; no credentials are among them."""
    import matplotlib

    matplotlib.use("Agg")
    from ..lab.bench.object_results import headline
    from ..lab.figures.bench_objects import object_rates
    from ..lab.runs.run import Run

    plan = measured.plan
    parameters: dict[str, Any] = {
        "object_store": plan.where,
        "arms": list(plan.arms),
        "rounds": plan.rounds,
        "left_out": measured.left_out,
        "storage_dir": None if storage_dir is None else str(storage_dir),
    }
    run = Run(NAME, folder, parameters, strict=False)
    run.table("object_times", measured.times)
    run.table("objects", table)
    drawn = object_rates(table, plan.where, headline(table))
    run.figure(FIGURE, drawn.figure, drawn.alt, ["objects"])
    run.finish()
