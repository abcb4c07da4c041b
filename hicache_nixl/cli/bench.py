"""hicache-nixl bench: how fast the lifetimes are, beside SGLang's backends and plain reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import QUEUES
from ..errors import ConfigError
from . import bench_objects
from .app import AsJson, CommandFailedError, app, check_new_files, print_json, say
from .bench_output import copy_figure, save, say_aside, show, what_is_measured
from .progress import showing_turns
from .replay_files import write_files

if TYPE_CHECKING:
    from ..lab.bench.measure import Measured
    from ..lab.bench.object_plan import ObjectPlan
    from ..lab.bench.plan import Plan

MISSED = 3  # exit code


@app.command()
def bench(
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Pages of 4 KiB, 64 KiB and 1 MiB, libaio, page cache: under two minutes."
        ),
    ] = False,
    storage_dir: Annotated[
        Path | None,
        typer.Option(help="An existing folder on the disk to measure; what is written there is removed."),
    ] = None,
    page_kib: Annotated[
        list[int] | None,
        typer.Option(help="KiB of a page, keys and values together; repeatable.", show_default="4 to 1024"),
    ] = None,
    queue: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(QUEUES)}; repeatable.", show_default="libaio and io_uring"),
    ] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="O_DIRECT only; without it, the page cache as well.")
    ] = False,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="pooled, pooled-none (verify=none), scoped, sglang==0.5.23, sglang-file, ceiling; try_finally, leaky; "
            "repeatable. With --object-store: pooled, pooled-other, scoped, sglang-seaweedfs, sglang==0.5.23, "
            "scoped-file.",
            show_default="the first six, or all",
        ),
    ] = None,
    object_store: Annotated[
        bool,
        typer.Option(
            "--object-store", help="Measure over an object store: a SeaweedFS that is started, or --endpoint."
        ),
    ] = False,
    volumes: Annotated[
        int | None,
        typer.Option(
            help="Volume servers of the SeaweedFS; with several, every object is on two.", show_default="1"
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="URL of your own object store; credentials are those of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ),
    ] = None,
    bucket: Annotated[
        str | None,
        typer.Option(help="An existing bucket of --endpoint.", show_default="AWS_DEFAULT_BUCKET"),
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Name of the new folder below runs/.", show_default="bench-DATE-TIME")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the throughput into this new file.")] = None,
    check: Annotated[bool, typer.Option("--check", help="End with 3 if a target is missed.")] = False,
    as_json: AsJson = False,
) -> None:
    r"""Measure how fast pages are stored, looked up and loaded.

    The arms take turns in one run, so that noise meets all of them: the
    lifetime pooled, with and without checksums, and scoped; SGLang 0.5.23's
    NIXL connector and its backend "file" (without NIXL), fetched from the
    package registry; and the ceiling, plain pwrite and preadv of one open file.
    A call has 128 keys. Each page that is loaded is compared with what was
    stored, outside of the measured time.

    The targets of pooled: against SGLang 0.5.23 through the page cache, 8
    times as fast for a set and a get of 4 KiB, 5 times for a set and twice for
    a get of 64 KiB, and 20 times for an exists; from 64 KiB on 0.9 of the
    ceiling; with checksums 0.8 of the speed without; a full store 0.9 of an
    empty one. A target is met if the whole 95 % interval of a ratio is above
    it, missed if the whole interval is below, and otherwise undecided.
    stderr shows the progress.

    With --object-store, the same pages go to an object store through NIXL's
    plugin OBJ: pooled (the pages of a call in few objects) and scoped (two
    objects for each page), beside SGLang 0.5.23's backend "seaweedfs" and its
    NIXL connector, and scoped on files of this machine. Requests and processor
    time for each page are measured, too. There are no targets, so that --check
    is an error; --queue and --direct are for files.

    [bold]Examples[/]

    Under two minutes:

        hicache-nixl bench --quick

    Your disk, with O_DIRECT and the pages of your model:

        hicache-nixl bench --storage-dir /mnt/nvme --direct --page-kib 512

    For CI, which fails if a target is missed:

        hicache-nixl bench --quick --check --json

    An object store with three volume servers, and your own:

        hicache-nixl bench --quick --object-store --volumes 3
        hicache-nixl bench --object-store --endpoint https://HOST --bucket NAME

    [bold]--json[/]

    keys, rounds, measured, left_out, run, medians (further, queue, direct,
    page_bytes, operation, arm, ms, low_ms, high_ms, MiB_s), ratios (...,
    against, speed_ratio, low, high, pairs, target, verdict), openings (pages,
    ms, low_ms, high_ms), descriptors (arm, storage_fds, open_fds), targets.
    With --object-store: keys, rounds, where, measured, left_out, run, fastest,
    results (page_bytes, operation, arm, ms, low_ms, high_ms, p50_ms, p99_ms,
    calls, pages_s, and for each page requests, client_us, store_us; ratio, low,
    high against sglang-seaweedfs, null for the exists of pooled, which is a
    lookup in memory).

    [bold]Exit codes[/]

        0    it ran; a missed target is no error without --check
        1    it did not run to its end, or a file could not be written
        2    an option cannot work, the disk is too small, or the object store
             of --endpoint does not answer; nothing was run.
             With --check: no target could be checked, for example without
             SGLang
        3    with --check: a target is missed
        130  interrupted; what was stored is removed
    """
    if object_store:
        _refuse_for_objects(queue=queue, direct=direct, check=check)
        over_objects = bench_objects.plan_of(
            quick=quick,
            page_kib=page_kib or [],
            arms=arm or [],
            volumes=volumes,
            endpoint=endpoint,
            bucket=bucket,
        )
        _bench_objects(over_objects, storage_dir, run, png, as_json)
        return
    for option, given in (("--volumes", volumes), ("--endpoint", endpoint), ("--bucket", bucket)):
        if given is not None:
            raise ConfigError(f"{option} needs --object-store")
    from ..lab.bench.plan import make_plan
    from ..lab.bench.results import Results
    from ..lab.bench.results import as_json as result_as_json
    from ..lab.execute import default_run_name, new_run_folder

    plan = make_plan(quick=quick, page_kib=page_kib or (), queues=queue or (), direct=direct, arms=arm or ())
    check_new_files(png=png)
    space = plan.check_space(storage_dir)
    folder = new_run_folder(default_run_name("bench") if run is None else run)
    with _removed_if_empty(folder):
        measured = _measured(plan, storage_dir, space)
        results = Results.of(measured)
        save(folder, measured, results, storage_dir)
    failed = write_files([(png, lambda path: copy_figure(folder, path))])
    if as_json:
        print_json(
            {"measured": what_is_measured(measured.plan), "run": folder, **result_as_json(measured, results)}
        )
    else:
        show(measured, results)
        say(f"targets: {results.tally()}; tables and figure are in {folder}")
    if failed:
        raise CommandFailedError("; ".join(failed))
    if check and not results.judged:
        raise ConfigError(
            "--check: no target could be checked; it needs pooled, and what it is compared with"
        )
    raise typer.Exit(MISSED if check and results.missed else 0)


def _refuse_for_objects(**options: object) -> None:
    """Refuse options that are for files only."""
    if options.pop("check"):
        raise ConfigError("--check: there are no targets with --object-store; leave one of them out")
    for name, given in options.items():
        if given:
            raise ConfigError(f"--{name} is for files; leave it or --object-store out")


def _bench_objects(
    plan: ObjectPlan, storage_dir: Path | None, run: str | None, png: Path | None, as_json: bool
) -> None:
    from ..lab.bench.object_results import as_json as result_as_json
    from ..lab.bench.object_results import fastest, fastest_of_others, few_calls, summary
    from ..lab.execute import default_run_name, new_run_folder

    check_new_files(png=png)
    needed = plan.check(storage_dir)
    folder = new_run_folder(default_run_name("bench") if run is None else run)
    with _removed_if_empty(folder):
        measured = bench_objects.measured(plan, storage_dir, needed)
        table, line = summary(measured.times), fastest(measured.times)
        lines = [line, fastest_of_others(measured.times)]
        bench_objects.save(folder, measured, table, storage_dir)
    failed = write_files([(png, lambda path: copy_figure(folder, path))])
    if as_json:
        what = bench_objects.what_is_measured(measured.plan)
        print_json(
            {"measured": what, "run": folder, **result_as_json(measured, table, " ".join(lines).strip())}
        )
    else:
        bench_objects.show(measured, table, [*lines, few_calls(table)])
        say(f"tables and figure are in {folder}")
    if failed:
        raise CommandFailedError("; ".join(failed))


def _measured(plan: Plan, storage_dir: Path | None, space: str) -> Measured:
    from ..lab.bench.measure import measure

    say_aside(space)
    with showing_turns() as watch:
        return measure(plan, storage_dir, watch)


@contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove the folder of a run that was interrupted, or failed, before anything was written into it."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise
