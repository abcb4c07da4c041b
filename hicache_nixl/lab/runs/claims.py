"""Claims: sentences of the investigation that the run checks.

``Run.claim`` states one, and ``RunFolder`` in ``folder`` writes it to ``claims.csv``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
import pandas as pd

from ...errors import HiCacheNixlError
from ..statistics import Estimate

HOLDS, FAILS, INCONCLUSIVE = "holds", "fails", "inconclusive"
NO_SLOWER = 1.05  # the ratio of times up to which something is called no slower


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
    """Claim a count: equality, no tolerance.

    Raises
    ------
    ValueError
        For a number that is not whole: measurements are claimed with ``at_most`` or ``above``.

    Examples
    --------
    >>> exactly("growth", "Every key leaves two fds.", 2, 2, "fds").verdict
    'holds'
    """
    for number in (*_numbers(expected), *_numbers(measured)):
        if not float(number).is_integer():
            raise ValueError(
                f"claim {id!r}: {number} is not a count; claim a measurement with at_most, above or no_slower"
            )
    verdict = HOLDS if expected == measured else FAILS
    return Claim(id, sentence, _with_unit(str(expected), unit), _with_unit(str(measured), unit), verdict)


def at_most(id: str, sentence: str, margin: float, measured: Estimate, unit: str = "") -> Claim:  # noqa: A002
    """Claim that a measured value is not above a margin, which is stated beforehand.

    It holds when the whole interval is at or below the margin, fails when the whole interval is above it, and
    is inconclusive when the interval contains the margin: noise on a shared machine must not fail a run.

    Raises
    ------
    TypeError
        For a number without an interval.

    Examples
    --------
    >>> at_most("cost", "The fix costs at most a fifth.", 1.2, Estimate(1.1, 0.9, 1.3, 8)).verdict
    'inconclusive'
    """
    _check(id, measured)
    if measured.high <= margin:
        verdict = HOLDS
    elif measured.low > margin:
        verdict = FAILS
    else:
        verdict = INCONCLUSIVE
    expected = _with_unit(f"at most {margin:.3g}", unit)
    return Claim(id, sentence, expected, _with_unit(str(measured), unit), verdict)


def above(id: str, sentence: str, margin: float, measured: Estimate, unit: str = "") -> Claim:  # noqa: A002
    """Claim that a measured value is above a margin; the opposite of ``at_most``, with the same rule.

    Examples
    --------
    >>> above("grows", "Memory grows with every call.", 0, Estimate(2.0, 1.9, 2.1, 30), "KiB").verdict
    'holds'
    """
    _check(id, measured)
    if measured.low > margin:
        verdict = HOLDS
    elif measured.high <= margin:
        verdict = FAILS
    else:
        verdict = INCONCLUSIVE
    expected = _with_unit(f"above {margin:.3g}", unit)
    return Claim(id, sentence, expected, _with_unit(str(measured), unit), verdict)


def no_slower(id: str, sentence: str, ratio: Estimate) -> Claim:  # noqa: A002
    """Claim that a ratio of times is at most ``NO_SLOWER``.

    Examples
    --------
    >>> no_slower("newest", "A set takes no longer than with 0.5.23.", Estimate(0.9, 0.8, 1.0, 17)).verdict
    'holds'
    """
    return at_most(id, sentence, NO_SLOWER, ratio)


def _check(id: str, measured: Estimate) -> None:  # noqa: A002
    if not isinstance(measured, Estimate):
        raise TypeError(f"claim {id!r}: {measured!r} has no interval; expected an Estimate")


def _numbers(value: Any) -> Iterator[SupportsFloat]:
    """Find the numbers in a value and in its lists."""
    if isinstance(value, list | tuple | set):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, float | np.floating):
        yield value


def _with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit else text


def tally(claims: pd.DataFrame) -> str:
    """Summarize the verdicts of a ledger in one line.

    Examples
    --------
    >>> tally(pd.DataFrame({"verdict": ["holds", "holds", "inconclusive"]}))
    '2 of 3 claims hold, 1 inconclusive'
    """
    count = {verdict: int((claims.verdict == verdict).sum()) for verdict in (HOLDS, FAILS, INCONCLUSIVE)}
    text = f"{count[HOLDS]} of {len(claims)} claims hold"
    text += f", {count[FAILS]} fail" if count[FAILS] else ""
    return text + (f", {count[INCONCLUSIVE]} inconclusive" if count[INCONCLUSIVE] else "")


def ledger(claims: list[Claim]) -> pd.DataFrame:
    """Return claims as a table."""
    columns = [field.name for field in dataclasses.fields(Claim)]
    return pd.DataFrame([dataclasses.asdict(claim) for claim in claims], columns=columns)
