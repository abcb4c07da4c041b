"""What the points of a sweep measured: files left open, the cost in time, and claims that do not hold everywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..runs.claims import FAILS, HOLDS, INCONCLUSIVE, NOT_APPLICABLE
from ..runs.folder import read_table
from ..runs.record import Record
from ..statistics import Estimate
from .child import ENDED
from .grid import _text, told
from .record import PointState, Sweep

# Tables with the open storage files after each call, and the connector of one that has no such column.
COURSES = {
    "02_apply_the_fix_same_calls": "",
    "03_before_and_after_descriptors": "",
    "01_reproduce_the_leak_growth": "leaky",
}
RATIO = re.compile(r"([\d.]+) \[([\d.]+), ([\d.]+)\] \(time ratio\)")


@dataclass(frozen=True)
class Cost:
    """A ratio of times that a figure shows: the question, and the claim of each operation that measures it."""

    name: str
    question: str
    of: str
    to: str
    claims: Mapping[str, str]


COSTS = (
    Cost("fix", "What does the fix cost?", "try_finally", "leaky", {"set": "cost_set", "get": "cost_get"}),
    Cost(
        "ownership",
        "What does this connector cost?",
        "scoped",
        "sglang==0.5.23",
        {"set": "newest_set_cached", "get": "newest_get_cached"},
    ),
    Cost(
        "pooled",
        "How fast is pooled?",
        "pooled",
        "sglang==0.5.23",
        {"set": "set_sglang==0.5.23", "get": "get_sglang==0.5.23"},
    ),
)


@dataclass(frozen=True)
class Measured:
    """What one point measured.

    Attributes
    ----------
    point : PointState
    place : dict
        Where the point is in the grid: its host, if there are several, and the value of each axis, as texts.
    courses : dict
        By connector, the storage files that are open after each call.
    ratios : dict
        Ratios of times by the id of their claim.
    claims : pandas.DataFrame
    """

    point: PointState
    place: dict[str, str]
    courses: dict[str, list[int]]
    ratios: dict[str, Estimate]
    claims: pd.DataFrame

    @property
    def name(self) -> str:
        """What the point is called on the page: where it is in the grid."""
        return told(self.place) or "the only point"


@dataclass(frozen=True)
class Elsewhere:
    """A claim that does not hold at every point.

    Attributes
    ----------
    notebook, id, sentence : str
    verdict : str
        The worst that it has anywhere.
    holds, stated : int
        At how many points it holds, and was checked.
    others : list of (Measured, row)
        The points where it does not hold, with its row in their ledger.
    where : str
        The value of an axis that these points, and no others, have; empty where there is none.
    """

    notebook: str
    id: str
    sentence: str
    verdict: str
    holds: int
    stated: int
    others: list[tuple[Measured, Any]]
    where: str

    def tally(self) -> str:
        """Return at how many points it fails, and is inconclusive."""
        verdicts = [row.verdict for _, row in self.others]
        counts = {"fails": verdicts.count(FAILS), "inconclusive": verdicts.count(INCONCLUSIVE)}
        return ", ".join(f"{told} at {count}" for told, count in counts.items() if count)


def measured(sweep: Sweep) -> list[Measured]:
    """Return what each point of a sweep measured, in the order of the grid."""
    several = len({point.host for point in sweep.points.values() if point.host}) > 1
    return [_measured(sweep, point, several) for point in sweep.points.values()]


def _measured(sweep: Sweep, point: PointState, several: bool) -> Measured:
    place = {"host": point.host or "no host"} if several else {}
    place |= {name: _text(point.values[name]) for name in sweep.grid.axes}
    record = sweep.record(point.slug)
    if record is None:
        return Measured(point, place, {}, {}, pd.DataFrame(columns=["notebook", "id", "verdict"]))
    return Measured(point, place, courses(record), ratios(record.claims), record.claims)


def courses(record: Record) -> dict[str, list[int]]:
    """Return the open storage files after each call, by connector, from the first table that has them."""
    tables = record.tables()
    for name, connector in COURSES.items():
        if name in tables:
            table = read_table(tables[name])
            table = table.assign(connector=connector) if connector else table
            groups = table.groupby("connector", sort=False)
            return {str(arm): [0, *map(int, group.storage_fds)] for arm, group in groups}
    return {}


def ratios(claims: pd.DataFrame) -> dict[str, Estimate]:
    """Return the ratios of times that a ledger has, by the id of their claim.

    Examples
    --------
    >>> ratios(pd.DataFrame({"id": ["cost"], "measured": ["1.03 [0.93, 1.22] (time ratio)"]}))["cost"].low
    0.93
    """
    found = {}
    for row in claims.itertuples():
        if match := RATIO.fullmatch(row.measured):
            median, low, high = map(float, match.groups())
            found[str(row.id)] = Estimate(median, low, high, 0)
    return found


def shown_costs(points: list[Measured]) -> list[Cost]:
    """Return the costs that a point has measured."""
    return [cost for cost in COSTS if any({*cost.claims.values()} & {*one.ratios} for one in points)]


def elsewhere(points: list[Measured]) -> list[Elsewhere]:
    """Return the claims that do not hold at every point, those that fail somewhere first."""
    stated: dict[tuple[str, str], list[tuple[Measured, Any]]] = {}
    for one in points:
        for row in one.claims.itertuples():
            if row.verdict != NOT_APPLICABLE:
                stated.setdefault((row.notebook, row.id), []).append((one, row))
    found = []
    for (notebook, id_), rows in stated.items():
        others = [(one, row) for one, row in rows if row.verdict != HOLDS]
        if others:
            others.sort(key=lambda entry: entry[1].verdict != FAILS)
            verdict = FAILS if any(row.verdict == FAILS for _, row in others) else INCONCLUSIVE
            where = _where([one for one, _ in others], [one for one, _ in rows])
            counts = len(rows) - len(others), len(rows)
            found.append(Elsewhere(notebook, id_, others[0][1].sentence, verdict, *counts, others, where))
    return sorted(found, key=lambda claim: claim.verdict != FAILS)


def _where(some: list[Measured], every: list[Measured]) -> str:
    """Return the value of an axis that some points have, and no other point has."""
    if len(some) == len(every):
        return "at every point" if len(every) > 1 else ""
    for axis in some[0].place:
        values = {one.place[axis] for one in some}
        if len(values) == 1 and len(some) == sum(one.place[axis] in values for one in every):
            return f"exactly where {axis} is {values.pop()}"
    return ""


def as_table(points: list[Measured]) -> pd.DataFrame:
    """Return the points as a table, with what they measured."""
    rows = []
    for one in points:
        row = {
            "point": one.point.slug,
            "host": one.point.host or "",
            **{name: _text(value) for name, value in one.point.values.items()},
            "state": one.point.state,
            "reason": one.point.reason,
            "verdict": one.point.verdict,
            "seconds": one.point.seconds,
        }
        row |= {f"left_open_{arm}": counts[-1] for arm, counts in one.courses.items()}
        for id_, ratio in one.ratios.items():
            row |= {id_: ratio.median, f"{id_}_low": ratio.low, f"{id_}_high": ratio.high}
        rows.append(row)
    return pd.DataFrame(rows)


def ran(points: list[Measured]) -> list[Measured]:
    """Return the points that ran to their end."""
    return [one for one in points if one.point.state == ENDED]
