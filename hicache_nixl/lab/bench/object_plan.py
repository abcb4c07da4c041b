"""What the benchmark over an object store measures: arms, points, and what they need."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError, StoreError
from ...transport.bucket import Bucket
from ..experiments.alternating import WARM_UP
from ..object_store import Endpoint, weed
from ..statistics import FEWEST
from .plan import (
    GIB,
    KEYS,
    KIB,
    LARGEST_PAGE,
    MIB,
    PEER,
    QUICK_PAGES,
    SMALLEST_PAGE,
    checked_space,
)

SEAWEEDFS, FILES, OTHER = "sglang-seaweedfs", "scoped-file", "pooled-other"
MOST_CALLS, QUICK_CALLS, TURN_BYTES = 4, 2, 64 * MIB
ROUNDS = 12  # fewer than of the benchmark on files: a turn takes ten times as long
ANSWERED = 5.0  # seconds in which the user's own store has to answer before anything is measured


@dataclass(frozen=True)
class ObjectArm:
    """One arm: its kind as in ``arms.Asked``, what it is in a few words, its options, and where its pages are."""

    kind: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    on_files: bool = False
    another: bool = False


ARMS = {
    "pooled": ObjectArm("ours", "the pages of a call in few objects", {"lifetime": "pooled"}),
    OTHER: ObjectArm(
        "ours",
        "the same, and another connector, which knows nothing of them, looks pages up and loads them",
        {"lifetime": "pooled"},
        another=True,
    ),
    "scoped": ObjectArm("ours", "an object for keys and one for values of each page", {"lifetime": "scoped"}),
    SEAWEEDFS: ObjectArm("seaweedfs", "SGLang 0.5.23's backend for S3, an object for each page"),
    PEER: ObjectArm("nixl", "SGLang 0.5.23's NIXL connector with the plugin OBJ"),
    FILES: ObjectArm(
        "ours", "scoped with files, on a disk of this machine", {"lifetime": "scoped"}, on_files=True
    ),
}
OF_SGLANG = (SEAWEEDFS, PEER)


@dataclass(frozen=True)
class ObjectPlan:
    """A benchmark over an object store.

    Attributes
    ----------
    pages : tuple of int
        Bytes of a page, one for each point.
    arms : tuple of str
    rounds : int
        In which every arm has a turn; one more, that warms up, is not counted.
    most_calls : int
        Of each operation in a turn.
    volumes : int
        Volume servers of the store that is started.
    endpoint : Endpoint, optional
        The user's own store, instead.
    """

    pages: tuple[int, ...]
    arms: tuple[str, ...]
    rounds: int
    most_calls: int = MOST_CALLS
    volumes: int = 1
    endpoint: Endpoint | None = None

    def calls(self, page_bytes: int) -> int:
        """Return the calls of each operation in a turn."""
        return max(1, min(self.most_calls, TURN_BYTES // (KEYS * page_bytes)))

    def pages_of_an_arm(self, page_bytes: int) -> int:
        """Return the most pages that an arm stores at a point: in its rounds, and once to see whether it works."""
        return ((self.rounds + WARM_UP) * self.calls(page_bytes) + 1) * KEYS

    @property
    def where(self) -> str:
        """The object store in words."""
        if self.endpoint is not None:
            return f"{self.endpoint.url}, bucket {self.endpoint.bucket}"
        if self.volumes == 1:
            return "SeaweedFS on this machine, one volume server"
        return f"SeaweedFS on this machine, {self.volumes} volume servers, every object on two of them"

    def check(self, storage_dir: str | os.PathLike[str] | None) -> str:
        """Say what is needed in the user's own store and on the disk.

        Raises
        ------
        ConfigError
            When SeaweedFS is missing, the disk is too small, or the user's own store does not answer.
        """
        in_store, on_disk = self._needed()
        if self.endpoint is None:
            weed.program()
            return checked_space(on_disk, storage_dir)
        _check_answers(self.endpoint)
        told = f"stores up to {in_store / GIB:.1f} GiB at a time in {self.where}, and removes it"
        return f"{told}; {checked_space(on_disk, storage_dir)}" if on_disk else told

    def _needed(self) -> tuple[int, int]:
        """Return the bytes that are taken at a time in the user's own store, and on the disk of this machine."""
        each = max(self.pages_of_an_arm(page_bytes) * page_bytes for page_bytes in self.pages)
        files = each * sum(ARMS[arm].on_files for arm in self.arms)
        objects = each * len(self.arms) - files
        if self.endpoint is not None:
            return objects, files
        return 0, files + objects * min(self.volumes, 2)


def make_plan(
    *,
    quick: bool = False,
    page_kib: Sequence[int] = (),
    arms: Sequence[str] = (),
    volumes: int = 1,
    endpoint: Endpoint | None = None,
) -> ObjectPlan:
    """Return the plan for options of the command.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> plan = make_plan(quick=True, arms=["scoped", "pooled"])
    >>> plan.arms, plan.rounds, [plan.calls(page) for page in plan.pages]
    (('pooled', 'scoped'), 6, [2, 2, 1])
    """
    for size in page_kib:
        if not SMALLEST_PAGE <= size * KIB <= LARGEST_PAGE:
            raise ConfigError(f"--page-kib {size}: expected {SMALLEST_PAGE // KIB} to {LARGEST_PAGE // KIB}")
    if volumes < 1:
        raise ConfigError(f"--volumes {volumes}: expected 1 or more")
    for arm in arms:
        if arm not in ARMS:
            raise ConfigError(
                f"--arm {arm} is unknown with --object-store; expected one of {', '.join(ARMS)}"
            )
    pages = tuple(sorted({size * KIB for size in page_kib})) or QUICK_PAGES
    chosen = tuple(arm for arm in ARMS if arm in (arms or ARMS))
    rounds, calls = (FEWEST, QUICK_CALLS) if quick else (ROUNDS, MOST_CALLS)
    return ObjectPlan(pages, chosen, rounds, calls, volumes, endpoint)


def bucket_of(endpoint: Endpoint, patience: float = 2 * ANSWERED) -> Bucket:
    """Return what lists and removes objects."""
    section = endpoint.extra_config()["plugin"]["obj"]
    return Bucket({name: value for name, value in section.items() if name != "active"}, patience)


def _check_answers(endpoint: Endpoint) -> None:
    try:
        with closing(bucket_of(endpoint, ANSWERED)) as bucket:
            bucket.ask()
    except (StoreError, FileNotFoundError) as error:
        told = endpoint.redacted(str(error))
        raise ConfigError(f"--endpoint {endpoint.url}, bucket {endpoint.bucket}: {told}") from None
