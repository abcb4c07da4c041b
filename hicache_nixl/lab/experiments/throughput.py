"""How fast pages are stored and loaded: the benchmark, short enough for a notebook."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import pandas as pd

from ..bench.measure import Measured, measure
from ..bench.plan import CEILING, FILE_BACKEND, MIB, PEER, QUICK_ROUNDS, Point, make_plan
from ..progress import tqdm
from ..statistics import Estimate
from .alternating import WARM_UP

ARMS = ("pooled", "scoped", PEER, FILE_BACKEND, CEILING)
TURN_BYTES, MOST_CALLS = 8 * MIB, 4  # of one arm before the next one has its turn


class ShortPoint(Point):
    """A point with few calls in a turn, and without the further arms of the command ``bench``."""

    @property
    def calls(self) -> int:
        """Calls of each operation in a turn.

        Examples
        --------
        >>> [ShortPoint("libaio", False, size).calls for size in (4096, 65536, 2**20)]
        [4, 1, 1]
        """
        return max(1, min(MOST_CALLS, TURN_BYTES // self.call_bytes))

    def arms(self, wanted: Sequence[str]) -> list[str]:
        """Return the arms that make sense here."""
        return super().arms([arm for arm in wanted if arm in ARMS])


def throughput(
    page_sweep: Sequence[int],
    *,
    repeats: int = QUICK_ROUNDS,
    queue: str = "libaio",
    storage_dir: str | os.PathLike[str] | None = None,
) -> Measured:
    """Time sets, lookups and gets of 128 pages through the page cache, each arm of ``ARMS`` in turn.

    Parameters
    ----------
    page_sweep : sequence of int
        Bytes of a page.
    repeats : int
        Rounds in which every arm has a turn.

    Returns
    -------
    Measured
        For ``bench.results.Results``; what is not available here, such as the release, is left out.

    Raises
    ------
    ConfigError
        When the pages would fill the disk.
    HiCacheNixlError
        When a call did not store, find or load every page.
    """
    points = tuple(ShortPoint(queue, False, size) for size in page_sweep)
    plan = make_plan(quick=True, queues=[queue], arms=ARMS)
    plan = dataclasses.replace(plan, points=points, rounds=repeats, pages_opened=())
    plan.check_space(storage_dir)
    turns = (repeats + WARM_UP) * sum(len(arms) for _, _, arms in plan.groups)
    with tqdm(total=turns, desc="throughput", unit="turn", leave=False) as bar:
        measured = measure(plan, storage_dir, lambda turn: bar.update(not turn.ended))
    return dataclasses.replace(measured, times=measured.times[~measured.times.further])


def speeds(ratios: pd.DataFrame) -> pd.DataFrame:
    """Return how many times as fast ``pooled`` is as each other arm, in words: a row per operation and size of page.

    Parameters
    ----------
    ratios : pandas.DataFrame
        From ``bench.results.Results``.
    """
    ratios = ratios[ratios.arm == "pooled"]
    words = [
        str(Estimate(row.speed_ratio, row.low, row.high, row.pairs)) for row in ratios.itertuples(index=False)
    ]
    table = ratios.assign(words=words).pivot(
        index=["operation", "page_bytes"], columns="against", values="words"
    )
    return table.reindex(columns=list(dict.fromkeys(ratios.against))).rename_axis(columns=None).reset_index()
