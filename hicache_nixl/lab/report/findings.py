"""The findings of a run in a few sentences, made from its tables: leak, fix, cost, what it leaves, who is affected, objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from ..connectors import expected
from ..figures.words import baseline, first_emfile, listed, numbers, per_key, pooled_beside_scoped, speed
from ..runs.claims import ALLOWED, NO_SLOWER
from ..runs.folder import read_table
from ..runs.record import Record
from ..statistics import Estimate
from ..worker.releases import PREFIX

BEFORE, AFTER = "leaky", "try_finally"
COMPARED, SECOND, REVIEWED = "03_before_and_after", "04_the_second_leak", "05_the_review_answered"
FIVE = {COMPARED, SECOND, REVIEWED}  # the notebooks of the five sentences
SERVED, OBJECTS = "08_inside_sglang", "09_past_one_machine"
LEAKS = {"fds": "descriptors", "registrations": "registrations"}  # the worse one first


@dataclass(frozen=True)
class Answer:
    """One sentence of the findings.

    Attributes
    ----------
    question, text : str
    notebook, figure : str
        The figure that shows it; the report links to it when the run has drawn it.
    """

    question: str
    text: str
    notebook: str
    figure: str


Asked = tuple[tuple[str, str, str, Callable[[Record], str]], ...]


def findings(record: Record) -> list[Answer]:
    """Return the five sentences of a run that has a notebook of theirs, two of one with real servers, one of one with objects.

    A sentence whose notebook was not part of the run, or did not get that far, says so.
    """
    five: Asked = (
        ("How large is the leak?", COMPARED, "hero", _leak),
        ("What does the fix do?", COMPARED, "hero", _fix),
        ("What does it cost?", COMPARED, "cost", _cost),
        ("What does it leave?", SECOND, "second_leak", _left),
        ("Who is affected, and what to install?", REVIEWED, "behaviours", _affected),
    )
    served: Asked = (
        ("Does a real server run out of descriptors?", SERVED, "leak", _served_leak),
        ("Does it with this connector?", SERVED, "ours", _served_ours),
    )
    objects: Asked = (
        ("Does it leak with pages in objects, and what is faster?", OBJECTS, "counts", _in_objects),
    )
    ran = notebooks_of(record)
    asked = (
        *(five if ran & FIVE or not ran else ()),
        *(served if SERVED in ran else ()),
        *(objects if OBJECTS in ran else ()),
    )
    return [
        Answer(question, text(record) or _not_measured(record, notebook), notebook, figure)
        for question, notebook, figure, text in asked
    ]


def _not_measured(record: Record, notebook: str) -> str:
    if notebook in notebooks_of(record):
        return f"Not measured in this run (notebook {notebook[:2]})."
    return f"Not measured: {why_not(record, notebook)}."


def why_not(record: Record, notebook: str) -> str:
    """Say why a run has no claim or table of a notebook."""
    ran = notebook in notebooks_of(record)
    return f"notebook {notebook[:2]} {'did not get that far' if ran else 'was not part of this run'}"


def notebooks_of(record: Record) -> set[str]:
    """Return the notebooks of a run, those that did not end among them."""
    return {*record.notebooks, *record.unfinished}


def _served_leak(record: Record) -> str:
    table = _table(record, SERVED, "leak")
    if table is None or table.empty:
        return ""
    again = table[table.step == "prefetch"]
    lost = again["round"][again.from_storage == 0]
    told = (
        f"Its scheduler had {table.fds_before.iloc[0]} descriptors open before the first of {table['round'].max()} rounds, and "
        f"{table.open_fds.iloc[-1]} after the last one"
    )
    if lost.empty:
        return f"{told}. Every repeated prompt came from storage."
    return f"{told}. From round {lost.iloc[0]} on, it found nothing in storage and computed {len(lost)} repeated prompts again."


def _served_ours(record: Record) -> str:
    table = _table(record, SERVED, "ours")
    if table is None or table.empty:
        return ""
    ends = table.groupby(["connector", "server"], sort=False).tail(1)
    told = [
        f"{row.open_fds - row.fds_before} with {row.connector} in {row.server}" for row in ends.itertuples()
    ]
    return f"Descriptors more after {len(table) // len(ends)} backups and prefetches: {', '.join(told)}."


def _in_objects(record: Record) -> str:
    """Say what stays open and registered with pages in objects, and how fast ``pooled`` is beside ``scoped``."""
    counts, turns = (_table(record, OBJECTS, name) for name in ("counts", "turns"))
    if counts is None or counts.empty:
        return ""
    calls = counts[(counts.kept == "OBJ") & (counts.call > 0)]
    fixed = calls[calls.connector == AFTER]
    left = (fixed.registrations.diff() / fixed["keys"]).dropna()
    files = calls.storage_files.max()
    kept = f"up to {files} storage descriptors are" if files else "no storage descriptor is"
    told = f"With pages in objects, {kept} open after a call; the PR's fix ({AFTER}) leaves {numbers(left)} registrations per key."
    if turns is None or turns.empty:
        return told
    return f"{told} There, pooled is this many times as fast as scoped: {pooled_beside_scoped(turns)}."


def _table(record: Record, notebook: str, name: str) -> pd.DataFrame | None:
    path = record.files.table(notebook, name)
    return read_table(path) if path.exists() else None


def _replayed(record: Record, connector: str) -> pd.DataFrame | None:
    table = _table(record, COMPARED, "descriptors")
    chosen = None if table is None else table[table.connector == connector].reset_index(drop=True)
    return None if chosen is None or chosen.empty else chosen


def _leak(record: Record) -> str:
    table = _replayed(record, BEFORE)
    if table is None:
        return ""
    told = f"Before the fix, every key of a call leaves {per_key(table)} descriptors open"
    failed = first_emfile(table)
    if failed is None:
        return f"{told}: {baseline(table)} before the first call, {table.open_fds.iloc[-1]} after {len(table)} calls."
    after = table[table.call >= failed]
    limit = record.parameters(COMPARED).get("nofile_limit")
    return (
        f"{told}: at a limit of {limit}, call {failed} of {len(table)} fails with EMFILE (too many open files), and from then on "
        f"{after.pages_ok.sum()} of {after['keys'].sum()} pages are stored or loaded."
    )


def _fix(record: Record) -> str:
    table = _replayed(record, AFTER)
    if table is None:
        return ""
    base = baseline(table)
    flat = (table.open_fds == base).sum()
    return (
        f"With the fix, {base} descriptors are open after {flat} of the same {len(table)} calls, as before the first, "
        f"and {table.pages_ok.sum()} of {table['keys'].sum()} pages are stored or loaded."
    )


def _cost(record: Record) -> str:
    table = _table(record, COMPARED, "cost")
    if table is None:
        return ""
    told = []
    for row in table[:2].itertuples():
        ratio = _estimate(row, row.time_ratio)
        told.append(f"a {row.operation} takes {ratio} times as long after the fix ({speed(ratio)})")
    return f"{'; '.join(told).capitalize()}. The margin is {NO_SLOWER:g}: {ALLOWED} longer is allowed."


def _left(record: Record) -> str:
    table = _table(record, SECOND, "slopes")
    if table is None:
        return ""
    rows = {row.column: row for row in table[table.connector == AFTER].itertuples()}
    time, memory = (_estimate(rows[name], rows[name].per_call) for name in ("seconds", "rss_bytes"))
    keys = record.parameters(SECOND).get("keys_per_call")
    slower = f"a get takes {time} µs longer with every call"
    if time.low <= 0:
        slower = f"whether gets become slower is not certain ({time} µs per call)"
    return (
        f"Each call of {keys} keys leaves {rows['registrations'].per_call:g} NIXL registrations that no count of "
        f"descriptors shows: memory grows by {memory} KiB per call, and {slower}."
    )


def _estimate(row: Any, value: float) -> Estimate:
    return Estimate(value, row.low, row.high, 0)


def _affected(record: Record) -> str:
    """Say what each release leaks: as measured here, else as recorded in ``data/connectors.csv``."""
    known = expected()
    releases = [name for name in known.index if name.startswith(PREFIX)]
    table = _table(record, REVIEWED, "releases")
    measured = pd.DataFrame() if table is None else table.set_index("connector")
    kinds = {}
    for name in releases:
        row, unit = (measured.loc[name], "call") if name in measured.index else (known.loc[name], "key")
        kinds[name.removeprefix(PREFIX)] = next(
            (what for column, what in LEAKS.items() if row[f"{column}_per_{unit}"] > 0), "neither"
        )
    checked = [name for name in releases if name in measured.index]
    return f"{_who(kinds)} {_checked(record, releases, checked, measured)}"


def _who(kinds: dict[str, str]) -> str:
    """Say which releases leak what, and which one to install.

    Examples
    --------
    >>> _who({"0.5.11": "descriptors", "0.5.12": "registrations", "0.5.13.post1": "neither", "0.5.23": "neither"})
    'SGLang up to 0.5.11 leaks descriptors, 0.5.12 leaks registrations, from 0.5.13 on neither: install 0.5.13 or later.'
    """
    groups = [
        (kind, [version for version, _ in group])
        for kind, group in groupby(kinds.items(), lambda item: item[1])
    ]
    parts = []
    for place, (kind, versions) in enumerate(groups):
        which = listed(versions)
        if place == 0 and kind != "neither":
            which = f"up to {versions[-1]}"
        elif place == len(groups) - 1:
            which = f"from {_base(versions[0])} on"
        parts.append(f"{which} neither" if kind == "neither" else f"{which} leaks {kind}")
    kind, versions = groups[-1]
    advice = (
        f"install {_base(versions[0])} or later"
        if kind == "neither"
        else "no later release is known to be without a leak"
    )
    return f"SGLang {', '.join(parts)}: {advice}."


def _base(version: str) -> str:
    return version.partition(".post")[0]


def _checked(record: Record, releases: list[str], checked: list[str], measured: pd.DataFrame) -> str:
    missing = [name for name in releases if name not in checked]
    told = ""
    if checked:
        rows = [
            f"{name.removeprefix(PREFIX)} ({measured.fds_per_call[name]:g} and {measured.registrations_per_call[name]:g})"
            for name in checked
        ]
        keys = f" of {measured['keys'].iloc[0]} keys" if "keys" in measured else ""
        told = f"Checked in this run, by the descriptors and registrations that a call{keys} leaves: {listed(rows)}. "
    if missing:
        reasons = "; ".join(
            dict.fromkeys(
                _reason(name, record.not_run().get(name, "")) or why_not(record, REVIEWED) for name in missing
            )
        )
        versions = listed([name.removeprefix(PREFIX) for name in missing])
        told += f"Not checked in this run: {versions} ({reasons})."
    return told.rstrip()


def _reason(connector: str, told: str) -> str:
    """Shorten why a release was not run, so that equal reasons of several releases are said once.

    Examples
    --------
    >>> _reason("sglang==0.5.11", "sglang==0.5.11 is not available: no file of sglang==0.5.11; known to work: 0.5.12")
    'no file of the release'
    """
    short = told.partition("; known to work")[0].removeprefix(f"{connector} is not available: ")
    return short.replace(connector, "the release").rstrip(".")
