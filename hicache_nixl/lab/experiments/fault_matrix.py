"""The fault matrix: what a call leaves when one of its steps fails, for each step and kind; and the text of a fix."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from ... import lifetimes
from ..progress import tqdm
from ..worker.call import CallRow
from ..worker.client import Worker
from ..worker.faults import KINDS, STEPS
from ..worker.setup import Setup

POLLS = 3  # how many polls of a transfer are made to fail; their number depends on the speed of the disk


def patch(before: str, after: str) -> str:
    """Return the unified diff of two lifetime modules.

    Examples
    --------
    >>> print(patch("leaky", "try_finally").splitlines()[1])
    +++ hicache_nixl/lifetimes/try_finally.py
    """
    modules = [importlib.import_module(lifetimes.load(name).__module__) for name in (before, after)]
    first, second = (inspect.getsource(module).splitlines(keepends=True) for module in modules)
    paths = [f"hicache_nixl/lifetimes/{name}.py" for name in (before, after)]
    return "".join(difflib.unified_diff(first, second, fromfile=paths[0], tofile=paths[1]))


def every_fault(
    connector: str,
    *,
    keys: int = 2,
    page_bytes: int = 4096,
    queue: str = "libaio",
    layout: str = "page_first",
    mla: bool = False,
    storage_dir: str | os.PathLike[str] | None = None,
    timeout: float = 600,
) -> pd.DataFrame:
    """Make each step of a set and of a get fail, in each kind, and measure what it leaves.

    All calls run in one worker, on the real agent and real files.  A call without a fault counts how often each step
    is reached.  Then each occurrence fails in a separate call, which a call without a fault follows.  The descriptors
    are counted from outside.

    Returns
    -------
    pandas.DataFrame
        ``operation``, ``step``, ``nth``, ``kind`` (see ``faults.Fault``); ``answer`` (``True``, ``False`` or
        what was raised); what the call left behind: ``fds_left``, ``registrations_left``, ``handles_left``;
        ``most_closes`` of one descriptor; ``next_call_works``; ``logged`` (first line).
    """
    setup = Setup(connector, queue=queue, page_bytes=page_bytes, pages=keys, layout=layout, mla=mla)
    rows = []
    with Worker(setup, storage_dir=storage_dir, timeout=timeout) as worker:
        for operation in ("set", "get"):
            worker.call("set", keys)
            worker.call(operation, keys)  # the first of its kind may set something up
            last = worker.call(operation, keys, watch=True)
            steps = list(_faults(last.steps or {}))
            for fault in tqdm(steps, desc=f"{connector}: faults in a {operation}", unit="fault", leave=False):
                row = worker.call(operation, keys, fault=fault)
                after = worker.call(operation, keys)
                if row.fired:
                    rows.append(_row(operation, fault, last, row, after, f"{worker.folder}/"))
                last = after
    return pd.DataFrame(rows)


def fault_summary(faults: pd.DataFrame) -> pd.DataFrame:
    """Summarize the table of ``every_fault``: a row per step and kind, with the largest number left by any of its faults."""
    named = faults.assign(
        left_files_open=faults.fds_left > 0, next_call_fails=~faults.next_call_works.astype(bool)
    )
    return named.groupby(["step", "kind"], sort=False, as_index=False).agg(
        faults=("nth", "size"),
        left_files_open=("left_files_open", "sum"),
        most_fds=("fds_left", "max"),
        most_registrations=("registrations_left", "max"),
        most_handles=("handles_left", "max"),
        most_closes=("most_closes", "max"),
        next_call_fails=("next_call_fails", "sum"),
        logged=("logged", "last"),
    )


def _faults(steps: Mapping[str, int]) -> Iterator[tuple[str, int, str]]:
    for step in STEPS:
        reached = steps.get(step, 0)
        for nth in range(1, (min(reached, POLLS) if step == "poll" else reached) + 1):
            yield from ((step, nth, kind) for kind in KINDS)


def _row(
    operation: str,
    fault: tuple[str, int, str],
    before: CallRow,
    row: CallRow,
    after: CallRow,
    folder: str,
) -> dict[str, Any]:
    return {
        "operation": operation,
        **dict(zip(("step", "nth", "kind"), fault, strict=True)),
        "answer": row.raised or str(row.pages_ok == row.keys),
        "fds_left": row.open_fds - before.open_fds,
        "registrations_left": row.registrations - before.registrations,
        "handles_left": row.handles_left,
        "most_closes": row.most_closes,
        "next_call_works": after.pages_ok == after.keys,
        "logged": row.log[0].splitlines()[0].replace(folder, "") if row.log else "",
    }
