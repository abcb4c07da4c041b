"""The process that is watched: who it is, where it lives, and its descriptors at a moment."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from ..errors import ConfigError
from ..lab.worker.descriptors import ProcessGoneError, count_kinds, folder_as_seen_by
from .verdict import KINDS, Sample

KERNEL_THREAD = 0x00200000  # PF_KTHREAD of linux/sched.h, in the ninth field of /proc/PID/stat
ENOUGH = 10  # regular files below which no folder is suggested


class Subject:
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
        What somebody who watches it should know, a line each.

    Raises
    ------
    ConfigError
        When there is no such process, or it cannot be looked into; the message says what to do.
    """

    def __init__(self, pid: int, storage_dir: str | None = None):
        self.pid = pid
        self._process = _process(pid)
        self.name = f"{pid} ({_command(self._process)})"
        self.storage_dir = storage_dir
        self._folders: Counter[str] = Counter()
        self._below: str | None = None
        self.notes: list[str] = []
        _check_alive(self._process, self.name)
        try:
            self._look_up()
        except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            raise ConfigError(f"process {self.name} has just ended") from None
        self._start = time.monotonic()

    def _look_up(self) -> None:
        """Find out where it lives; any of these look-ups fails when it ends meanwhile."""
        _check_permission(self._process, self.name)
        if self.storage_dir is not None:
            self._below = _below(self._process, self.name, self.storage_dir)
        self.notes += _namespaces(self.name, self.pid, self.storage_dir)
        self._note_children()

    def alive(self) -> bool:
        """Tell whether it has not ended, without counting anything."""
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def sample(self) -> Sample:
        """Count its descriptors now.

        Raises
        ------
        ProcessGoneError
            When it has ended, also if another process has its number since.
        """
        # Rounded as the CSV is, so that the record is judged as it was live.
        seconds, now = round(time.monotonic() - self._start, 6), datetime.now(UTC)
        counts = count_kinds(self.pid, self._below)
        limit = _limit(self.pid)
        if not self._process.is_running():  # after the counting, which may have met its successor
            raise ProcessGoneError(f"process {self.pid} has ended")
        self._folders = counts.folders
        storage = None if self._below is None else counts.kinds.pop("storage file", 0)
        kinds = {kind: counts.kinds.pop(kind, 0) for kind in KINDS[:-1]}
        return Sample(now, seconds, storage, {**kinds, KINDS[-1]: counts.kinds.total()}, limit)

    def suggestion(self) -> str | None:
        """Name the folder that holds most of the open regular files, where there is such a one."""
        total = self._folders.total()
        if self._below is not None or total < ENOUGH:
            return None
        below: Counter[str] = Counter()
        for folder, count in self._folders.items():
            for parent in (folder, *(str(path) for path in Path(folder).parents)):
                below[parent] += count
        most = max((folder for folder in below if below[folder] > total / 2), key=len)
        if most == "/":
            return None
        return f"most of the open regular files lie below {most}: --storage-dir {most} watches these alone"

    def _note_children(self) -> None:
        """Say so when the storage files are those of a child, as a server's are those of its scheduler."""
        if self._below is None or count_kinds(self.pid, self._below).kinds["storage file"]:
            return
        with suppress(psutil.Error):
            for child in self._process.children(recursive=True):
                # A child may end, or belong to somebody else; it is only a hint.
                with suppress(ProcessGoneError, psutil.Error):
                    if found := count_kinds(child.pid, self._below).kinds["storage file"]:
                        self.notes.append(
                            f"process {self.name} has no file open below {self.storage_dir}; its child "
                            f"{child.pid} ({_command(child)}) has {found}: watch that one"
                        )


def _process(pid: int) -> psutil.Process:
    if pid < 1:
        raise ConfigError(f"PID {pid}: it takes the number of a process, from 1")
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        raise ConfigError(
            f"PID {pid}: there is no such process here; `pgrep -af sglang` lists those that there are. A process "
            "in a container has another PID outside: `docker inspect -f '{{.State.Pid}}' NAME`, or run watch inside"
        ) from None


def _check_alive(process: psutil.Process, name: str) -> None:
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        zombie = process.status() == psutil.STATUS_ZOMBIE
    except (OSError, psutil.NoSuchProcess):
        raise ConfigError(f"process {name} has just ended") from None
    if zombie:
        raise ConfigError(f"process {name} has ended: it is a zombie that its parent {process.ppid()} keeps")
    if int(stat.rpartition(")")[2].split()[6]) & KERNEL_THREAD:
        raise ConfigError(f"process {name} is a thread of the kernel and has no descriptors; watch a program")


def _check_permission(process: psutil.Process, name: str) -> None:
    try:
        os.listdir(f"/proc/{process.pid}/fd")
        os.readlink(f"/proc/{process.pid}/root")
    except PermissionError:
        user = process.username()
        raise ConfigError(
            f"process {name} belongs to {user} and may not be looked into: run watch as {user} or with sudo; "
            "in a container it takes CAP_SYS_PTRACE"
        ) from None


def _below(process: psutil.Process, name: str, storage_dir: str) -> str:
    """Return what the links of the files below a folder begin with."""
    path = os.path.expanduser(storage_dir)
    if not os.path.isabs(path):
        if _has_other_files(process.pid):
            raise ConfigError(
                f"--storage-dir {storage_dir}: process {name} sees other files than you, in a container; "
                "it takes an absolute path as that process sees it"
            )
        path = os.path.abspath(path)
    try:
        return folder_as_seen_by(process.pid, path).rstrip("/") + "/"
    except OSError as error:
        os.stat(f"/proc/{process.pid}/ns/mnt")  # fails when it is the process that is not there
        seen = f" as process {name} sees it" if _has_other_files(process.pid) else ""
        raise ConfigError(
            f"--storage-dir {storage_dir}: {error.strerror}{seen}; it takes the existing folder of the page files"
        ) from None


def _namespaces(name: str, pid: int, storage_dir: str | None) -> list[str]:
    """Say that a process is in a container, and what that means."""
    status = Path(f"/proc/{pid}/status").read_text()
    pids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid")), [])
    inside = f", as PID {pids[-1]} there" if len(pids) > 1 else ""
    if not _has_other_files(pid):
        return [f"process {name} runs in a PID namespace of its own{inside}"] if inside else []
    seen = f"; {storage_dir} is the folder that it sees under this name" if storage_dir else ""
    return [f"process {name} runs in a container{inside}{seen}"]


def _has_other_files(pid: int) -> bool:
    """Tell whether a process sees another file system than this one."""
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
    try:
        return process.name()
    except psutil.Error:
        return "?"
