"""The process that is watched: its name, its container, its limit, and its descriptors at a moment."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from ..errors import ConfigError
from ..lab.worker.descriptors import ProcessGoneError, count_kinds, folder_as_seen_by
from .places import Places, deepest
from .sample import KINDS, Sample

# PF_EXITING and PF_KTHREAD of linux/sched.h, in the ninth field of /proc/PID/stat.
EXITING, KERNEL_THREAD = 0x00000004, 0x00200000
ENOUGH = 10  # regular files below which no folder is suggested


class WatchedProcess:
    """A live process, seen from outside through ``/proc``.

    Parameters
    ----------
    pid : int
    storage_dir : str, optional
        The folder of the page files, as that process sees it.

    Attributes
    ----------
    name : str
        Process id and command.
    notes : list of str
        What a user should know about watching it, one line each.
    places : Places
        Its open files, as of the latest sample and the first.

    Raises
    ------
    ConfigError
        When there is no such process, or it cannot be inspected; the message says what to do.
    """

    def __init__(self, pid: int, storage_dir: str | None = None):
        self.pid = pid
        self._process = _process(pid)
        self.name = f"{pid} ({_command(self._process)})"
        self.storage_dir = storage_dir
        self.places = Places()
        self._below: str | None = None
        self.notes: list[str] = []
        _check_alive(self._process, self.name)
        try:
            self._look_up()
        except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            raise ConfigError(f"process {self.name} has just ended") from None
        self._start = time.monotonic()

    def _look_up(self) -> None:
        """Find out what the watch needs to know; each of these look-ups fails if the process ends meanwhile."""
        _check_permission(self._process, self.name)
        if self.storage_dir is not None:
            self._below = _below(self._process, self.name, self.storage_dir)
        self.notes += _namespaces(self.name, self.pid, self.storage_dir)

    def alive(self) -> bool:
        """Return whether it has not ended, without counting anything."""
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def sample(self) -> Sample:
        """Count its descriptors now.

        Raises
        ------
        ProcessGoneError
            When it has ended, also if another process has the same number now.
        """
        # Rounded as in the CSV, so that a record is judged as the live watch was.
        seconds, now = round(time.monotonic() - self._start, 6), datetime.now(UTC)
        counts = count_kinds(self.pid, self._below)
        limit = _limit(self.pid)
        # After counting: an exiting process has no descriptors, and another one may have its number by now.
        if _flags(self.pid) & EXITING or not self._process.is_running():
            raise ProcessGoneError(f"process {self.pid} has ended")
        self.places.add(counts.files)
        storage = None if self._below is None else counts.kinds.pop("storage file", 0)
        kinds = {kind: counts.kinds.pop(kind, 0) for kind in KINDS[:-1]}
        return Sample(now, seconds, storage, {**kinds, KINDS[-1]: counts.kinds.total()}, limit)

    def suggestion(self) -> str | None:
        """Name the folder that holds most of the open regular files, if there is one."""
        folder = deepest(self.places.now) if self.places.now.total() >= ENOUGH else None
        if self._below is not None or folder is None:
            return None
        return f"most of the open regular files are below {folder}: add --storage-dir {folder} to name them storage files"

    def has_storage_files(self) -> bool:
        """Return whether a storage file is open now."""
        with suppress(ProcessGoneError):
            return count_kinds(self.pid, self._below).kinds["storage file"] > 0
        return False

    def check_children(self, watched: Collection[int] = ()) -> None:
        """Refuse to watch a process without a storage file whose child has some, as the scheduler of a server has.

        Parameters
        ----------
        watched : collection of int
            Children that are watched, too.

        Raises
        ------
        ConfigError
        """
        if self._below is None:
            return
        found = []
        with suppress(psutil.Error, ProcessGoneError):
            if self.has_storage_files():
                return
            for child in self._process.children(recursive=True):
                # A child may end meanwhile, or belong to another user.
                with suppress(ProcessGoneError, psutil.Error):
                    count = count_kinds(child.pid, self._below).kinds["storage file"]
                    if count and child.pid not in watched:
                        found.append((count, f"{child.pid} ({_command(child)})"))
        if found:
            count, child = max(found)
            raise ConfigError(
                f"process {self.name} has no open file below {self.storage_dir}, but its child {child} has {count}: "
                "watch that one, or add --children"
            )


def _process(pid: int) -> psutil.Process:
    if pid < 1:
        raise ConfigError(f"PID {pid}: expected the number of a process, 1 or more")
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        raise ConfigError(
            f"PID {pid}: no such process; `pgrep -af sglang` lists candidates. A process in a container has another "
            "PID outside of it: `docker inspect -f '{{.State.Pid}}' NAME`, or run watch inside the container"
        ) from None


def _check_alive(process: psutil.Process, name: str) -> None:
    try:
        flags = _flags(process.pid)
        zombie = process.status() == psutil.STATUS_ZOMBIE
    except (ProcessGoneError, psutil.NoSuchProcess):
        raise ConfigError(f"process {name} has just ended") from None
    if zombie:
        raise ConfigError(f"process {name} has ended; it remains as a zombie of its parent {process.ppid()}")
    if flags & KERNEL_THREAD:
        raise ConfigError(f"process {name} is a kernel thread and has no descriptors")


def _flags(pid: int) -> int:
    """Return the flags of a process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGoneError(f"process {pid} has ended") from None


def _check_permission(process: psutil.Process, name: str) -> None:
    try:
        os.listdir(f"/proc/{process.pid}/fd")
        os.readlink(f"/proc/{process.pid}/root")
    except PermissionError:
        user = process.username()
        ways = "inside a container CAP_SYS_PTRACE is needed"
        if process.uids().effective != os.geteuid():
            ways = f"run watch as {user} or with sudo; {ways}"
        raise ConfigError(f"process {name} belongs to {user} and cannot be inspected: {ways}") from None


def _below(process: psutil.Process, name: str, storage_dir: str) -> str:
    """Return the prefix of the links of the files below a folder."""
    path = os.path.expanduser(storage_dir)
    if not os.path.isabs(path):
        if _has_other_files(process.pid):
            raise ConfigError(
                f"--storage-dir {storage_dir}: process {name} runs in a container; expected an absolute path "
                "inside that container"
            )
        path = os.path.abspath(path)
    try:
        return folder_as_seen_by(process.pid, path).rstrip("/") + "/"
    except OSError as error:
        os.stat(f"/proc/{process.pid}/ns/mnt")  # fails if it is the process that is gone
        where = f" in the container of process {name}" if _has_other_files(process.pid) else ""
        raise ConfigError(
            f"--storage-dir {storage_dir}: {error.strerror}{where}; expected the existing folder of the page files"
        ) from None


def _namespaces(name: str, pid: int, storage_dir: str | None) -> list[str]:
    """Say that a process runs in a container, and what that means for the storage folder."""
    status = Path(f"/proc/{pid}/status").read_text()
    pids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid")), [])
    inside = f" (PID {pids[-1]} inside)" if len(pids) > 1 else ""
    if not _has_other_files(pid):
        return [f"process {name} runs in its own PID namespace{inside}"] if inside else []
    folder = f"; {storage_dir} is the folder of that name inside the container" if storage_dir else ""
    return [f"process {name} runs in a container{inside}{folder}"]


def _has_other_files(pid: int) -> bool:
    """Return whether a process has other mounts or another root than this one, as in a container."""
    mounts = [os.stat(f"/proc/{who}/ns/mnt") for who in (pid, "self")]
    roots = [os.stat(f"/proc/{who}/root") for who in (pid, "self")]
    return not os.path.samestat(*mounts) or not os.path.samestat(*roots)


def _limit(pid: int) -> int | None:
    """Return the soft RLIMIT_NOFILE of a process; None when it has none."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGoneError(f"process {pid} has ended") from None
    words = next((line.split() for line in lines if line.startswith("Max open files")), None)
    if words is None:  # a zombie has an empty file
        raise ProcessGoneError(f"process {pid} has ended")
    return None if words[3] == "unlimited" else int(words[3])


def _command(process: psutil.Process) -> str:
    """Return the name of a process, or its title, such as sglang::scheduler_TP0."""
    with suppress(psutil.Error):  # a zombie has a name, and no title
        title = (process.cmdline() or [""])[0]
        if "::" in title:
            return title
    with suppress(psutil.Error):
        return str(process.name())
    return "?"
