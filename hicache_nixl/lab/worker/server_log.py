"""The calls in the log of a SGLang server: its NIXL backend writes a line for each at the level debug."""

from __future__ import annotations

import re
from collections.abc import Iterable

EXAMPLE = "HiCacheNixl batch_set_v1 transferred: 16 keys (pages)"  # in 0.5.11 to 0.5.23
_CALL = re.compile(r"HiCacheNixl (batch_(?:set|get)_v1) transferred: (\d+) keys")
_RANK = re.compile(
    r"((?:[A-Z]{2}\d+ ?)+)\]"
)  # of the process that wrote a line, as in [2026-01-02 03:04:05 TP0]


def calls_of(lines: Iterable[str]) -> list[tuple[str, int]]:
    """Return the calls of one process, as (operation, keys); empty where there is none.

    Each rank of a server is a process with descriptors of its own: the calls are those of the rank that made the
    first one.

    Examples
    --------
    >>> line = "[2026-01-02 03:04:05 TP{}] HiCacheNixl batch_{}_v1 transferred: {} keys (pages), 64 host_indices"
    >>> calls_of([line.format(0, "set", 16), "[...] Prefill batch", line.format(1, "set", 16)])
    [('set', 16)]
    """
    calls, first = [], None
    for line in lines:
        if (found := _CALL.search(line)) is None:
            continue
        rank = _RANK.search(line, 0, found.start())
        name = rank[1] if rank else ""
        first = name if first is None else first
        if name == first:
            calls.append((found[1].removeprefix("batch_").removesuffix("_v1"), int(found[2])))
    return calls
