"""What a benchmark over an object store found: times, requests, processor time, ratios, and what is fastest where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..figures.words import listed, size_of
from ..statistics import FEWEST_FOR_P99, Estimate, median_of, ratio_table
from .arms import OPERATIONS
from .object_plan import ARMS, OTHER, SEAWEEDFS
from .objects import MeasuredObjects
from .plan import KEYS, KIB

POINT = ["page_bytes", "operation"]
TITLE_SIZE = 64 * KIB
IN_MEMORY = ("pooled", "exists")  # the connector that stored the pages knows them, and asks no store


def summary(times: pd.DataFrame) -> pd.DataFrame:
    """Sum up the calls of each arm.

    Returns
    -------
    pandas.DataFrame
        ``page_bytes``, ``operation``, ``arm``; ``ms`` of a call with ``low_ms`` and ``high_ms``, the median of the turns;
        ``p50_ms`` and ``p99_ms`` of the ``calls``; ``pages_s``, the pages of a call divided by ``p50_ms``; and for each page ``requests``, ``client_us`` and
        ``store_us`` of processor time, NaN where not known, and ``store_us`` also without a request; ``ratio``, how many
        times as fast it is as SGLang's backend for S3, with ``low`` and ``high``, NaN without it and for ``IN_MEMORY``.
    """
    rows = []
    for (page_bytes, operation, arm), group in times.groupby([*POINT, "arm"], sort=False):
        found, pages = median_of(group.groupby("pair").seconds.mean()), len(group) * KEYS
        p50 = group.seconds.median()
        against = (
            None if (arm, operation) == IN_MEMORY else _against(times, page_bytes, operation, arm, SEAWEEDFS)
        )
        requests = _each(group, "requests", pages)
        rows.append(
            {"page_bytes": page_bytes, "operation": operation, "arm": arm}
            | {"ms": found.median * 1e3, "low_ms": found.low * 1e3, "high_ms": found.high * 1e3}
            | {"p50_ms": p50 * 1e3, "p99_ms": group.seconds.quantile(0.99) * 1e3}
            | {"calls": len(group), "pages_s": KEYS / p50}
            | {"requests": requests, "client_us": _each(group, "core_seconds", pages, 1e6)}
            | {"store_us": _each(group, "store_core_seconds", pages, 1e6) if requests else float("nan")}
            | (
                {"ratio": against.median, "low": against.low, "high": against.high}
                if against
                else dict.fromkeys(("ratio", "low", "high"))
            )
        )
    return pd.DataFrame(rows).astype(dict.fromkeys(("ratio", "low", "high"), float))


def _each(group: pd.DataFrame, column: str, pages: int, factor: float = 1) -> float:
    """Return the sum of a column for each page; NaN where it is not known."""
    if column not in group:
        return float("nan")
    return float(group[column].sum(skipna=False)) / pages * factor


def _against(times: pd.DataFrame, page_bytes: Any, operation: Any, arm: Any, other: str) -> Estimate | None:
    """Return how many times as fast an arm is as another; None where one of them is missing."""
    chosen = times[(times.page_bytes == page_bytes) & (times.operation == operation)]
    if arm == other or not {arm, other} <= set(chosen.arm):
        return None
    found = ratio_table(chosen[chosen.arm.isin([arm, other])], POINT, before=arm, after=other).iloc[0]
    return Estimate(found.time_ratio, found.low, found.high, found.pairs)


def fastest(times: pd.DataFrame) -> str:
    """Say in a line which arm on the object store is the fastest where.

    Where the interval of its ratio to the next one contains 1, both are named.  Lookups are those that ask the store.
    """
    return f"Fastest on the object store: {_winners(times, {OTHER}, OPERATIONS)}."


def fastest_of_others(times: pd.DataFrame) -> str:
    """Say the same for gets of pages that another connector stored; empty where that was not measured."""
    if OTHER not in set(times.arm):
        return ""
    return f"If another connector stored the pages: {_winners(times, {'pooled'}, ['get'])}."


def _winners(times: pd.DataFrame, without: set[str], operations: Sequence[str]) -> str:
    table = summary(times)
    table = table[[not ARMS[arm].on_files for arm in table.arm]]
    told = []
    for operation in operations:
        out = {"pooled"} if operation == IN_MEMORY[1] else without
        winners: dict[str, list[str]] = {}
        chosen = table[(table.operation == operation) & ~table.arm.isin(out)]
        for page_bytes, group in chosen.groupby("page_bytes"):
            winners.setdefault(_winner(times, group), []).append(size_of(int(str(page_bytes))))
        if winners:
            told.append(f"{operation}: " + ", ".join(f"{arm} at {listed(at)}" for arm, at in winners.items()))
    return "; ".join(told) or "nothing was measured there"


def _winner(times: pd.DataFrame, group: pd.DataFrame) -> str:
    in_order = group.sort_values("ms").arm.tolist()
    if len(in_order) == 1:
        return str(in_order[0])
    first, second = in_order[:2]
    point = group.iloc[0]
    ratio = _against(times, point.page_bytes, point.operation, first, second)
    return str(first) if ratio and ratio.low > 1 else f"{first} or {second} (undecided)"


def headline(table: pd.DataFrame) -> str:
    """Say how fast the first arm sets and gets pages of 64 KiB, or else of the smallest size, as SGLang's backend or in pages.

    Examples
    --------
    >>> found = {"arm": "pooled", "page_bytes": 4096, "operation": ["set", "get"], "pages_s": [1e4, 2e4]}
    >>> headline(pd.DataFrame({**found, "ratio": [2.24, 1.1], "low": [2.1, 0.9], "high": [2.5, 1.3]}))
    'pooled is 2.2 and 1.1 (undecided) times as fast as sglang-seaweedfs for set and get of 4 KiB'
    >>> headline(pd.DataFrame({**found, "ratio": [float("nan")] * 2}))
    'pooled: 10,000 and 20,000 pages per second for set and get of 4 KiB'
    """
    sizes = set(table.page_bytes)
    size = TITLE_SIZE if TITLE_SIZE in sizes else min(sizes)
    moved = table[(table.page_bytes == size) & table.operation.isin(["set", "get"])]
    known = moved[moved.ratio.notna()]
    chosen = moved if known.empty else known
    arm = next(arm for arm in ARMS if arm in set(chosen.arm))
    own = chosen[chosen.arm == arm]
    what = f"for {listed([str(name) for name in own.operation])} of {size_of(size)}"
    if known.empty:
        return f"{arm}: {listed([f'{pages:,.0f}' for pages in own.pages_s])} pages per second {what}"
    told = [two_digits(row.ratio) + " (undecided)" * (row.low <= 1 <= row.high) for row in own.itertuples()]
    return f"{arm} is {listed(told)} times as fast as {SEAWEEDFS} {what}"


def two_digits(number: float) -> str:
    """Return two digits, or all of those in front of the point."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def no_ratios(table: pd.DataFrame) -> str:
    """Say why there are no ratios; empty where there are some.

    Examples
    --------
    >>> no_ratios(pd.DataFrame({"arm": ["pooled"], "ratio": [float("nan")]}))
    'no ratios: the arm sglang-seaweedfs is not among those measured'
    """
    if table.ratio.notna().any():
        return ""
    if SEAWEEDFS in set(table.arm):
        return f"no ratios: there is no arm to compare with {SEAWEEDFS}"
    return f"no ratios: the arm {SEAWEEDFS} is not among those measured"


def few_calls(table: pd.DataFrame) -> str:
    """Say what a p99 of few calls is; empty where there are enough."""
    fewest = int(table.calls.min())
    if fewest >= FEWEST_FOR_P99:
        return ""
    return f"p99 of so few calls (from {fewest}) is nearly the slowest one."


def as_json(measured: MeasuredObjects, table: pd.DataFrame, line: str) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {
        "keys": KEYS,
        "rounds": measured.plan.rounds,
        "where": measured.plan.where,
        "left_out": measured.left_out,
        "results": table.to_dict("records"),
        "fastest": line,
    }
