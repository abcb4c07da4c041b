"""Claims: sentences of the investigation that the run checks.

``Run.claim`` states one, and ``RunFolder`` in ``folder`` writes it to ``claims.csv``.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd

from ...errors import HiCacheNixlError
from ..statistics import Estimate

HOLDS, FAILS, INCONCLUSIVE, NOT_APPLICABLE = "holds", "fails", "inconclusive", "not applicable"
NO_SLOWER = 1.05  # the ratio of times up to which something is called no slower
ALLOWED = f"{100 * (NO_SLOWER - 1):.0f} %"  # the same margin in a sentence: at most 5 % longer
TIME_RATIO = "(time ratio)"  # the unit of a ratio of times
NOTHING = "nothing to measure"
ABSOLUTE = (
    "s",
    "ms",
    "us",
    "µs",
    "seconds",
    "milliseconds",
    "microseconds",
    "core",
    "cores",
    "MiB/s",
)  # units


class ClaimsFailedError(HiCacheNixlError, AssertionError):
    """Claims of a notebook failed."""


@dataclass(frozen=True)
class Claim:
    """A sentence with what it expects, what was measured, and the verdict."""

    id: str
    sentence: str
    expected: str
    measured: str
    verdict: str


def exactly(id: str, sentence: str, expected: Any, measured: Any, unit: str = "") -> Claim:  # noqa: A002
    """Claim one count or one word: equality, no tolerance.

    Parameters
    ----------
    expected, measured : int, str or None
        None where there is nothing to expect or to measure, such as a failing call in a replay without failures.
        With None for both, the claim is not applicable and does not count.

    Raises
    ------
    ValueError
        For a number that is not whole: measurements are claimed with ``at_most`` or ``above``.
    TypeError
        For a list or another value that is more than one measured thing.

    Examples
    --------
    >>> exactly("growth", "Every key leaves two fds.", 2, 2, "fds").verdict
    'holds'
    >>> exactly("emfile", "It fails at the predicted call.", None, None).verdict
    'not applicable'
    """
    if expected is None and measured is None:
        return Claim(id, sentence, "", NOTHING, NOT_APPLICABLE)
    verdict = HOLDS if expected == measured else FAILS
    return Claim(id, sentence, _count(id, expected, unit), _count(id, measured, unit), verdict)


def every(id: str, sentence: str, total: int, count: int, unit: str) -> Claim:  # noqa: A002
    """Claim that something is true of each of ``total`` things; not applicable where there are none.

    Examples
    --------
    >>> every("flat", "After each call the count is the same.", 21, 20, "calls").measured
    '20 of 21 calls'
    """
    return _share(id, sentence, total, total, count, unit)


def never(id: str, sentence: str, total: int, count: int, unit: str) -> Claim:  # noqa: A002
    """Claim that something is true of none of ``total`` things; not applicable where there are none.

    Examples
    --------
    >>> never("dead", "No page is stored after the failure.", 768, 0, "pages").expected
    '0 of 768 pages'
    """
    return _share(id, sentence, 0, total, count, unit)


def at_most(id: str, sentence: str, margin: float, measured: Estimate | None, unit: str = "") -> Claim:  # noqa: A002
    """Claim that a measured value is not above a margin, which is stated beforehand.

    It holds when the whole interval is at or below the margin, fails when the whole interval is above it, and
    is inconclusive when the interval contains the margin: noise on a shared machine must not fail a run.

    Without a measurement (None) the claim is not applicable.

    Raises
    ------
    TypeError
        For a number without an interval.
    ValueError
        For a time, which depends on the machine: a ratio of times of this run is claimed instead.

    Examples
    --------
    >>> at_most("cost", "The fix costs at most a fifth.", 1.2, Estimate(1.1, 0.9, 1.3, 8)).verdict
    'inconclusive'
    """
    return _measurement(id, sentence, "at most", margin, measured, unit, (HOLDS, FAILS))


def above(id: str, sentence: str, margin: float, measured: Estimate | None, unit: str = "") -> Claim:  # noqa: A002
    """Claim that a measured value is above a margin; the opposite of ``at_most``, with the same rule.

    Examples
    --------
    >>> above("grows", "Memory grows with every call.", 0, Estimate(2.0, 1.9, 2.1, 30), "KiB").verdict
    'holds'
    """
    return _measurement(id, sentence, "above", margin, measured, unit, (FAILS, HOLDS))


def no_slower(id: str, sentence: str, ratio: Estimate | None) -> Claim:  # noqa: A002
    """Claim that a ratio of times is at most ``NO_SLOWER``.

    Examples
    --------
    >>> no_slower("newest", f"A set takes at most {ALLOWED} longer than with 0.5.23.", Estimate(0.9, 0.8, 1.0, 17)).verdict
    'holds'
    """
    return at_most(id, sentence, NO_SLOWER, ratio, TIME_RATIO)


def longer(id: str, sentence: str, ratio: Estimate | None) -> Claim:  # noqa: A002
    """Claim that a ratio of times is above 1.

    Examples
    --------
    >>> longer("rename", "Renaming a file takes longer.", Estimate(1.1, 1.05, 1.2, 12)).measured
    '1.10 [1.05, 1.20] (time ratio)'
    """
    return above(id, sentence, 1, ratio, TIME_RATIO)


def _measurement(
    id: str,  # noqa: A002
    sentence: str,
    rule: str,
    margin: float,
    measured: Estimate | None,
    unit: str,
    verdicts: tuple[str, str],
) -> Claim:
    """Compare an interval with a margin; ``verdicts`` are those of an interval up to it, and above it."""
    if measured is None:
        return Claim(id, sentence, "", NOTHING, NOT_APPLICABLE)
    if not isinstance(measured, Estimate):
        raise TypeError(f"claim {id!r}: {measured!r} has no interval; expected an Estimate")
    if margin and unit.split(" ")[0] in ABSOLUTE:
        raise ValueError(
            f"claim {id!r}: {margin:g} {unit} depends on the machine; claim a ratio within the run"
        )
    lower, upper = verdicts
    verdict = lower if measured.high <= margin else upper if measured.low > margin else INCONCLUSIVE
    told = _with_unit(f"{rule} {margin:.3g}", unit), _with_unit(str(measured), unit)
    return Claim(id, sentence, *told, verdict)


def _share(id: str, sentence: str, expected: int, total: int, count: int, unit: str) -> Claim:  # noqa: A002
    if not total:
        return Claim(id, sentence, "", NOTHING, NOT_APPLICABLE)
    first, second = (_count(id, number, f"of {total} {unit}") for number in (expected, count))
    return Claim(id, sentence, first, second, HOLDS if expected == count else FAILS)


def _count(id: str, value: Any, unit: str) -> str:  # noqa: A002
    """Return a count in words; refuse what is none."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_) or not isinstance(value, Number):
        raise TypeError(f"claim {id!r}: {value!r} is not one count; claim each measured thing by itself")
    if isinstance(value, float | np.floating):
        if not float(value).is_integer():
            raise ValueError(
                f"claim {id!r}: {value} is not a count; claim a measurement with at_most, above or no_slower"
            )
        value = int(value)
    return _with_unit(str(value), unit)


def _with_unit(text: str, unit: str) -> str:
    """Return a number with its unit; ``{}`` in the unit is the place of the number, else the unit follows."""
    if "{}" in unit:
        return unit.format(text)
    if text == "1":  # 1 descriptor
        first, *others = unit.split(" ")
        unit = " ".join([first.removesuffix("s"), *others])
    return f"{text} {unit}" if unit else text


def applicable(claims: pd.DataFrame) -> pd.DataFrame:
    """Return the claims that count: those that had something to measure."""
    return claims[claims.verdict != NOT_APPLICABLE]


def tally(claims: pd.DataFrame) -> str:
    """Summarize the verdicts of a ledger in one line.

    Examples
    --------
    >>> tally(pd.DataFrame({"verdict": ["holds", "holds", "inconclusive", "not applicable"]}))
    '2 of 3 claims hold, 1 inconclusive; 1 not applicable'
    """
    count = claims.verdict.value_counts()
    text = f"{count.get(HOLDS, 0)} of {len(applicable(claims))} claims hold"
    text += f", {count[FAILS]} fail" if FAILS in count else ""
    text += f", {count[INCONCLUSIVE]} inconclusive" if INCONCLUSIVE in count else ""
    return text + (f"; {count[NOT_APPLICABLE]} not applicable" if NOT_APPLICABLE in count else "")
