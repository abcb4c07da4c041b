"""What a watch found, as an object of JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ..lab.statistics import Estimate
from . import wording
from .group import Group, Member
from .verdict import STATES

EXIT_CODES = dict(zip(STATES, (3, 0, 4), strict=True))


def summary(group: Group, ended: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a group of processes was found to do.

    Returns
    -------
    dict
        ``state`` ("leak", "no leak" or "undecided"), ``exit_code``, ``ended`` (why the watch ended), ``notes`` and
        ``processes``, a list with for each process ``pid``, ``name``, ``ended``, ``judged`` (whether the state is about
        it), ``seconds``, ``samples``, ``state``, ``answer``, ``open_fds``, ``limit`` (null without one),
        ``seconds_to_limit`` (null unless it leaks), ``growth_that_matters`` (per minute; null without a limit),
        ``kinds`` and ``grew_most``.

        Each of ``kinds`` has ``now``, ``most``, ``leaks`` and ``per_minute``.  An estimate is an object with
        ``value``, ``low`` and ``high``, or null.  ``grew_most`` has ``folders`` and ``files``, each a list of objects
        with ``path``, ``grown`` and ``now``.
    """
    judged = {id(member) for member in group.judged}
    return {
        "state": group.state,
        "exit_code": EXIT_CODES[group.state],
        "ended": ended,
        "notes": list(notes),
        "processes": [_process(member, id(member) in judged) for member in group.members],
    }


def _process(member: Member, judged: bool) -> dict[str, Any]:
    seen, places = member.seen, member.process.places
    counts = seen.last.counts if seen.last else {}
    return {
        "pid": member.process.pid,
        "name": member.process.name,
        "ended": member.ended,
        "judged": judged,
        "seconds": seen.seconds,
        "samples": seen.count,
        "state": seen.state,
        "answer": wording.answer(seen),
        "open_fds": counts.get("open_fds"),
        "limit": seen.last.limit if seen.last else None,
        "seconds_to_limit": _estimate(seen.seconds_left()),
        "growth_that_matters": seen.matters if math.isfinite(seen.matters) else None,
        "kinds": {
            name: {
                "now": counts.get(name, 0),
                "most": seen.most(name),
                "leaks": seen.grows(name),
                "per_minute": _estimate(seen.growth(name)),
            }
            for name in seen.kinds
        },
        "grew_most": {
            "folders": [dataclasses.asdict(place) for place in places.folders()],
            "files": [dataclasses.asdict(place) for place in places.files()],
        },
    }


def _estimate(found: Estimate | None) -> dict[str, float] | None:
    if found is None or not all(map(math.isfinite, (found.median, found.low, found.high))):
        return None
    return {"value": found.median, "low": found.low, "high": found.high}
