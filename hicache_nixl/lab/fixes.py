"""What a fix changes: its text, and what each way out of a transfer leaves behind."""

from __future__ import annotations

import difflib
import inspect
import os
from typing import Any

import pandas as pd

from .. import lifetimes
from .faults import FAULTS
from .process import Worker
from .schedule import files_per_key
from .setup import Setup, queue_params

WAYS = (None, *FAULTS)  # no fault: success is a way out too


def patch(before: str, after: str) -> str:
    """Return the unified diff of two lifetime modules.

    Examples
    --------
    >>> print(patch("leaky", "try_finally").splitlines()[1])
    +++ hicache_nixl/lifetimes/try_finally.py
    """
    texts = [inspect.getsource(inspect.getmodule(lifetimes.BY_NAME[name])) for name in (before, after)]
    names = [f"hicache_nixl/lifetimes/{name}.py" for name in (before, after)]
    lines = [text.splitlines(keepends=True) for text in texts]
    return "".join(difflib.unified_diff(*lines, *names))


def ways_out(
    connector: str,
    *,
    keys: int = 8,
    page_bytes: int = 4096,
    queue: str = "libaio",
    layout: str = "page_first",
    mla: bool = False,
    storage_dir: str | os.PathLike[str] | None = None,
    timeout: float = 600,
) -> pd.DataFrame:
    """Take every way out of one set and see what it leaves.

    Each is a call in the same worker: a step of the transfer is made to fail on the real agent, then the
    descriptors are counted from outside, then a call without a fault follows.

    Returns
    -------
    pandas.DataFrame
        ``way out``; ``files`` of the call; ``answer`` (``True``, ``False`` or what was raised);
        ``fds_left`` and ``registrations_left`` by the call; ``next_call_works``; ``logged`` (first line).
    """
    setup = Setup(connector, queue_params(queue), page_bytes, pages=keys, layout=layout, mla=mla)
    rows = []
    with Worker(setup, storage_dir=storage_dir, timeout=timeout) as worker:
        last = worker.call("set", keys)
        for step in WAYS:
            if step is not None:
                worker.request("fault", step=step)
            row = worker.call("set", keys)
            after = worker.call("set", keys)
            rows.append(
                {
                    "way out": FAULTS[step].title if step else "success",
                    "files": keys * files_per_key(setup.layout, setup.mla),
                    "answer": row["raised"] or str(row["pages_ok"] == keys),
                    "fds_left": row["open_fds"] - last["open_fds"],
                    "registrations_left": row["registrations"] - last["registrations"],
                    "next_call_works": after["pages_ok"] == keys,
                    "logged": _reason(row).replace(f"{worker.folder}/", ""),
                }
            )
            last = after
    return pd.DataFrame(rows)


def _reason(row: dict[str, Any]) -> str:
    """Return what the log gave as the reason, without the name of the first file."""
    return row["log"][0].splitlines()[0].partition("': ")[2] if row["log"] else ""
