"""What is measured of one batch call: the row of a replay."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

import psutil

from .descriptors import count_fds, count_storage_fds

_BESIDES = {"in_tables": False}


@dataclass(frozen=True, kw_only=True)
class CallRow:
    """What one batch call did.

    The worker measures the call itself; ``counted`` adds what is counted from outside, in the order of the columns
    of a replay's table, ``COLUMNS``.

    Attributes
    ----------
    operation : str
        ``"set"``, ``"get"`` or ``"exists"``.
    keys : int
        Pages that were asked for.
    files : int
        Files that these pages are stored in.
    bytes : int
        Of the pages that were stored or loaded; 0 for an exists.
    seconds : float
        In the connector alone.
    open_fds, storage_fds : int
        Descriptors that the worker has open after the call, and how many of them are files of the storage folder;
        counted from outside.
    registrations : int
        Regions registered with NIXL after the call.
    registration_seconds : float
        Of ``seconds``, in registering and deregistering.
    rss_bytes : int
        Resident memory of the worker after the call.
    pages_ok : int
        Pages stored, loaded bit for bit, or found.  A page that the connector says is stored and whose files hold
        other bytes is not counted, nor is one for each other error that the worker finds: a page that a get
        changed and was not asked for, a wrong answer of ``batch_exists`` after a set.  ``log`` names them.
    errno : int
        Of the first line that was logged with one; 0 for none.
    core_seconds : float
        Of the calling thread on a core, within ``seconds``.
    claimed : int
        Pages that the connector says are stored, loaded or found.
    process_seconds : float
        Of all threads of the worker on a core, within ``seconds``: NIXL's among them.
    log : list of str
        Warnings and errors that the call logged, and what the worker found to be wrong.
    raised : str or None
        Name of the exception that the call raised.
    steps : dict or None
        How often each step of the call was reached; as the fields below it only where the call was watched.
    handles_left : int or None
        Transfer handles that were made and not released.
    most_closes : int or None
        Of one descriptor below the storage folder.
    fired : bool or None
        Whether the injected fault took place.
    """

    operation: str
    keys: int
    files: int
    bytes: int
    seconds: float
    open_fds: int = -1
    storage_fds: int = -1
    registrations: int
    registration_seconds: float
    rss_bytes: int = -1
    pages_ok: int
    errno: int
    core_seconds: float = field(metadata=_BESIDES)
    claimed: int = field(metadata=_BESIDES)
    process_seconds: float = field(metadata=_BESIDES)
    log: list[str] = field(metadata=_BESIDES)
    raised: str | None = field(metadata=_BESIDES)
    steps: dict[str, int] | None = field(default=None, metadata=_BESIDES)
    handles_left: int | None = field(default=None, metadata=_BESIDES)
    most_closes: int | None = field(default=None, metadata=_BESIDES)
    fired: bool | None = field(default=None, metadata=_BESIDES)

    def counted(self, pid: int, storage_dir: str | os.PathLike[str]) -> CallRow:
        """Return the row with the descriptors and the memory that the worker has now.

        Raises
        ------
        ProcessGoneError, psutil.Error
        """
        return dataclasses.replace(
            self,
            open_fds=count_fds(pid),
            storage_fds=count_storage_fds(pid, storage_dir),
            rss_bytes=psutil.Process(pid).memory_info().rss,
        )

    def as_columns(self) -> dict[str, Any]:
        """Return what goes into a table, in the order of ``COLUMNS``."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(
    column.name for column in dataclasses.fields(CallRow) if column.metadata.get("in_tables", True)
)
