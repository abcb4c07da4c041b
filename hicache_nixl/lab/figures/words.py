"""What a title, a label or an alt text says, worked out from the table that is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from ..runs.claims import FAILS, HOLDS, NO_SLOWER, no_slower
from ..statistics import FEWEST, Estimate, paired_ratio, ratio_table
from ..worker.schedule import RECORDED_BASELINE
from .look import plain

EMFILE = 24
RELEASE = "SGLang "  # how ``plain`` begins the name of a released connector
FASTER, SAME, SLOWER, UNKNOWN = "faster", "no slower", "slower", "inconclusive"


class Drawn(NamedTuple):
    """A figure and its alt text, as ``Run.figure`` expects them."""

    figure: Figure
    alt: str

    @property
    def title(self) -> str:
        """What the figure says, as a sentence."""
        return f"{' '.join(self.figure.get_suptitle().split())}."


def baseline(table: pd.DataFrame) -> int:
    """Return the descriptors that were open before the first call: all but the storage files.

    Examples
    --------
    >>> baseline(pd.DataFrame({"open_fds": [167, 199], "storage_fds": [32, 64]}))
    135
    """
    return int(table.open_fds.iloc[0] - table.storage_fds.iloc[0])


def course(values: Sequence[float]) -> str:
    """Say what a count does from its first value to its last.

    Examples
    --------
    >>> course([135, 135]), course([135, 167, 199]), course([135, 199, 167])
    ('stays at 135', 'rises from 135 to 199', 'moves between 135 and 199, and ends at 167')
    """
    steps = pd.Series(values).diff().dropna()
    first, last = values[0], values[-1]
    if (steps == 0).all():
        return f"stays at {first:g}"
    if (steps >= 0).all():
        return f"rises from {first:g} to {last:g}"
    if (steps <= 0).all():
        return f"falls from {first:g} to {last:g}"
    return f"moves between {min(values):g} and {max(values):g}, and ends at {last:g}"


def numbers(values: Iterable[float]) -> str:
    """List the distinct values in ascending order.

    Examples
    --------
    >>> numbers([2, 1, 2]), numbers([2.0]), numbers([0, 1, 3])
    ('1 or 2', '2', '0, 1 or 3')
    """
    *others, last = [f"{value:g}" for value in sorted(set(values))] or ["none"]
    return f"{', '.join(others)} or {last}" if others else last


def per_key(table: pd.DataFrame) -> str:
    """Return how many descriptors the calls that succeeded left for each of their keys.

    Examples
    --------
    >>> calls = {"open_fds": [167, 199], "storage_fds": [32, 64], "keys": 16, "errno": 0}
    >>> per_key(pd.DataFrame(calls))
    '2'
    """
    counts = pd.Series([baseline(table), *table.open_fds]).diff().iloc[1:].to_numpy()
    worked = (table.errno == 0).to_numpy()
    return numbers(counts[worked] / table["keys"].to_numpy()[worked])


def first_emfile(table: pd.DataFrame) -> int | None:
    """Return the first call that failed with EMFILE."""
    failed = table.call[table.errno == EMFILE]
    return int(failed.iloc[0]) if len(failed) else None


def shift_of(table: pd.DataFrame) -> int:
    """Return how many descriptors more than the PR's server the worker had before the first call."""
    return baseline(table) - RECORDED_BASELINE


def points_met(table: pd.DataFrame, recorded: pd.DataFrame) -> int:
    """Return at how many of the recorded points the replay has the recorded count."""
    counts = table.set_index("call").open_fds.reindex(recorded.call)
    return int((counts.to_numpy() == (recorded.open_fds + shift_of(table)).to_numpy()).sum())


def origin(table: pd.DataFrame, recorded: pd.DataFrame) -> str:
    """Say how many descriptors are open before the first call, and that the PR's number is an inference.

    The PR's log does not give the number of its server; it follows from the log's first line.

    Examples
    --------
    >>> first = pd.DataFrame({"open_fds": [167], "keys": [16]})
    >>> print(origin(first.assign(storage_fds=32), first))
    135 are open before the first call,
    an inference from the PR's log: 167 - 2 x 16
    """
    before = baseline(table)
    told = f"{before} are open before the first call"
    if before != RECORDED_BASELINE:
        return told
    first = recorded.iloc[0]
    each = (first.open_fds - before) / first["keys"]
    return f"{told},\nan inference from the PR's log: {first.open_fds} - {each:g} x {first['keys']}"


def speed(ratio: Estimate) -> str:
    """Say what a ratio of times shows, by the rule of the claim ``no_slower``: the whole interval decides.

    It shows "faster" where the whole interval is below 1, a special case of "no slower".

    Examples
    --------
    >>> speed(Estimate(0.9, 0.8, 0.99, 30)), speed(Estimate(1.0, 0.97, 1.02, 30))
    ('faster', 'no slower')
    >>> speed(Estimate(1.2, 1.1, 1.3, 30)), speed(Estimate(1.0, 0.9, 1.1, 30))
    ('slower', 'inconclusive')
    """
    if ratio.high < 1:
        return FASTER
    return {HOLDS: SAME, FAILS: SLOWER}.get(no_slower("", "", ratio).verdict, UNKNOWN)


def pace(ratio: Estimate) -> str:
    """Say how the second arm compares with the first, in a sentence about the fix.

    Examples
    --------
    >>> pace(Estimate(1.0, 0.97, 1.02, 30))
    '1.00 [0.97, 1.02] times as long after the fix (no slower; margin 1.05)'
    """
    return f"{ratio} times as long after the fix ({speed(ratio)}; margin {NO_SLOWER:g})"


def gets_against(tables: Mapping[str, pd.DataFrame], arm: str, owner: str) -> str:
    """Say how the times of gets compare with the owner's in the first and the last quarter of the calls.

    Parameters
    ----------
    tables : mapping
        The calls of each connector, made in pairs.
    arm, owner : str
        The connector in the numerator, the connector in the denominator.

    Returns
    -------
    str
        A sentence; empty where a quarter has too few gets for an interval.
    """
    gets = [table.seconds[table.operation == "get"].to_numpy() for table in (tables[arm], tables[owner])]
    quarter = len(gets[0]) // 4
    if quarter < FEWEST:
        return ""
    first, last = (
        paired_ratio(gets[0][part], gets[1][part]) for part in (slice(quarter), slice(-quarter, None))
    )
    told = f"A get with {plain(arm)} takes {first} times as long as with {plain(owner)} in the first quarter"
    return f"{told} of the calls, and {last} times in the last quarter."


def listed(parts: Sequence[str]) -> str:
    """Join parts of a sentence.

    Examples
    --------
    >>> listed(["sets"]), listed(["sets", "gets"]), listed(["a", "b", "c"])
    ('sets', 'sets and gets', 'a, b and c')
    """
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def together(connectors: Sequence[str]) -> str:
    """List connectors that have something in common, as short as a label has to be.

    Examples
    --------
    >>> together(["scoped", "sglang==0.5.12", "sglang==0.5.23"])
    'scoped, SGLang 0.5.12, 0.5.23'
    """
    names = [plain(connector) for connector in connectors]
    ours = [name for name in names if not name.startswith(RELEASE)]
    released = [name.removeprefix(RELEASE) for name in names if name.startswith(RELEASE)]
    return ", ".join([*ours, RELEASE + released[0], *released[1:]] if released else ours)


def pooled_beside_scoped(turns: pd.DataFrame) -> str:
    """Say how many times as fast ``pooled`` is as ``scoped`` in objects: the lowest and highest point of each size of pages.

    Parameters
    ----------
    turns : pandas.DataFrame
        From ``lab.object_turns``.

    Examples
    --------
    >>> points = [(16384, 16, 3.0), (16384, 64, 4.5), (262144, 16, 1.0)]
    >>> rows = [(operation, size, keys, pair, arm, seconds if arm == "scoped, OBJ" else 1.0, 2**20)
    ...         for operation in ("set", "get") for size, keys, seconds in points for pair in range(6)
    ...         for arm in ("pooled, OBJ", "scoped, OBJ")]
    >>> columns = ["operation", "page_bytes", "keys", "pair", "arm", "seconds", "bytes"]
    >>> pooled_beside_scoped(pd.DataFrame(rows, columns=columns))
    '3 to 4.5 at sets and 3 to 4.5 at gets of 16 KiB pages; 1 at sets and 1 at gets of 256 KiB pages'
    """
    points = ratio_table(turns, ["operation", "page_bytes", "keys"], "pooled, OBJ", "scoped, OBJ")
    told = []
    for size, rows in points.groupby("page_bytes"):
        each = [
            f"{_range(part.time_ratio)} at {operation}s"
            for operation, part in rows.groupby("operation", sort=False)
        ]
        told.append(f"{listed(each)} of {size_of(size)} pages")
    return "; ".join(told)


def _range(values: pd.Series) -> str:
    """Return the lowest and the highest value with two significant digits, one where they are equal.

    Examples
    --------
    >>> _range(pd.Series([0.915, 1.08])), _range(pd.Series([3.0])), _range(pd.Series([64, 128]))
    ('0.92 to 1.1', '3', '64 to 128')
    """
    ends = (values.min(), values.max())
    low, high = (f"{end:.2g}" if end < 100 else f"{end:.0f}" for end in ends)
    return low if low == high else f"{low} to {high}"


def size_of(count: int) -> str:
    """Return a number of bytes in the unit that suits it.

    Examples
    --------
    >>> size_of(4096), size_of(2**21), size_of(100)
    ('4 KiB', '2 MiB', '100 bytes')
    """
    if count % 2**20 == 0:
        return f"{count // 2**20} MiB"
    return f"{count // 1024} KiB" if count % 1024 == 0 else f"{count} bytes"
