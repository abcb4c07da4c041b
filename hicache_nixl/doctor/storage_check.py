"""The storage folder: whether it can be used, its file system, and whether that supports O_DIRECT."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..config import ALIGNMENT, DEFAULT_STORAGE_DIR, STORAGE_DIR_VARIABLE, folders_in
from ..errors import ConfigError
from ..lab.runs.provenance import mount_of
from ..options import SEVERAL_FOLDERS
from ..transport.folder import refuse_shared

A_DISK = "Choose a folder on a disk"
IN_MEMORY = ("tmpfs", "ramfs")
KERNEL = ("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "securityfs", "debugfs", "tracefs", "bpf")
UNALIGNED = 1000  # bytes


@dataclass(frozen=True)
class Storage:
    """The folder that pages would go to.

    Attributes
    ----------
    folder : Path
    source : str
        Where its name comes from: ``"--storage-dir"``, an environment variable, or ``"the default"``.
    place : Path or None
        The existing folder that was tried: itself, or the one that it would be created in.  None when it cannot
        be used.
    problem, advice : str
        Why it cannot be used, and what to do about it.
    """

    folder: Path
    source: str
    place: Path | None
    problem: str = ""
    advice: str = ""


@dataclass(frozen=True)
class FileSystem:
    """The file system of a folder."""

    kind: str
    options: str
    free_bytes: int

    @property
    def in_memory(self) -> bool:
        """Whether pages there are in memory and not on a disk."""
        return self.kind in IN_MEMORY


def find(given: str | None = None) -> Storage:
    """Find the folder that a server would use, or check the one that was given.

    One that was given must exist; that of a server is created by the connector.
    """
    if given is not None:
        return _tried(given, "--storage-dir", make=False)
    if from_environment := folders_in(os.environ.get(STORAGE_DIR_VARIABLE) or ""):
        if len(from_environment) > 1:
            listed = Path(",".join(from_environment))
            return Storage(
                listed, STORAGE_DIR_VARIABLE, None, "are several folders", SEVERAL_FOLDERS.capitalize()
            )
        return _tried(from_environment[0], STORAGE_DIR_VARIABLE, make=True)
    return _tried(DEFAULT_STORAGE_DIR, "the default", make=True)


def _tried(named: str, source: str, make: bool) -> Storage:
    if not named or "\0" in named:
        return Storage(Path(repr(named)), source, None, "cannot be the name of a folder", "Choose a folder")
    folder = Path(os.path.abspath(Path(named).expanduser()))
    place = folder
    while make and not os.path.lexists(place):
        place = place.parent
    where = "" if place == folder else f" in {place}"
    try:
        if not stat.S_ISDIR(os.stat(place).st_mode):
            return Storage(
                folder,
                source,
                None,
                f"cannot be used: {'it' if place == folder else place} is a file",
                "Choose a folder",
            )
    except OSError as error:
        advice = f"Create it (mkdir -p {place}), or choose a folder that exists"
        return Storage(folder, source, None, f"cannot be found: {error.strerror}", advice)
    if (kind := mount_of(place).fstype) in KERNEL:
        return Storage(
            folder, source, None, f"cannot hold files: it is in {kind}, a file system of the kernel", A_DISK
        )
    try:
        with os.scandir(place), tempfile.TemporaryFile(dir=place) as new:
            if place == folder:
                refuse_shared(str(place), os.fstat(new.fileno()).st_uid)
            return Storage(folder, source, place)
    except ConfigError as error:  # the connector would refuse it as well
        problem, _, advice = str(error).removeprefix(f"storage folder {place} ").partition("; ")
        return Storage(folder, source, None, problem, f"{advice[:1].upper()}{advice[1:]}")
    except OSError as error:
        return Storage(
            folder, source, None, f"cannot be written to: {error.strerror}{where}", _advice_on(error, place)
        )


def _advice_on(error: OSError, place: Path) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"Choose another folder, or let uid {os.geteuid()} write to it"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{A_DISK} with free space, or free some"
    return "Choose a folder that can be written to"


def file_system(place: Path) -> FileSystem:
    """Return the file system of a folder, without options that are paths, as those of overlay."""
    mount = mount_of(place)
    options = ", ".join(option for option in mount.opts.split(",") if "/" not in option)
    return FileSystem(mount.fstype, options, psutil.disk_usage(str(place)).free)


def direct_io(place: Path) -> tuple[bool, str]:
    """Write and read aligned bytes with O_DIRECT; return whether that works, and what happened."""
    pattern = os.urandom(ALIGNMENT)
    step = "open"
    try:
        with (
            tempfile.NamedTemporaryFile(dir=place, prefix="hicache-nixl-") as probe,
            mmap.mmap(-1, ALIGNMENT) as memory,  # aligned to a page of memory
        ):
            fd = os.open(probe.name, os.O_RDWR | os.O_DIRECT)
            try:
                memory[:] = pattern
                step = "write"
                os.pwrite(fd, memory, 0)
                memory[:] = bytes(ALIGNMENT)
                step = "read"
                os.preadv(fd, [memory], 0)
                if memory[:] != pattern:
                    return False, f"the {ALIGNMENT} bytes that were read differ from those written"
                return True, f"{ALIGNMENT} aligned bytes were written and read; {_unaligned(fd)}"
            finally:
                os.close(fd)
    except OSError as error:
        return False, f"{step} is refused ({error.strerror})"


def _unaligned(fd: int) -> str:
    try:
        os.pwrite(fd, bytes(UNALIGNED), 0)
    except OSError as error:
        return f"{UNALIGNED} bytes are refused ({error.strerror})"
    return f"{UNALIGNED} bytes work as well"
