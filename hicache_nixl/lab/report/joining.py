"""Join two runs: claims that changed, tables row by row, ratios of times."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..statistics import FEWEST, unpaired_ratio

# Columns that identify a row, in the order in which they are shown; all other columns were measured.
IDENTITY = (
    "notebook",
    "id",
    "connector",
    "arm",
    "before",
    "after",
    "arms",
    "column",
    "unit",
    "what",
    "step",
    "nth",
    "kind",
    "queue",
    "page_bytes",
    "keys",
    "layout",
    "mla",
    "direct",
    "call",
    "operation",
    "way",
    "pause",
    "pair",
)


ONLY = ("only in the first", "only in the second")  # changes of a claim that one run does not have


def claims_side_by_side(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Join two ledgers: ``expected``, ``measured``, ``verdict`` and ``cell`` of both runs, and the ``change``.

    ``change`` is empty where verdict and expected value are the same.  Measured values may differ, since times differ
    from run to run.

    Examples
    --------
    >>> ledger = pd.DataFrame([["01", "4", "flat", "It is flat.", "0", "0", "holds"]],
    ...     columns=["notebook", "cell", "id", "sentence", "expected", "measured", "verdict"])
    >>> other = ledger.assign(measured="2", verdict="fails")
    >>> claims_side_by_side(ledger, other).change.tolist()
    ['holds -> fails']
    """
    both = a.merge(b, on=["notebook", "id"], how="outer", suffixes=("_a", "_b"), sort=False)
    both = both.fillna("")
    both.insert(2, "sentence", both.sentence_b.where(both.sentence_b != "", both.sentence_a))
    both["change"] = [_change(row) for row in both.itertuples()]
    both["counted"] = [_is_count(expected) for expected in both.expected_a]
    return both.drop(columns=["sentence_a", "sentence_b"])


def _change(row: Any) -> str:
    if not row.verdict_b:
        return ONLY[0]
    if not row.verdict_a:
        return ONLY[1]
    if row.verdict_a != row.verdict_b:
        return f"{row.verdict_a} -> {row.verdict_b}"
    if row.verdict_a == "fails" and row.measured_a != row.measured_b:
        return "fails with another value"
    return "expected value changed" if row.expected_a != row.expected_b and _is_count(row.expected_a) else ""


def _is_count(expected: str) -> bool:
    """Return whether an expected value is a count, rather than a margin."""
    return not expected.startswith(("at most", "above")) and "within its interval" not in expected


def identity(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Return the columns that identify rows in two tables.

    A column that has one value in the first table and another in the second, such as the queue, is a difference
    between the runs and does not identify rows.

    Examples
    --------
    >>> identity(pd.DataFrame({"queue": ["libaio"], "keys": [1]}), pd.DataFrame({"queue": ["io_uring"], "keys": [1]}))
    ['keys']
    """
    shared = [name for name in IDENTITY if name in a and name in b]
    return [
        name for name in shared if {*a[name]} == {*b[name]} or max(a[name].nunique(), b[name].nunique()) > 1
    ]


def row_keys(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Return the columns that identify each row of both tables; empty when some rows have the same values."""
    keys = identity(a, b)
    if not keys or a.duplicated(keys).any() or b.duplicated(keys).any():
        return []
    return keys


def tables_side_by_side(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, list[str]] | None:
    """Join two tables of one name row by row.

    Returns
    -------
    tuple or None
        The rows of both, joined by the columns of ``IDENTITY`` that they have, with ``NAME a`` and ``NAME b`` for each
        column that differs; and the names of the columns that are equal.  None when no columns identify the rows.
    """
    keys = row_keys(a, b)
    if not keys:
        return None
    both = a.merge(b, on=keys, how="outer", suffixes=(" a", " b"), sort=False)
    shared = [name for name in a.columns if name in b.columns and name not in keys]
    same = [name for name in shared if _equal(both[f"{name} a"], both[f"{name} b"])]
    differing = [f"{name} {run}" for name in shared if name not in same for run in ("a", "b")]
    return both[keys + differing], same


def _equal(first: pd.Series, second: pd.Series) -> bool:
    return bool(((first == second) | (first.isna() & second.isna())).all())


def time_ratios(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame | None:
    """Compare the times of two runs point by point, for a table with a row per pair.

    Returns
    -------
    pandas.DataFrame or None
        For each point, the median milliseconds of both runs, and ``time_ratio`` (second over first) with ``low`` and
        ``high``.  The runs did not alternate, so the interval is that of two independent samples, not of pairs.  None
        for a table without times, or when the runs have no point in common.
    """
    if not {"seconds", "pair"} <= set(a.columns) & set(b.columns):
        return None
    keys = [name for name in identity(a, b) if name != "pair"]
    if not keys:
        return None
    there = dict(list(b.groupby(keys, sort=False, dropna=False)))
    rows = []
    for point, group in a.groupby(keys, sort=False, dropna=False):
        if point in there and min(len(group), len(there[point])) >= FEWEST:
            first, second = group.seconds.to_numpy() * 1e3, there[point].seconds.to_numpy() * 1e3
            ratio = unpaired_ratio(second, first)
            medians = {"ms a": pd.Series(first).median(), "ms b": pd.Series(second).median()}
            found = {"time_ratio": ratio.median, "low": ratio.low, "high": ratio.high, "times": ratio.count}
            rows.append({**dict(zip(keys, point, strict=True)), **medians, **found})
    if not rows:
        return None
    table = pd.DataFrame(rows)
    fixed = [name for name in keys if table[name].nunique() == 1 and name not in ("operation", "arm")]
    return table.drop(columns=fixed)
