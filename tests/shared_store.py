"""Small tables of an object store through a fault, for what draws them."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from hicache_nixl.lab import figures
from hicache_nixl.lab.experiments.store_faults import FAULT_COLUMNS


def through(replication: str, fault: str = "volume server", unread: int = 0) -> pd.DataFrame:
    """A set and a get each half second; a part is killed in call 10 and back in call 20; its reads take 4 s."""
    rows = []
    for call in range(32):
        operation = "read all" if call in (18, 31) else ("set", "get")[call % 2]
        gone = 10 <= call <= 20
        failed = unread if gone and operation != "set" else 0
        pages = 320 if operation == "read all" else 32
        rows.append(
            {"lifetime": "pooled", "replication": replication, "fault": fault, "operation": operation}
            | {"began": call / 2, "seconds": 4.0 if failed else 0.05, "away": "1" if gone else ""}
            | {"event": {10: "killed", 20: "back"}.get(call, ""), "pages": pages, "right": pages - failed}
            | {"failed": failed, "wrong": 0, "lines": int(failed > 0), "said": "", "open_fds": 20}
            | {"registrations": 1}
        )
    return pd.DataFrame(rows, columns=FAULT_COLUMNS)


THROUGH = pd.concat([through("001"), through("000", unread=16)])
SHARED: dict[str, Callable[[], figures.Drawn]] = {
    "through_a_fault": lambda: figures.through_a_fault(THROUGH),
}
