"""What the benchmark measures: arms, points, targets, and the disk space that it takes."""

from __future__ import annotations

import math
import os
import resource
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...config import QUEUES
from ...errors import ConfigError
from ..experiments.alternating import WARM_UP
from ..experiments.compare import SMALLEST
from ..statistics import PAIRS
from ..worker.releases import PREFIX

KEYS = 128  # per call: the most of SGLang's cache controller
KIB, MIB, GIB = 2**10, 2**20, 2**30
PAGES = tuple(size * KIB for size in (4, 16, 64, 256, 1024))
QUICK_PAGES = tuple(size * KIB for size in (4, 64, 1024))
SMALLEST_PAGE, LARGEST_PAGE = KIB, 16 * MIB
TURN_BYTES, MOST_CALLS = 64 * MIB, 16  # of one arm before the next one has its turn
DIRECT_PIECE = 4096  # bytes, of which O_DIRECT moves multiples
PEER, FILE_BACKEND, CEILING = f"{PREFIX}0.5.23", "sglang-file", "ceiling"
SEGMENT = 256 * MIB  # as by default
RECYCLED_SEGMENT = 32 * MIB  # small, so that a store is full soon
RECYCLED_SEGMENTS = 8  # the fewest with which a large batch is written to two at once
BESIDE = "other stores"  # the progress of the rows beside the main table
QUICK_ROUNDS = 9
FEW_FILES = 64  # that a worker has open anyway
SPARE = 0.9  # share of the free space that may be used


@dataclass(frozen=True)
class ArmPlan:
    """One arm.

    Attributes
    ----------
    kind : str
        As in ``arms.Asked``.
    about : str
        What it is, in a few words.
    options : mapping
        Of our connector.
    scattered : bool
        As in ``CheckedPages``.
    segment_bytes : int
        Of a segment of its store; 0 where it has none.
    full : bool
        Whether all of its segments are written before the first call that counts.
    dropped : bool
        Whether what is in its files is dropped from the page cache after each turn.
    """

    kind: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    scattered: bool = True
    segment_bytes: int = 0
    full: bool = False
    dropped: bool = True


ARMS: dict[str, ArmPlan] = {
    "pooled": ArmPlan(
        "ours", "host pages scattered, its store empty", {"lifetime": "pooled"}, segment_bytes=SEGMENT
    ),
    "pooled-none": ArmPlan(
        "ours", "pooled with verify=none", {"lifetime": "pooled", "verify": "none"}, segment_bytes=SEGMENT
    ),
    "scoped": ArmPlan("ours", "lifetime scoped", {"lifetime": "scoped"}),
    PEER: ArmPlan("nixl", "SGLang's NIXL connector as released"),
    FILE_BACKEND: ArmPlan("file", "SGLang 0.5.23's backend file, without NIXL"),
    CEILING: ArmPlan("ceiling", "pwrite per piece, one preadv, one open file"),
}
OTHERS = {  # that have to be asked for
    name: ArmPlan("ours", f"lifetime {name}", {"lifetime": name}) for name in ("try_finally", "leaky")
}
FURTHER = {  # of the rows beside the main table, always against each other
    "consecutive": ArmPlan(
        "ours",
        "host pages next to each other",
        {"lifetime": "pooled"},
        scattered=False,
        segment_bytes=SEGMENT,
    ),
    "empty": ArmPlan(
        "ours", "store empty, segments of 32 MiB", {"lifetime": "pooled"}, segment_bytes=RECYCLED_SEGMENT
    ),
    "full": ArmPlan(
        "ours",
        "all its 8 segments of 32 MiB written before, and in the page cache",
        {"lifetime": "pooled"},
        segment_bytes=RECYCLED_SEGMENT,
        full=True,
        dropped=False,
    ),
    "full-cold": ArmPlan(
        "ours",
        "the same, and on the disk only",
        {"lifetime": "pooled"},
        segment_bytes=RECYCLED_SEGMENT,
        full=True,
    ),
}
EVERY = {**ARMS, **OTHERS, **FURTHER}


@dataclass(frozen=True)
class Point:
    """What all arms have in common: a size of page, a queue, and the page cache or O_DIRECT."""

    queue: str
    direct: bool
    page_bytes: int

    @property
    def call_bytes(self) -> int:
        """Bytes of a set or get."""
        return KEYS * self.page_bytes

    @property
    def calls(self) -> int:
        """Calls of each operation in a turn.

        Examples
        --------
        >>> Point("libaio", False, 65536).calls, Point("libaio", False, 2**20).calls
        (8, 1)
        """
        return max(1, min(MOST_CALLS, TURN_BYTES // self.call_bytes))

    def arms(self, wanted: Sequence[str]) -> list[str]:
        """Return the arms that make sense here.

        The backend file has no O_DIRECT, and plain writes with it need whole blocks; a page cache that is passed by is
        not cold.
        """
        left_out = set()
        if self.direct:
            left_out |= {FILE_BACKEND, "full-cold"}
            if self.page_bytes // 2 % DIRECT_PIECE:
                left_out.add(CEILING)
        return [arm for arm in wanted if arm not in left_out]

    def __str__(self) -> str:
        size = f"{self.page_bytes / KIB:g} KiB" if self.page_bytes < MIB else f"{self.page_bytes / MIB:g} MiB"
        return f"{cache_name(self.direct)}, {self.queue}, {size}"


def cache_name(direct: bool) -> str:
    """Return what is measured in words."""
    return "O_DIRECT" if direct else "page cache"


@dataclass(frozen=True)
class Plan:
    """A benchmark.

    Attributes
    ----------
    points : tuple of Point
    arms : tuple of str
    rounds : int
        In which every arm has a turn; one more, that warms up, is not counted.
    pages_opened : tuple of int
        Of the stores whose opening is timed.
    """

    points: tuple[Point, ...]
    arms: tuple[str, ...]
    rounds: int
    pages_opened: tuple[int, ...]

    @property
    def further(self) -> tuple[Point, ...]:
        """Where the further rows are measured: 4 and 64 KiB of the first queue and cache, else its smallest page."""
        if "pooled" not in self.arms:
            return ()
        first = [point for point in self.points if self._is_first(point)]
        usual = [point for point in first if point.page_bytes in (4 * KIB, 64 * KIB)]
        room = RECYCLED_SEGMENTS * RECYCLED_SEGMENT // 2
        return tuple(point for point in usual or first[:1] if point.call_bytes <= room)

    def _is_first(self, point: Point) -> bool:
        return (point.queue, point.direct) == (self.points[0].queue, self.points[0].direct)

    @property
    def groups(self) -> list[tuple[str, Point, list[str]]]:
        """What runs in turn: a name for the progress, the point, and its arms."""
        main = [(str(point), point, point.arms(self.arms)) for point in self.points]
        beside = [(f"{BESIDE}, {point}", point, point.arms(["pooled", *FURTHER])) for point in self.further]
        return main + beside

    def written(self, point: Point) -> int:
        """Return the bytes that the sets of one arm write at a point."""
        return (self.rounds + WARM_UP) * point.calls * point.call_bytes

    def needed(self) -> int:
        """Return the bytes of disk that are taken at a time; each point frees those of the one before it."""
        return max((self._needed(point, arms) for _, point, arms in self.groups), default=0)

    def _needed(self, point: Point, arms: Sequence[str]) -> int:
        written = self.written(point)
        total = 0
        for arm in (EVERY[name] for name in arms):
            if arm.full:
                total += RECYCLED_SEGMENTS * RECYCLED_SEGMENT
            elif arm.segment_bytes:
                total += (written // arm.segment_bytes + 2) * arm.segment_bytes
            elif arm.kind in ("ceiling", "file"):
                total += written // point.page_bytes * max(point.page_bytes, SMALLEST // 2)
            else:
                total += written // point.page_bytes * max(point.page_bytes, SMALLEST)
        return total

    def capacity_gb(self, arm: ArmPlan, point: Point) -> float:
        """Return the capacity of an arm's store: that of its few segments, or more than what will be written."""
        if arm.full:
            return RECYCLED_SEGMENTS * RECYCLED_SEGMENT / GIB
        return math.ceil(2 * self.written(point) / GIB) + 1

    def check_space(self, storage_dir: str | os.PathLike[str] | None) -> str:
        """Say how much disk is needed, and how much is free.

        Raises
        ------
        ConfigError
            When that is more than the free space.
        """
        return checked_space(self.needed(), storage_dir)


def make_plan(
    *,
    quick: bool = False,
    page_kib: Sequence[int] = (),
    queues: Sequence[str] = (),
    direct: bool = False,
    arms: Sequence[str] = (),
) -> Plan:
    """Return the plan for options of the command.

    Parameters
    ----------
    quick : bool
        Fewer rounds, and, where they are not given, three page sizes, libaio and the page cache.
    page_kib, queues, arms : sequence
        Instead of all of them.
    direct : bool
        O_DIRECT only.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> plan = make_plan(quick=True, page_kib=[4], arms=["pooled", "scoped"])
    >>> [str(point) for point in plan.points], plan.rounds
    (['page cache, libaio, 4 KiB'], 9)
    """
    for size in page_kib:
        if not SMALLEST_PAGE <= size * KIB <= LARGEST_PAGE:
            raise ConfigError(f"--page-kib {size}: expected {SMALLEST_PAGE // KIB} to {LARGEST_PAGE // KIB}")
    for queue in queues:
        if queue not in QUEUES:
            raise ConfigError(f"--queue {queue} is unknown; expected one of {', '.join(QUEUES)}")
    for arm in arms:
        if arm not in {**ARMS, **OTHERS}:
            raise ConfigError(f"--arm {arm} is unknown; expected one of {', '.join((*ARMS, *OTHERS))}")
    chosen = tuple(name for name in (*ARMS, *OTHERS) if name in (arms or ARMS))
    released = set(chosen) & set(OTHERS)
    if direct and released:
        raise ConfigError(f"--arm {released.pop()} has no O_DIRECT; leave it or --direct out")
    pages = sorted({size * KIB for size in page_kib}) or (QUICK_PAGES if quick else PAGES)
    in_queues = tuple(dict.fromkeys(queues)) or (("libaio",) if quick else ("libaio", "io_uring"))
    caches = (True,) if direct else (False,) if quick or released else (False, True)
    plan = Plan(
        points=tuple(Point(queue, cache, page) for cache in caches for queue in in_queues for page in pages),
        arms=chosen,
        rounds=QUICK_ROUNDS if quick else PAIRS,
        pages_opened=(1000, 100_000) if quick else (1000, 100_000, 1_000_000),
    )
    _check_limit(plan)
    return plan


def _check_limit(plan: Plan) -> None:
    """Refuse a plan in which ``leaky`` would reach the limit of open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    turns = plan.rounds + WARM_UP
    kept = max(turns * point.calls * 2 * 2 * KEYS for point in plan.points)  # K and V of a set, and of a get
    if "leaky" in plan.arms and kept > limit - FEW_FILES:
        raise ConfigError(
            f"--arm leaky keeps {kept} descriptors open, and the hard limit is {limit} (ulimit -Hn): use --quick "
            f"--page-kib {TURN_BYTES // KEYS // KIB}, or leave it out"
        )


def checked_space(needed: int, storage_dir: str | os.PathLike[str] | None) -> str:
    """Say how much disk is needed, in bytes, and how much is free.

    Raises
    ------
    ConfigError
        When that is more than the free space, but for a tenth of it.
    """
    folder = os.fspath(storage_dir or tempfile.gettempdir())
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(
            f"storage_dir {folder}: {error.strerror}; expected an existing, writable folder"
        ) from error
    if needed > SPARE * free:
        raise ConfigError(
            f"not enough disk: up to {needed / GIB:.1f} GiB at a time are needed, and {free / GIB:.1f} GiB are free "
            f"in {folder}, of which a tenth stays free; use another --storage-dir, smaller pages (--page-kib), fewer "
            "arms (--arm), or --quick"
        )
    return f"writes up to {needed / GIB:.1f} GiB at a time to {folder} ({free / GIB:.1f} GiB free), and removes what it wrote"
