"""Small tables as the lab measures them, for what draws them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from hicache_nixl.lab import figures
from hicache_nixl.lab.experiments.replay import COLUMNS
from hicache_nixl.lab.statistics import pooled_table, ratio_table
from hicache_nixl.lab.worker.schedule import Schedule, predicted_fds, recorded_log
from hicache_nixl.watch.sample import KINDS

BASELINE = 135
LIMIT = 4200


def replayed(schedule: Schedule, per_key: int = 2, limit: int | None = None) -> pd.DataFrame:
    """A replay as predicted; what does not fit below the limit fails with EMFILE."""
    open_fds, failure = predicted_fds(schedule, per_key, BASELINE, limit)
    table = pd.DataFrame(
        {
            "call": range(1, len(schedule) + 1),
            "operation": [call.operation for call in schedule],
            "keys": [call.keys for call in schedule],
            "open_fds": open_fds,
        }
    )
    table["storage_fds"] = table.open_fds - BASELINE
    fails = table.call >= (failure or len(schedule) + 1)
    table["errno"] = np.where(fails, 24, 0)
    table["pages_ok"] = np.where(fails, 0, table["keys"])
    table["registrations"] = 4 * table.pages_ok.cumsum()
    table.attrs["fds_before"] = BASELINE
    return table.reindex(columns=[column for column in COLUMNS if column in table])


def timed(repeats: int = 6, slower: float = 1.0) -> pd.DataFrame:
    """A comparison of two page sizes, sets and gets; the second arm may be slower."""
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        [
            {"page_bytes": size, "pair": pair, "arm": arm, "operation": operation, "bytes": 8 * size}
            | {"queue": "libaio", "seconds": size * 1e-6 * factor * rng.lognormal(0, 0.2)}
            for size in (4096, 65536)
            for pair in range(repeats)
            for arm, factor in (("leaky", 1), ("try_finally", slower))
            for operation in ("set", "get")
        ]
    )


PR = replayed(Schedule.pr24671())
PR_FLAT = PR.assign(open_fds=BASELINE, storage_fds=0)
RECORDED = recorded_log()
PAIR = ("leaky", "try_finally")
BOTH = dict(zip(PAIR, (PR, PR_FLAT), strict=True))
INTO_LIMIT = replayed(Schedule.pr24671() + Schedule.steady(6, 128), limit=LIMIT)
REPLAYED = {"leaky": INTO_LIMIT} | dict.fromkeys(
    ("try_finally", "scoped", "sglang==0.5.12", "sglang==0.5.23"),
    INTO_LIMIT.assign(open_fds=BASELINE, storage_fds=0, errno=0),
)


def bench_times(rounds: int = 6, **milliseconds: float) -> pd.DataFrame:
    """A benchmark without noise: each arm takes so long for any call, ``pooled`` 1 ms."""
    arms = {"pooled": 1.0, "pooled-none": 0.9, "sglang==0.5.23": 10.0, "sglang-file": 8.0, "ceiling": 0.5}
    return pd.DataFrame(
        [
            {
                "further": False,
                "queue": "libaio",
                "direct": False,
                "page_bytes": size,
                "pair": pair,
                "arm": arm,
            }
            | {
                "operation": operation,
                "seconds": value / 1e3,
                "bytes": 0 if operation == "exists" else 128 * size,
            }
            | {"open_fds": 9, "storage_fds": 8}
            for size in (4096, 65536, 2**20)
            for pair in range(rounds)
            for arm, value in {**arms, **milliseconds}.items()
            for operation in ("set", "exists", "get")
            if (arm, operation) != ("ceiling", "exists")
        ]
    )


TIMES = timed()
RATIOS = ratio_table(TIMES, ["operation", "page_bytes"], "leaky", "try_finally")
COST = pooled_table(TIMES, ["page_bytes"], *PAIR)
LAW = pd.DataFrame(
    [
        {"operation": "set", "keys": keys, "left": per_key * keys, "files_per_key": per_key, "kind": kind}
        for per_key, kind in ((2, "multi-head, page_first"), (1, "MLA, page_first"), (1, "MLA, layer_first"))
        for keys in (1, 4, 16)
    ]
)
FAULTS = pd.DataFrame(
    {"step": ["open", "post"], "kind": ["error", "interrupt"], "most_fds": [0, 16]}
    | {"faults": [8, 2], "left_files_open": [0, 2]}
)
SLOWER = PR.assign(seconds=1e-3, rss_bytes=2**28 + PR.registrations * 50)
FACTS = pd.DataFrame(
    [
        ("leaky", 16.0, 32.0, 8, 0, True),
        ("scoped", 0.0, 0.0, 8, 7, False),
        ("sglang==0.5.12", 0.0, 32.0, 16, 0, True),
    ],
    columns=[
        "connector",
        "fds_per_call",
        "registrations_per_call",
        "exists_of_8",
        "pages_besides_a_bad_one",
        "half_written_seen",
    ],
)
CREATED = pd.DataFrame(
    [
        {"repeat": repeat, "deleted": deleted, "files": 400, "seconds": 400 * micros * 1e-6}
        for repeat in range(8)
        for deleted, micros in ((0, 40), (400, 90), (800, 200))
    ]
)
BENCHMARK_TIMES = pd.concat([TIMES.assign(direct=direct) for direct in (False, True)], ignore_index=True)
BENCHMARK = ratio_table(
    BENCHMARK_TIMES, ["operation", "direct", "queue", "page_bytes"], "leaky", "try_finally"
)
SECONDS = np.arange(60)
SERVER = pd.DataFrame(
    {"time": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(SECONDS, "s"), "seconds": SECONDS * 1.0}
    | {"open_fds": 40 + 32 * SECONDS, "storage_fds": 32 * SECONDS, **dict.fromkeys(KINDS, 0), "socket": 40}
    | {"limit": LIMIT}
)
STEPS_OF_A_CALL = (
    "names",
    "index",
    "open and close",
    "register",
    "lists",
    "transfer",
    "wait",
    "checksum",
    "rest",
)
STEPS = pd.DataFrame(
    [
        {"lifetime": lifetime, "operation": operation, "step": step, "seconds": seconds * (1 + place % 3)}
        for lifetime, seconds in (("scoped", 4e-4), ("pooled", 5e-5))
        for operation in ("set", "exists", "get")
        for place, step in enumerate(STEPS_OF_A_CALL)
    ]
)
STORED = pd.DataFrame(
    [
        {"stored": stored, "operation": operation, "seconds": seconds * (1 + call / 50)}
        for stored in (1000, 10_000, 100_000, 1_000_000)
        for operation, seconds in (("set", 6e-4), ("exists", 7e-5), ("get", 4e-4))
        for call in range(8)
    ]
)
EVICTED = pd.DataFrame(
    [
        {"share": share, "policy": policy, "hit_rate": share**0.5 + more, "rewritten": written}
        for share in (0.05, 0.1, 0.2, 0.4)
        for policy, more, written in (
            ("least recently used page", 0.1, 0),
            ("oldest segment", 0, 0),
            ("oldest segment, pages in use renewed", 0.04, 0.2),
        )
    ]
)
DAY = pd.DataFrame(
    {"asked": 50, "loaded": 30, "recycled": max(0, request - 300), "open_fds": min(13 + request // 20, 28)}
    for request in range(600)
)
BOUNDED = pd.DataFrame(
    {"arm": arm, "call": call, "open_fds": fds * call + 12, "registrations": regions * call + 4}
    for arms, fds, regions in (
        (("leaky", "sglang==0.5.11"), 64, 128),
        (("try_finally", "sglang==0.5.12"), 0, 128),
        (("scoped", "pooled", "sglang==0.5.13.post1", "sglang==0.5.23"), 0, 0),
    )
    for arm in arms
    for call in range(1, 41)
)
STORES: dict[str, Callable[[], figures.Drawn]] = {
    "anatomy": lambda: figures.anatomy(STEPS, "64 KiB"),
    "bounded": lambda: figures.bounded(BOUNDED),
    "by_stored": lambda: figures.by_stored(STORED),
    "hit_rates": lambda: figures.hit_rates(EVICTED),
    "traffic": lambda: figures.traffic(DAY),
}
