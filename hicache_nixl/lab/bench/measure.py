"""The parent's side of the benchmark: workers in turn, and what they measured as tables."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd

from ...errors import HiCacheNixlError
from ..experiments.alternating import counted, in_turn
from ..experiments.compare import usable_queues
from ..statistics import FEWEST
from ..worker.client import Worker
from ..worker.descriptors import count_fds, count_storage_fds
from ..worker.placement import new_subfolder, truncate_files, write_back
from ..worker.releases import at_hand, source_of
from ..worker.setup import Setup
from .plan import (
    BESIDE,
    EVERY,
    FILE_BACKEND,
    KEYS,
    PEER,
    RECYCLED_SEGMENT,
    RECYCLED_SEGMENTS,
    ArmPlan,
    Plan,
    Point,
)

TIMEOUT = 7200  # seconds for all requests to a worker
OPENED_PAGE = 64  # bytes of the pages of a store whose opening is timed
OPENED_KEYS = 1000  # pages of a set there


@dataclass(frozen=True)
class Turn:
    """How far a group of arms is, for the progress; or that it was interrupted, and what it stored is removed."""

    group: str
    done: int
    turns: int
    ended: bool = False
    removing: bool = False


Watch = Callable[[Turn], object]


@dataclass(frozen=True)
class Measured:
    """What a benchmark measured.

    Attributes
    ----------
    plan : Plan
        Without what was left out.
    times : pandas.DataFrame
        A row per call: ``further`` (whether it belongs to the rows beside the main table), ``queue``, ``direct``,
        ``page_bytes``, ``pair`` (the round), ``arm``, ``operation``, ``seconds``, ``bytes``, and ``open_fds`` and
        ``storage_fds`` at the end of the turn.
    opening : pandas.DataFrame
        A row per opening of a store: ``pages``, ``pair``, ``seconds``.
    left_out : list of str
        A sentence for each thing that could not run.
    """

    plan: Plan
    times: pd.DataFrame
    opening: pd.DataFrame
    left_out: list[str] = field(default_factory=list)


def what_runs(plan: Plan, storage_dir: str | os.PathLike[str] | None) -> tuple[Plan, list[str]]:
    """Leave out what cannot run here: queues that are refused, peers that are not available, O_DIRECT.

    Returns
    -------
    Plan
    list of str
        A sentence for each thing that was left out.
    """
    left_out = []
    arms = plan.arms
    if {PEER, FILE_BACKEND} & set(arms) and (reason := at_hand([PEER])[PEER]):
        left_out.append(f"{PEER} and its backend file are left out: {reason}")
        arms = tuple(arm for arm in arms if arm not in (PEER, FILE_BACKEND))
    queues = usable_queues(storage_dir).set_index("queue")
    points = list(plan.points)
    for queue in dict.fromkeys(point.queue for point in plan.points):
        if not queues.works[queue]:
            left_out.append(f"{queue} is left out: {queues.reason[queue].splitlines()[0]}")
            points = [point for point in points if point.queue != queue]
    if any(point.direct for point in points) and not _opens_direct(storage_dir):
        left_out.append("O_DIRECT is left out: the file system of the storage folder refuses it")
        points = [point for point in points if not point.direct]
    if not points or not arms:
        raise HiCacheNixlError(f"nothing can run here: {'; '.join(left_out)}")
    return Plan(tuple(points), arms, plan.rounds, plan.pages_opened), left_out


def _opens_direct(storage_dir: str | os.PathLike[str] | None) -> bool:
    with tempfile.NamedTemporaryFile(dir=storage_dir) as file:
        try:
            os.close(os.open(file.name, os.O_RDWR | os.O_DIRECT))
        except OSError:
            return False
    return True


def measure(
    plan: Plan, storage_dir: str | os.PathLike[str] | None = None, watch: Watch = lambda turn: None
) -> Measured:
    """Run a benchmark.

    Raises
    ------
    HiCacheNixlError
        When a worker died, or a call did not store, find or load every page.
    """
    plan, left_out = what_runs(plan, storage_dir)
    names = dict.fromkeys(arm for _, _, arms in plan.groups for arm in arms)
    rows: list[dict[str, Any]] = []
    opening: list[dict[str, Any]] = []
    with ExitStack() as stack:
        workers = started(stack, names, ArmWorker, storage_dir, TIMEOUT)
        owner = next(
            iter(workers.values())
        )  # its folder has all files, and is removed with it, whatever happens
        for group, point, arms in plan.groups:
            some = {arm: workers[arm] for arm in arms}
            with _opened(plan, point, some, owner):
                rows += _turns(plan, group, point, some, watch)
        if "pooled" in plan.arms:
            opening = _openings(plan, workers["pooled"], owner, watch)
    return Measured(
        plan, counted(rows), pd.DataFrame(opening, columns=["pages", "pair", "seconds"]), left_out
    )


class ArmWorker(Worker):
    """A worker that opens arms, and no connector before."""

    def open(self, setup: Setup, *, folder: str | os.PathLike[str] | None = None) -> None:
        """Open nothing yet."""
        self._in_use = self._folder

    def open_arm(self, name: str, plan: Plan, point: Point, folder: str, seed: int) -> None:
        """Open an arm of a plan, with its files in a new subfolder."""
        arm = EVERY[name]
        own = os.path.join(folder, name)
        os.mkdir(own, 0o700)
        self.fds_before = count_fds(self.pid)
        self._ask_to_open(
            kind=arm.kind,
            folder=own,
            queue=point.queue,
            page_bytes=point.page_bytes,
            keys=KEYS,
            calls=point.calls,
            direct=point.direct,
            seed=seed,
            written=plan.written(point),
            options=options_of(arm, plan, point),
            scattered=arm.scattered,
            wheel=source_of(PEER) if arm.kind in ("nixl", "file") else None,
        )
        if arm.full:
            calls = RECYCLED_SEGMENTS * RECYCLED_SEGMENT // point.call_bytes
            self.request("fill", calls=calls + calls // RECYCLED_SEGMENTS)
            write_back(own, drop=arm.dropped)

    def open_store(self, folder: str, pages: int) -> None:
        """Open a store of ``pooled``, and put small pages into it."""
        self._ask_to_open(
            kind="ours",
            folder=folder,
            queue="libaio",
            page_bytes=OPENED_PAGE,
            keys=OPENED_KEYS,
            calls=1,
            direct=False,
            seed=0,
            written=0,
            options={"lifetime": "pooled", "capacity_gb": 1, "min_free_gb": 0},
            scattered=True,
            wheel=None,
        )
        self.request("fill", calls=pages // OPENED_KEYS)

    def _ask_to_open(self, **asked: Any) -> None:
        self.folder_in_use = asked["folder"]
        self.request("open_arm", **asked)

    def turn(self, calls: int) -> list[dict[str, Any]]:
        """Time calls; a row for each, with the descriptors that the arm has now."""
        rows = self.request("turn", calls=calls)["rows"]
        kept = count_fds(self.pid) - self.fds_before
        storage_fds = count_storage_fds(self.pid, self.folder_in_use)
        return [{**row, "open_fds": kept, "storage_fds": storage_fds} for row in rows]


AnyWorker = TypeVar("AnyWorker", bound=ArmWorker)


def options_of(arm: ArmPlan, plan: Plan, point: Point) -> dict[str, Any]:
    """Return the options of an arm, for ``pooled`` with the size of its store."""
    if not arm.segment_bytes:
        return dict(arm.options)
    size = {"capacity_gb": plan.capacity_gb(arm, point), "segment_mb": arm.segment_bytes >> 20}
    return {**arm.options, **size, "min_free_gb": 0}


def started(
    stack: ExitStack,
    arms: Iterable[str],
    worker_class: type[AnyWorker],
    storage_dir: str | os.PathLike[str] | None,
    timeout: float,
) -> dict[str, AnyWorker]:
    """Start a worker for each arm, all at once."""

    def start(arm: str) -> AnyWorker:
        worker = worker_class(Setup("scoped"), storage_dir=storage_dir, timeout=timeout)
        stack.enter_context(worker)
        return worker

    names = list(arms)
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(start, names), strict=True))


@contextmanager
def _opened(plan: Plan, point: Point, workers: Mapping[str, ArmWorker], owner: ArmWorker) -> Iterator[None]:
    """Open the arms of a point in a new folder; afterwards their files take no space any more.

    No file is deleted before the end, since ext4 creates files more slowly where many were deleted.
    """
    folder = new_subfolder(owner.folder)
    for seed, (name, worker) in enumerate(workers.items()):
        worker.open_arm(name, plan, point, folder, seed)
    yield
    for worker in workers.values():
        worker.request("close_arm")
    truncate_files(folder)


def _turns(
    plan: Plan, group: str, point: Point, workers: Mapping[str, ArmWorker], watch: Watch
) -> list[dict[str, Any]]:
    """Give every arm a turn in each round, in another order than in the round before."""
    about = {"further": group.startswith(BESIDE), "queue": point.queue, "direct": point.direct}
    about |= {"page_bytes": point.page_bytes}

    def turn(arm: str) -> list[dict[str, Any]]:
        rows = workers[arm].turn(point.calls)
        write_back(workers[arm].folder_in_use, drop=EVERY[arm].dropped)
        return [{**about, **row} for row in rows]

    return in_rounds(group, list(workers), plan.rounds, turn, watch)


def in_rounds(
    group: str, arms: Sequence[str], rounds: int, turn: Callable[[str], list[dict[str, Any]]], watch: Watch
) -> list[dict[str, Any]]:
    """Give every arm a turn in each round, the first of which warms up, and return the rows of all."""
    order = list(in_turn(arms, rounds))
    rows = []
    for done, (pair, arm) in enumerate(order):
        watch(Turn(group, done, len(order)))
        rows += [{"pair": pair, "arm": arm, **row} for row in turn(arm)]
    watch(Turn(group, len(order), len(order), ended=True))
    return rows


def _openings(plan: Plan, worker: ArmWorker, owner: ArmWorker, watch: Watch) -> list[dict[str, Any]]:
    """Time the opening of stores with few and with many pages."""
    rows = []
    for done, pages in enumerate(plan.pages_opened):
        watch(Turn("opening a store", done, len(plan.pages_opened)))
        folder = new_subfolder(owner.folder)
        worker.open_store(folder, pages)
        for pair in range(FEWEST):
            seconds = worker.request("reopen")["seconds"]
            rows.append({"pages": pages, "pair": pair, "seconds": seconds})
        worker.request("close_arm")
        truncate_files(folder)
    watch(Turn("opening a store", len(plan.pages_opened), len(plan.pages_opened), ended=True))
    return rows
