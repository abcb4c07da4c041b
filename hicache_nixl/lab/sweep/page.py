"""The page of a sweep: the grid as small multiples, claims that do not hold everywhere, hosts that differ, each run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...resources import write_whole
from ..figures.sweeps import costs, left_open, save_small_multiples
from ..figures.words import Drawn
from ..report.pages import write_page
from ..runs.claims import NOT_APPLICABLE
from .facts import differences
from .grid import _text
from .measures import COSTS, Measured, as_table, elsewhere, measured, shown_costs
from .record import MISSING, Sweep
from .remote import FAILED

ABOUT = ("NIXL", "storage", "kernel")  # facts that stand in the place of the others


@dataclass(frozen=True)
class Shown:
    """A figure of the page."""

    question: str
    title: str
    alt: str
    path: Path
    narrow: Path


def write_sweep_page(sweep: Sweep) -> Path:
    """Write ``index.html``, ``points.csv`` and the figures of a sweep; return the page."""
    points = measured(sweep)
    write_whole(sweep.folder / "points.csv", as_table(points).to_csv(index=False))
    differing, shared = differences(sweep.hosts)
    return write_page(
        sweep.page,
        "sweep.html.j2",
        sweep=sweep,
        figures=_figures(sweep, points),
        points=points,
        columns=_columns(points),
        fixed={name: _text(values[0]) for name, values in sweep.grid.parameters.items() if len(values) == 1},
        claims=elsewhere(points),
        checked=any((one.claims.verdict != NOT_APPLICABLE).any() for one in points),
        differing=differing,
        shared=shared,
        about="; ".join(f"{name} {shared[name].partition(',')[0]}" for name in ABOUT if name in shared),
        failed=_by_reason([one for one in points if one.point.state == FAILED]),
        missing=[one for one in points if one.point.state == MISSING],
        no_run={one.point.slug for one in points if not sweep.run_of(one.point.slug).is_dir()},
    )


def _by_reason(failed: list[Measured]) -> dict[str, list[Measured]]:
    """Group points that failed by the reason, the most frequent first."""
    groups: dict[str, list[Measured]] = {}
    for one in failed:
        groups.setdefault(one.point.reason, []).append(one)
    return dict(sorted(groups.items(), key=lambda entry: -len(entry[1])))


def _figures(sweep: Sweep, points: list[Measured]) -> list[Shown]:
    """Draw what the points measured; nothing where no point has measured it."""
    places = [one.place for one in points]
    found = []
    if any(one.courses for one in points):
        courses = [one.courses for one in points]
        draw: Callable[[bool], Drawn] = lambda narrow: left_open(places, courses, narrow)  # noqa: E731
        found.append(_saved(sweep, "left_open", "Does it leak?", draw))
    for cost in shown_costs(points):
        ratios = [
            {operation: one.ratios[id_] for operation, id_ in cost.claims.items() if id_ in one.ratios}
            for one in points
        ]
        arms = cost.of, cost.to
        draw = lambda narrow, ratios=ratios, arms=arms: costs(places, ratios, arms, narrow)  # type: ignore[misc]  # noqa: E731
        found.append(_saved(sweep, f"cost_{cost.name}", cost.question, draw))
    return found


def _saved(sweep: Sweep, name: str, question: str, draw: Callable[[bool], Drawn]) -> Shown:
    path, narrow_path = (sweep.folder / place / f"{name}.png" for place in ("figures", "figures/narrow"))
    narrow_path.parent.mkdir(parents=True, exist_ok=True)
    wide, narrow = draw(False), draw(True)
    title, alt = wide.title, wide.alt
    save_small_multiples(wide, narrow, path, narrow_path)
    return Shown(question, title, alt, path, narrow_path)


def _columns(points: list[Measured]) -> dict[str, Callable[[Measured], str]]:
    """Return the columns of the table of points that have a value somewhere, with how to get it."""
    arms = dict.fromkeys(arm for one in points for arm in one.courses)
    columns: dict[str, Callable[[Measured], Any]] = {}
    for arm in arms:
        columns[f"left open by {arm.replace('==', ' ')}"] = lambda one, arm=arm: one.courses.get(arm, ["-"])[
            -1
        ]  # type: ignore[misc]
    for cost in COSTS:
        for operation, id_ in cost.claims.items():
            if any(id_ in one.ratios for one in points):
                label = f"{operation}, {cost.of} / {cost.to.replace('==', ' ')}"
                columns[label] = lambda one, id_=id_: one.ratios.get(id_, "-")  # type: ignore[misc]
    return columns
