"""What the descriptors of a process are, and which line opened them.

``/proc/PID/fd`` is the only place that lists them all: ``psutil`` names regular files only, and a leaked
``os.open`` raises no ResourceWarning.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import psutil

from ...errors import HiCacheNixlError

FLAGS = {  # O_TMPFILE first: its bits hold those of O_DIRECTORY
    getattr(os, name): name
    for name in (
        "O_TMPFILE",
        "O_APPEND",
        "O_NONBLOCK",
        "O_DSYNC",
        "O_DIRECT",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_CLOEXEC",
        "O_PATH",
    )
}
ACCESS = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}
# O_LARGEFILE, which the kernel sets on every 64-bit open and Python gives as 0; says nothing.
LARGEFILE = 0o400000 if platform.machine() == "aarch64" else 0o100000

# What follows "anon_inode:" in a link, and what people call it.
ANONYMOUS = {"[eventpoll]": "epoll", "[eventfd]": "eventfd", "[io_uring]": "io_uring", "[timerfd]": "timerfd"}

FILES = ("storage file", "regular")  # kinds

MOST_STEPS = 400  # of a path and its symbolic links, before they are taken for a circle


@dataclass(frozen=True)
class Opened:
    """What a descriptor was opened on, and by which lines: innermost first, ``"file.py:line function"``."""

    target: str
    by: str


class ProcessGoneError(HiCacheNixlError, ProcessLookupError):
    """The process has ended, or its descriptors may not be read."""


def count_fds(pid: int) -> int:
    """Count the open descriptors of another process."""
    return len(_listed(pid))


def count_storage_fds(pid: int, storage_dir: str | os.PathLike[str]) -> int:
    """Count the descriptors of a process that lie under a folder, removed files among them."""
    below = f"{os.path.realpath(storage_dir)}/"
    return sum(target.startswith(below) for _, target in _targets(pid))


def fd_table(pid: int | None = None, storage_dir: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Name every descriptor of a process.

    Parameters
    ----------
    pid : int, optional
        This process when left out.
    storage_dir : path, optional
        Files below it are of kind ``"storage file"``.

    Returns
    -------
    pandas.DataFrame
        ``fd``, ``kind``, ``target``, and for files ``position`` (bytes) and ``flags``.

    Raises
    ------
    ProcessGoneError

    Examples
    --------
    >>> table = fd_table()
    >>> set(table.columns) == {"fd", "kind", "target", "position", "flags"}
    True
    """
    pid = os.getpid() if pid is None else pid
    below = None if storage_dir is None else f"{os.path.realpath(storage_dir)}/"
    rows = []
    for fd, target in _targets(pid):
        kind = _kind(pid, fd, target, below)
        position, flags = _position_and_flags(pid, fd) if kind in FILES else (None, None)
        rows.append((fd, kind, target, position, flags))
    table = pd.DataFrame(rows, columns=["fd", "kind", "target", "position", "flags"])
    return table.astype({"position": "Int64"}).sort_values("fd", ignore_index=True)


@dataclass(frozen=True)
class Counts:
    """The descriptors of a process at one moment.

    Attributes
    ----------
    kinds : Counter
        How many there are of each kind of ``fd_table``.
    files : Counter
        How many there are on each regular file or storage file, by its path.
    """

    kinds: Counter[str]
    files: Counter[str]


def count_kinds(pid: int, below: str | None = None) -> Counts:
    """Count the descriptors of a process by kind, without the positions and flags of ``fd_table``.

    Some 5 microseconds per descriptor, 7 without ``below``: a tenth of a second at 20000.

    Parameters
    ----------
    below : str, optional
        What the links of storage files begin with: the folder as ``folder_as_seen_by`` names it, and ``/``.

    Raises
    ------
    ProcessGoneError
    """
    counts = Counts(Counter(), Counter())
    for fd, target in _targets(pid):
        kind = _kind(pid, fd, target, below)
        counts.kinds[kind] += 1
        if kind in FILES:
            counts.files[target] += 1
    return counts


def folder_as_seen_by(pid: int, folder: str | os.PathLike[str]) -> str:
    """Return the name that the kernel gives to a folder which a process knows under an absolute path.

    A process in a container has a root of its own: the path is looked up below ``/proc/PID/root``, symbolic
    links too, and the kernel is asked how it writes the result in the links of ``/proc/PID/fd``.

    Raises
    ------
    OSError
        When that process sees no folder there.
    """
    root, done, left = f"/proc/{pid}/root", "/", _parts(os.fspath(folder))
    for _ in range(MOST_STEPS):
        if not left:
            break
        step = os.path.normpath(os.path.join(done, left.pop()))
        if not os.path.islink(root + step):
            done = step
            continue
        link = os.readlink(root + step)
        done = "/" if link.startswith("/") else os.path.dirname(step)
        left += _parts(link)
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(folder))
    fd = os.open(root + done, os.O_PATH | os.O_DIRECTORY)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _parts(path: str) -> list[str]:
    """Return the parts of a path, the first one last."""
    return [part for part in reversed(path.split("/")) if part]


@contextmanager
def trace_opens() -> Iterator[dict[int, Opened]]:
    """Note, while active, the Python line behind every ``os.open`` of this process.

    Yields
    ------
    dict
        Descriptor to ``Opened``.  Descriptors that were closed since are still in it: ``opened_by`` compares
        the targets, since a number may have been taken by something else.
    """
    opened: dict[int, Opened] = {}
    original = os.open

    def traced(*args: Any, **kwargs: Any) -> int:
        fd = original(*args, **kwargs)
        opened[fd] = Opened(os.readlink(f"/proc/self/fd/{fd}"), _callers(sys._getframe(1)))
        return fd

    os.open = traced
    try:
        yield opened
    finally:
        os.open = original


def opened_by(opened: dict[int, Opened], storage_dir: str | os.PathLike[str]) -> list[dict[str, object]]:
    """Join what ``trace_opens`` noted with the descriptors of this process that are still open.

    Returns
    -------
    list of dict
        ``fd``, ``target``, ``opened_by`` for every descriptor below ``storage_dir``.
    """
    table = fd_table(storage_dir=storage_dir)
    leaked = table[table.kind == "storage file"]
    return [
        {"fd": row.fd, "target": row.target, "opened_by": _line(opened.get(row.fd), row.target)}
        for row in leaked.itertuples()
    ]


def _line(opened: Opened | None, target: str) -> str:
    if opened is not None and opened.target == target.removesuffix(" (deleted)"):
        return opened.by
    return "not opened by os.open"


def _listed(pid: int) -> list[str]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
        if not names and psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            raise ProcessGoneError(f"process {pid} has ended")
        return names
    except (FileNotFoundError, psutil.NoSuchProcess) as error:
        raise ProcessGoneError(f"process {pid} has ended") from error
    except PermissionError as error:
        raise ProcessGoneError(f"the descriptors of process {pid} may not be read: {error}") from error


def _targets(pid: int) -> Iterator[tuple[int, str]]:
    for name in _listed(pid):
        try:
            yield int(name), os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # closed since, as the descriptor of our own listing is


def _kind(pid: int, fd: int, target: str, below: str | None) -> str:
    if below is not None and target.startswith(below):
        return "storage file"
    if target.startswith("anon_inode:"):
        name = target.removeprefix("anon_inode:")
        return ANONYMOUS.get(name, name.strip("[]"))
    if not target.startswith("/"):
        return target.partition(":")[0]  # socket, pipe
    try:
        mode = os.stat(f"/proc/{pid}/fd/{fd}").st_mode
    except OSError:
        return "regular"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "device"
    return "folder" if stat.S_ISDIR(mode) else "regular"


def _position_and_flags(pid: int, fd: int) -> tuple[int | None, str | None]:
    try:
        lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    except OSError:
        return None, None
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    bits = int(info["flags"], 8) & ~LARGEFILE
    names = [ACCESS.get(bits & os.O_ACCMODE, "?")]
    for mask, name in FLAGS.items():
        if bits & mask == mask:
            names.append(name)
            bits &= ~mask
    return int(info["pos"]), "|".join(names)


def _callers(frame: FrameType | None) -> str:
    """Describe the frames from an open up to where the connector was entered."""
    lines: list[str] = []
    while frame is not None and len(lines) < 3:
        code = frame.f_code
        path = Path(code.co_filename)
        lines.append(f"{path.parent.name}/{path.name}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return " < ".join(lines)
