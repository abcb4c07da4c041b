"""Our ``leaky`` and ``try_finally`` beside the releases that they stand for, call for call.

Both sides make the same random calls, and now and then lose the same file; one worker per connector lives
through all of it.
"""

from __future__ import annotations

import errno
import random
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import takewhile

import pytest

from hicache_nixl.host.pools import LAYOUTS
from hicache_nixl.lab.worker.call import CallRow
from hicache_nixl.lab.worker.client import Worker
from hicache_nixl.lab.worker.schedule import files_per_key
from hicache_nixl.lab.worker.setup import MODEL_NAME, Setup, key_of

PAIRS = {"leaky": "sglang==0.5.11", "try_finally": "sglang==0.5.12"}
PAGES = 40  # of the host pool, and so the largest call
CALLS = 14
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


@dataclass(frozen=True)
class Sides:
    """Workers of one of ours and of its release, set up alike."""

    ours: Worker
    theirs: Worker
    layout: str
    mla: bool
    stored: list[str] = field(default_factory=list)

    @property
    def zero_copy(self) -> bool:
        return self.layout != "layer_first"

    def call(self, operation: str, keys: int) -> tuple[CallRow, CallRow]:
        ours, theirs = (side.call(operation, keys) for side in (self.ours, self.theirs))
        if operation == "set" and ours.pages_ok == keys:
            first = len(self.stored)
            self.stored.extend(key_of(0, page_id) for page_id in range(first, first + keys))
        return ours, theirs

    def latest(self, count: int) -> list[str]:
        """Return the keys that a get or an exists of so many keys asks for."""
        stored = self.stored
        return stored[-count:] if count <= len(stored) else [stored[i % len(stored)] for i in range(count)]

    def names(self) -> list[str]:
        """Return the names of the files that both have; they must be the same."""
        ours, theirs = (sorted(path.name for path in side.folder.iterdir()) for side in self.sides)
        assert theirs == ours
        return ours

    @property
    def sides(self) -> tuple[Worker, Worker]:
        return self.ours, self.theirs

    def leading_files(self, keys: list[str]) -> int:
        """Return how many files there are, in the order of the pages, before the first that is missing."""
        suffix = f"_{MODEL_NAME}" if self.mla else f"_{MODEL_NAME}_0_1"
        parts = [""] if not self.zero_copy else ["_k"] if self.mla else ["_k", "_v"]
        paths = [self.ours.folder / f"{key}{suffix}{part}" for key in keys for part in parts]
        return sum(1 for _ in takewhile(lambda path: path.exists(), paths))


@pytest.fixture(scope="module")
def workers(released: Callable[[str], str]) -> Iterator[dict[str, Worker]]:
    """A worker per connector, started at once, alive until the last test of this module."""
    names = [*PAIRS, *map(released, PAIRS.values())]
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        started = pool.map(lambda name: stack.enter_context(Worker(Setup(name, page_bytes=4096))), names)
        yield dict(zip(names, started, strict=True))


@pytest.fixture(params=PAIRS)
def lifetime(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def sides(
    workers: dict[str, Worker], lifetime: str, request: pytest.FixtureRequest
) -> Callable[[str, bool], Sides]:
    """Set both sides up for a kind of page; connectors without pages, files or registrations."""

    def open_sides(layout: str, mla: bool) -> Sides:
        ours, theirs = lifetime, PAIRS[lifetime]
        for name in (ours, theirs):
            workers[name].open(Setup(name, page_bytes=4096, pages=PAGES, layout=layout, mla=mla))
        return Sides(workers[ours], workers[theirs], layout, mla)

    return open_sides


def assert_alike(ours: CallRow, theirs: CallRow, at: str) -> None:
    columns = ("storage_fds", "registrations", "pages_ok", "bytes", "files", "errno", "raised")
    assert [getattr(theirs, name) for name in columns] == [getattr(ours, name) for name in columns], at


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mla", [False, True], ids=["multi_head", "mla"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_calls_leave_the_same_and_answer_the_same(sides, layout, mla, seed):
    """Descriptors, registrations, answers and errno after each call, and the names of all files."""
    pair, dice = sides(layout, mla), random.Random(f"{layout} {mla} {seed}")
    begin, done = pair.call("set", dice.randint(1, PAGES)), []
    assert_alike(*begin, "the first set")
    for _ in range(CALLS):
        operation = dice.choices(["set", "get", "exists", "lose"], [4, 4, 2, 1])[0]
        if operation == "lose":
            lost = dice.choice(pair.names())
            for side in pair.sides:
                (side.folder / lost).unlink()
            done.append(f"lose {lost}")
            continue
        keys = dice.randint(1, PAGES)
        done.append(f"{operation} {keys}")
        ours, theirs = pair.call(operation, keys)
        grown = [row.open_fds - first.open_fds for row, first in zip((ours, theirs), begin, strict=True)]
        assert grown[0] == grown[1], done
        if operation == "exists":
            leading = pair.leading_files(pair.latest(keys))
            assert ours.pages_ok == leading // files_per_key(layout, mla), done
            # the releases divide by 2 for MLA, which has one file per page, and by 1 for K and V
            assert theirs.pages_ok == (leading // 2 if mla and pair.zero_copy else leading), done
            ours, theirs = replace(ours, pages_ok=0), replace(theirs, pages_ok=0)
        assert_alike(ours, theirs, str(done))
        assert theirs.errno in (0, errno.ENOENT)
        pair.names()


@pytest.mark.parametrize(
    ("layout", "mla", "factor"),
    [
        ("page_first", False, 2),
        ("page_first_direct", False, 2),
        ("layer_first", False, 1),
        ("page_first", True, 0.5),
        ("page_first_direct", True, 0.5),
        ("layer_first", True, 1),
    ],
)
def test_the_releases_say_of_8_pages_that_16_or_4_are_there(sides, layout, mla, factor):
    """Twice as many for keys and values apart, half as many for MLA, where pages move without a copy."""
    pair = sides(layout, mla)
    pair.call("set", 8)
    ours, theirs = pair.call("exists", 8)
    assert (ours.pages_ok, theirs.pages_ok) == (8, 8 * factor)


def test_before_any_set_neither_finds_a_page(sides):
    ours, theirs = sides("page_first", False).call("exists", 8)
    assert (ours.pages_ok, theirs.pages_ok) == (0, 0)


def test_a_page_that_is_lost_fails_the_whole_get_on_both_sides(sides):
    pair = sides("page_first", False)
    pair.call("set", 8)
    lost = pair.names()[5]
    for side in pair.sides:
        (side.folder / lost).unlink()
    for row in pair.call("get", 8):
        assert (row.pages_ok, row.errno) == (0, errno.ENOENT)


def test_at_the_limit_both_end_at_the_same_call_and_the_release_leaves_empty_files(sides, lifetime):
    """Only ``leaky`` gets there.  Ours takes the files that it made for a set which failed away again."""
    pair, hard = sides("page_first", False), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    rows = []
    try:
        for side in pair.sides:
            limit = side.call("set", 1).open_fds + 3 * 16 + 5
            side.request("limits", baseline_fds=None, nofile_limit=limit)
        for _ in range(6):
            rows.append(pair.call("set", 8))
            assert_alike(*rows[-1], f"set number {len(rows)}")
    finally:
        for side in pair.sides:
            side.request("limits", baseline_fds=None, nofile_limit=hard)
    fails = 3 if lifetime == "leaky" else 6
    for side, (folder, kept) in enumerate(zip((w.folder for w in pair.sides), (0, 16), strict=True)):
        assert [row[side].errno for row in rows] == [0] * fails + [errno.EMFILE] * (6 - fails)
        assert [row[side].pages_ok for row in rows] == [8] * fails + [0] * (6 - fails)
        empty = [path for path in folder.iterdir() if path.stat().st_size == 0]
        assert len(empty) == kept * (6 - fails)
