"""Claims: sentences of the investigation that the run checks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ...errors import HiCacheNixlError
from ..statistics import Estimate, Ratio

HOLDS, FAILS, INCONCLUSIVE = "holds", "fails", "inconclusive"


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


def exactly(id: str, sentence: str, expected: Any, measured: Any) -> Claim:  # noqa: A002
    """Claim a count: equality, no tolerance.

    Examples
    --------
    >>> exactly("growth", "Two fds per key.", 2, 2).verdict
    'holds'
    """
    verdict = HOLDS if expected == measured else FAILS
    return Claim(id, sentence, str(expected), str(measured), verdict)


def at_most(id: str, sentence: str, margin: float, measured: Ratio | Estimate | float) -> Claim:  # noqa: A002
    """Claim that a measured ratio, other estimate or plain number is not above a margin.

    It holds when the whole interval is at or below the margin, fails when the whole interval is above, and
    is inconclusive when the interval reaches to both sides: noise on a shared machine must not break a run.

    Examples
    --------
    >>> at_most("cost", "...", 1.2, Ratio(1.1, 0.9, 1.3, 8)).verdict
    'inconclusive'
    """
    low, high = _interval(measured)
    if high <= margin:
        verdict = HOLDS
    elif low > margin:
        verdict = FAILS
    else:
        verdict = INCONCLUSIVE
    return Claim(id, sentence, f"at most {margin:.3g}", _shown(measured), verdict)


def above(id: str, sentence: str, margin: float, measured: Ratio | Estimate | float) -> Claim:  # noqa: A002
    """Claim that a measured ratio or other estimate is above a margin; verdicts as in ``at_most``.

    Examples
    --------
    >>> above("grows", "...", 0, Estimate(2.0, 1.9, 2.1, 30)).verdict
    'holds'
    """
    low, high = _interval(measured)
    if low > margin:
        verdict = HOLDS
    elif high <= margin:
        verdict = FAILS
    else:
        verdict = INCONCLUSIVE
    return Claim(id, sentence, f"above {margin:.3g}", _shown(measured), verdict)


def not_above(id: str, sentence: str, margin: float, measured: Ratio | Estimate) -> Claim:  # noqa: A002
    """Claim that nothing above a margin can be told: the interval reaches the margin, or lies below it.

    Weaker than ``at_most``, for two things that may well be equal; it fails when the whole interval is above.

    Examples
    --------
    >>> not_above("same", "...", 1, Ratio(1.01, 0.9, 1.1, 8)).verdict
    'holds'
    """
    verdict = HOLDS if measured.low <= margin else FAILS
    return Claim(id, sentence, f"{margin:.3g} or less within its interval", str(measured), verdict)


def _interval(measured: Ratio | Estimate | float) -> tuple[float, float]:
    if isinstance(measured, Ratio | Estimate):
        return measured.low, measured.high
    return measured, measured


def _shown(measured: Ratio | Estimate | float) -> str:
    return str(measured) if isinstance(measured, Ratio | Estimate) else f"{measured:.3g}"


def tally(claims: pd.DataFrame) -> str:
    """Say in one line how the claims of a ledger went.

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
