"""What a benchmark found: medians, ratios with intervals, and whether the targets are met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..runs.claims import FAILS, HOLDS, INCONCLUSIVE, Claim, above
from ..statistics import Estimate, median_of, ratio_table
from .measure import Measured
from .plan import CEILING, FILE_BACKEND, KEYS, KIB, PEER, cache_name

POINT = ["queue", "direct", "page_bytes", "operation"]
VERDICTS = {HOLDS: "met", FAILS: "missed", INCONCLUSIVE: "undecided", "": ""}
LARGE = 64 * KIB  # from here on a call is bytes more than overhead, and is compared with the ceiling


@dataclass(frozen=True)
class Comparison:
    """Two arms whose speeds are compared: ``arm`` / ``against``.

    Attributes
    ----------
    arm, against : str
    operations : tuple of str
    further : bool
        Whether it belongs to the rows beside the main table.
    """

    arm: str
    against: str
    operations: tuple[str, ...] = ("set", "exists", "get")
    further: bool = False

    def target(self, operation: str, page_bytes: int, direct: bool) -> float | None:
        """Return the ratio that is aimed at, None where there is none.

        Those against SGLang are for the page cache: with O_DIRECT the disk sets the pace of both.
        """
        kib = page_bytes // KIB
        if self.against == PEER:
            wanted = {("set", 4): 8.0, ("set", 64): 5.0, ("get", 4): 8.0, ("get", 64): 2.0}
            return None if direct else 20.0 if operation == "exists" else wanted.get((operation, kib))
        if (self.arm, self.against) == ("pooled-none", CEILING):
            return 0.9 if page_bytes >= LARGE else None
        return {"pooled-none": 0.8, "empty": 0.9}.get(self.against)


COMPARISONS = (
    Comparison("pooled", PEER),
    Comparison("pooled", FILE_BACKEND),
    Comparison("pooled", "scoped"),
    Comparison("pooled", CEILING, ("set", "get")),
    Comparison("pooled-none", CEILING, ("set", "get")),
    Comparison("pooled", "pooled-none", ("get",)),
    Comparison("full", "empty", ("set",), further=True),
    Comparison("full-cold", "empty", ("set",), further=True),
    Comparison("pooled", "consecutive", ("set", "get"), further=True),
)


def medians(times: pd.DataFrame) -> pd.DataFrame:
    """Return the median of the turns of each arm, where a turn counts with the mean of its calls.

    Returns
    -------
    pandas.DataFrame
        ``further``, the columns of a point, ``operation``, ``arm``, ``ms`` with ``low_ms`` and ``high_ms``, and
        ``MiB_s``.
    """
    rows = []
    for values, group in times.groupby(["further", *POINT, "arm"], sort=False):
        found = median_of(group.groupby("pair").seconds.mean())
        moved = group["bytes"].iloc[0] / 2**20
        bounds = {"ms": found.median * 1e3, "low_ms": found.low * 1e3, "high_ms": found.high * 1e3}
        rows.append(
            dict(zip(["further", *POINT, "arm"], values, strict=True))
            | bounds
            | {"MiB_s": moved / found.median if moved else None}
        )
    return pd.DataFrame(rows)


def ratios(times: pd.DataFrame) -> pd.DataFrame:
    """Compare the arms turn by turn.

    Returns
    -------
    pandas.DataFrame
        ``further``, the columns of a point, ``operation``, ``arm``, ``against``; ``speed_ratio``, how many times as
        fast ``arm`` is as ``against``, with ``low``, ``high`` and ``pairs``; ``target``; ``verdict``, by the rule of
        ``claims.above``, empty without a target.
    """
    rows = []
    for comparison in COMPARISONS:
        for row in _compared(times, comparison).itertuples():
            target = comparison.target(row.operation, row.page_bytes, row.direct)
            found = Estimate(row.time_ratio, row.low, row.high, row.pairs)
            rows.append(
                {
                    "further": comparison.further,
                    **{name: getattr(row, name) for name in POINT},
                    "arm": comparison.arm,
                    "against": comparison.against,
                    "speed_ratio": found.median,
                    "low": found.low,
                    "high": found.high,
                    "pairs": found.count,
                    "target": target,
                    "verdict": "" if target is None else above("", "", target, found).verdict,
                }
            )
    columns = [
        "further",
        *POINT,
        "arm",
        "against",
        "speed_ratio",
        "low",
        "high",
        "pairs",
        "target",
        "verdict",
    ]
    return pd.DataFrame(rows, columns=columns).astype({"further": bool, "direct": bool})


def _compared(times: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """Return the ratio of times ``against`` / ``arm``, which is that of their speeds, at all points that have both."""
    arms = {comparison.arm, comparison.against}
    chosen = times[
        (times.further == comparison.further)
        & times.arm.isin(arms)
        & times.operation.isin(comparison.operations)
    ]
    both = chosen.groupby(POINT).arm.transform("nunique") == len(arms)
    return ratio_table(chosen[both], POINT, before=comparison.arm, after=comparison.against)


def claims(found: pd.DataFrame) -> list[Claim]:
    """Return the targets as claims of a run."""
    return [
        above(
            f"{row.operation}_{_in_id(row.arm)}_{_in_id(row.against)}_{row.queue}_{_cache_in_id(row.direct)}_{row.page_bytes}",
            f"A {row.operation} of pages of {row.page_bytes // KIB} KiB is more than {row.target:g} times as fast with "
            f"{row.arm} as with {row.against} ({cache_name(row.direct)}, {row.queue}).",
            row.target,
            Estimate(row.speed_ratio, row.low, row.high, row.pairs),
            "times as fast",
        )
        for row in found[found.verdict != ""].itertuples()
    ]


def _in_id(arm: str) -> str:
    return arm.replace("==", "_").replace(".", "_").replace("-", "_")


def _cache_in_id(direct: bool) -> str:
    return "direct" if direct else "cached"


def descriptors(times: pd.DataFrame) -> pd.DataFrame:
    """Return the most descriptors that each arm had open at the end of a turn.

    Returns
    -------
    pandas.DataFrame
        ``arm``, ``storage_fds`` (files of the storage folder), ``open_fds`` (those and what NIXL keeps open).
    """
    return times.groupby("arm", sort=False)[["storage_fds", "open_fds"]].max().reset_index()


def openings(opening: pd.DataFrame) -> pd.DataFrame:
    """Return how long a store of ``pooled`` takes to open: ``pages``, ``ms``, ``low_ms``, ``high_ms``."""
    rows = []
    for pages, group in opening.groupby("pages"):
        found = median_of(group.seconds * 1e3)
        rows.append({"pages": pages, "ms": found.median, "low_ms": found.low, "high_ms": found.high})
    return pd.DataFrame(rows, columns=["pages", "ms", "low_ms", "high_ms"])


@dataclass(frozen=True)
class Results:
    """The tables of a benchmark."""

    medians: pd.DataFrame
    ratios: pd.DataFrame
    openings: pd.DataFrame
    descriptors: pd.DataFrame

    @classmethod
    def of(cls, measured: Measured) -> Results:
        """Work them out."""
        return cls(
            medians(measured.times),
            ratios(measured.times),
            openings(measured.opening),
            descriptors(measured.times),
        )

    @property
    def missed(self) -> list[str]:
        """The targets that are missed, in words."""
        rows = self.ratios[self.ratios.verdict == FAILS].itertuples()
        return [
            f"{row.operation}, {row.page_bytes // KIB} KiB, {cache_name(row.direct)}, {row.queue}: {row.arm} / "
            f"{row.against} {Estimate(row.speed_ratio, row.low, row.high, row.pairs)}, target {row.target:g}"
            for row in rows
        ]

    @property
    def judged(self) -> int:
        """How many targets there are for what was measured."""
        return int((self.ratios.verdict != "").sum())

    def tally(self) -> str:
        """Return how many targets are met, in one line."""
        counts = {
            word: int((self.ratios.verdict == verdict).sum()) for verdict, word in VERDICTS.items() if verdict
        }
        return ", ".join(f"{count} {word}" for word, count in counts.items())


def as_json(measured: Measured, results: Results) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {
        "keys": KEYS,
        "rounds": measured.plan.rounds,
        "left_out": measured.left_out,
        "medians": results.medians.to_dict("records"),
        "ratios": results.ratios.to_dict("records"),
        "openings": results.openings.to_dict("records"),
        "descriptors": results.descriptors.to_dict("records"),
        "targets": results.tally(),
    }
