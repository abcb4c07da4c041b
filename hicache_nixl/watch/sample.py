"""The descriptors of a process at one moment, by kind, and as a line of the CSV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

KINDS = ("regular", "folder", "device", "socket", "pipe", "eventfd", "epoll", "io_uring", "timerfd", "other")
COUNTS = ("open_fds", "storage_fds", *KINDS)
COLUMNS = ("time", "seconds", *COUNTS, "limit")
NAMES = {
    "open_fds": "all descriptors",
    "storage_fds": "storage files",
    "regular": "regular files",
    "folder": "folders",
    "device": "devices",
    "socket": "sockets",
    "pipe": "pipes",
    "eventfd": "eventfds",
    "epoll": "epolls",
    "io_uring": "io_urings",
    "timerfd": "timerfds",
    "other": "others",
}


@dataclass(frozen=True)
class Sample:
    """The descriptors of a process at one moment.

    Attributes
    ----------
    time : datetime
        In UTC.
    seconds : float
        Since the watch began.
    storage_fds : int or None
        Files below the storage folder; None when no folder was named.
    kinds : mapping
        All others, by ``KINDS``.
    limit : int or None
        The soft RLIMIT_NOFILE of the process; None when it has none.
    """

    time: datetime
    seconds: float
    storage_fds: int | None
    kinds: Mapping[str, int]
    limit: int | None

    @property
    def counts(self) -> dict[str, int]:
        """The count of each column of ``COUNTS``; without a storage folder there are 0 storage files."""
        storage = self.storage_fds or 0
        return {"open_fds": storage + sum(self.kinds.values()), "storage_fds": storage, **self.kinds}

    def line(self) -> str:
        """Return the sample as a line of the CSV; empty where there is no storage folder or no limit."""
        counts: dict[str, Any] = {**self.counts, "storage_fds": self.storage_fds}
        values = [*(counts[name] for name in COUNTS), self.limit]
        time = self.time.isoformat(timespec="milliseconds")
        cells = ["" if value is None else str(value) for value in values]
        return ",".join([time, f"{self.seconds:.6f}", *cells]) + "\n"
