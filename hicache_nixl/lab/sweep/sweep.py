"""Running a sweep: every point of a grid, on the hosts of a fleet, into one folder with a page.

>>> from hicache_nixl.lab.sweep.sweep import sweep
>>> from hicache_nixl.lab.sweep.grid import Grid
>>> sweep(Grid(notebooks=["01"], parameters={"queue": ["libaio", "io_uring"]}))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..engine import interruptible
from ..execute import default_run_name, new_run_folder
from ..plan import notebooks
from . import record
from .child import ENDED
from .facts import of_folder
from .fleet import Fleet, FleetLostError, connecting
from .grid import Grid, Point, check, chosen_notebooks, counts_only, points_of
from .lanes import BUSY, Answer, Job, Lanes
from .page import write_sweep_page
from .record import PointState, Sweep, read_sweep

FACTS = "facts of "  # begins the name of a job that is no point


@dataclass(frozen=True)
class Step:
    """How far a sweep is.

    Attributes
    ----------
    sweep : Sweep
    running : dict
        Where each point that runs does so; ``BUSY`` follows a host on which it waits for another sweep.
    ended : PointState or None
        A point that has just ended.
    note : str
        Something else that has happened.
    """

    sweep: Sweep
    running: Mapping[str, str]
    ended: PointState | None = None
    note: str = ""


Watch = Callable[[Step], object]


@dataclass(frozen=True)
class Result:
    """What came of a sweep.

    Attributes
    ----------
    sweep : Sweep
    page : Path
    interrupted : bool
    lost : str
        Why the sweep ended early; empty when it did not.
    """

    sweep: Sweep
    page: Path
    interrupted: bool = False
    lost: str = ""


def sweep(
    grid: Grid,
    *,
    scheduler: str | None = None,
    run: str | None = None,
    watch: Watch = lambda step: None,
) -> Result:
    """Run the points of a grid into the folder of a new run, and make its page.

    Everything that was given is checked before anything runs.  A point that fails is noted, and the others go on.
    Ctrl-C ends the points that run; those that have ended are kept.

    Parameters
    ----------
    grid : Grid
    scheduler : str, optional
        The address of a Dask scheduler; this machine alone when left out.
    run : str, optional
        The name of the folder below ``runs/``; made of the time when left out.
    watch : callable, optional
        Called with a ``Step`` when something changes.

    Raises
    ------
    ConfigError
        When the grid, the scheduler, a host or the name of the run cannot work.
    """
    known = notebooks()
    chosen = chosen_notebooks(grid, known)
    check(grid, chosen, here=scheduler is None)
    with connecting(scheduler, grid.hosts) as fleet:
        points = points_of(grid, list(fleet.hosts()))
        folder = new_run_folder(default_run_name("sweep") if run is None else run)
        begun = record.begin(folder, grid, list(chosen), points, scheduler)
        return _run(begun, fleet, chosen, watch)


def resume(
    name: str,
    grid: Grid | None = None,
    *,
    scheduler: str | None = None,
    watch: Watch = lambda step: None,
) -> Result:
    """Run the points of a sweep that are missing or have failed.

    Parameters
    ----------
    name : str
        Of its folder below ``runs/``, or its path.
    grid : Grid, optional
        Must be that of the sweep, if it is given.
    scheduler : str, optional
        Overrides that of the sweep, whose hosts may have another one now.

    Raises
    ------
    ConfigError
        When there is no such sweep, the grid is another one, or its scheduler cannot be reached.
    """
    begun = read_sweep(name)
    known = notebooks()
    if grid is not None and grid != begun.grid:
        raise ConfigError(
            f"sweep {begun.name} has another grid; leave the grid out, or start a new sweep with --run"
        )
    if gone := [notebook for notebook in begun.notebooks if notebook not in known]:
        raise ConfigError(f"sweep {begun.name} has notebooks that are not here: {', '.join(gone)}")
    chosen = {notebook: known[notebook] for notebook in begun.notebooks}
    if scheduler is not None:
        begun.scheduler = scheduler
    check(begun.grid, chosen, here=begun.scheduler is None)
    with connecting(begun.scheduler, begun.grid.hosts) as fleet:
        begun.write()  # with the scheduler that worked
        return _run(begun, fleet, chosen, watch)


def _run(begun: Sweep, fleet: Fleet, chosen: Mapping[str, Path], watch: Watch) -> Result:
    points = begun.to_run()
    jobs = [*_facts_jobs(fleet, begun, points), *_point_jobs(begun, points, chosen)]
    lanes = Lanes(fleet, jobs, lambda running: watch(Step(begun, running)))
    interrupted, lost = False, ""
    watch(Step(begun, {}))
    try:
        with interruptible():
            for answer in lanes.answers():
                watch(Step(begun, lanes.running(), _kept(begun, answer)))
    except KeyboardInterrupt:
        interrupted = True
        watch(Step(begun, {}, note="interrupted, ending the points that run ..."))
        with suppress(FleetLostError):  # what has come back is kept
            for answer in lanes.end():
                _kept(begun, answer)
    except FleetLostError as error:
        lost = str(error)
    return Result(begun, write_sweep_page(begun), interrupted, lost)


def _kept(begun: Sweep, answer: Answer) -> PointState | None:
    """Keep an answer; return the point, if it is one."""
    if not answer.job.slug.startswith(FACTS):
        return begun.keep(answer)
    host = answer.job.slug.removeprefix(FACTS)
    if answer.told["state"] == ENDED:
        facts, folders = answer.told["facts"], _folders(begun.grid)
        begun.hosts[host] = of_folder(facts, str(folders[0])) if len(folders) > 1 else facts
        begun.problems.pop(host, None)
    else:
        begun.hosts.pop(host, None)
        begun.problems[host] = answer.told.get("reason", answer.told["state"])
    begun.write()
    return None


def _folders(grid: Grid) -> tuple[Any, ...]:
    return grid.parameters.get("storage_dir", ("",))


def _facts_jobs(fleet: Fleet, begun: Sweep, points: Sequence[Point]) -> list[Job]:
    """Return jobs for hosts without facts, and for those with points to run, which may have changed since."""
    request = {"action": "facts", "storage_dir": _folders(begun.grid)[0], "own_folder": True}
    used = {point.host for point in points}
    hosts = [host for host in fleet.hosts() if host not in begun.hosts or used & {host, None}]
    return facts_jobs(hosts, request)


def facts_jobs(hosts: Sequence[str], request: dict[str, Any]) -> list[Job]:
    """Return a job for each host that finds its facts."""
    return [Job(f"{FACTS}{host}", request, host, exclusive=True) for host in hosts]


def _point_jobs(begun: Sweep, points: Sequence[Point], chosen: Mapping[str, Path]) -> list[Job]:
    texts = {name: path.read_text(encoding="utf-8") for name, path in chosen.items()}
    exclusive = not all(counts_only(path) for path in chosen.values())
    request = {"action": "run", "notebooks": texts, "profile": begun.grid.profile}
    return [
        Job(point.slug, {**request, "slug": point.slug, "parameters": point.values}, point.host, exclusive)
        for point in points
    ]


def facts_of_fleet(
    scheduler: str, storage_dir: str | None, progress: Callable[[str], object] = lambda step: None
) -> dict[str, dict[str, Any]]:
    """Return for each host of a cluster what ``doctor`` finds there: ``facts`` and ``diagnosis``, or a ``reason``.

    Raises
    ------
    ConfigError
        When the scheduler cannot be reached or has no workers.
    """
    request = {"action": "facts", "storage_dir": storage_dir, "own_folder": False}
    found: dict[str, dict[str, Any]] = {}
    with connecting(scheduler) as fleet, interruptible():
        jobs = facts_jobs(list(fleet.hosts()), request)

        def tell(running: Mapping[str, str]) -> None:
            busy = [host for host in running.values() if host.endswith(BUSY)]
            progress(", ".join([f"{len(found)} of {len(jobs)} hosts", *busy]))

        lanes = Lanes(fleet, jobs, tell)
        try:
            for answer in lanes.answers():
                found[answer.job.slug.removeprefix(FACTS)] = answer.told
                tell(lanes.running())
        except KeyboardInterrupt:
            list(lanes.end())
            raise
    return dict(sorted(found.items()))
