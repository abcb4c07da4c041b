"""What can run on this machine: every check as rows of what, state, detail and way out."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..config import QUEUES
from ..errors import ConfigError
from ..lab.experiments.compare import usable_queues
from ..lab.worker.client import WorkerError
from ..lab.worker.releases import cache_folder, known_releases
from ..lab.worker.schedule import RECORDED_BASELINE
from . import plugin_check, sglang_check, storage_check
from .plugin_check import Build
from .sglang_check import LEAK, NEITHER, UNKNOWN, SGLang, Verdict
from .storage_check import Storage

OK, NOTE, NO = "ok", "note", "no"
PACKAGES = ("hicache-nixl", "nixl", "torch")
SECONDS = 8.0  # for one queue, and for the connector of SGLang; half a second each is usual
FILES_PER_PAGE = 2  # K and V of a multi-head page
LARGEST_CALL = 128  # pages, of SGLang's controller
SGLANG_ASKS_FOR = 65535  # set_ulimit() of SGLang, which stays at the soft limit where the hard one is lower
RAISE_LIMIT = "Raise it: ulimit -n, LimitNOFILE=, docker run --ulimit nofile=65535"
NO_FOLDER = "no storage folder"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
NEEDS_GPU = "needs an NVIDIA GPU with GPUDirect Storage"
# Settings of the kernel that say why it refuses a queue.
REFUSED = "cannot be created"
KERNEL = {
    "libaio": ("fs/aio-nr", "fs/aio-max-nr"),
    "io_uring": ("kernel/io_uring_disabled",),
    "posix_aio": (),
}
# What the profiles of the notebooks need: the hard limit of RLIMIT_NOFILE, and GB of pages at a time.
NOTEBOOKS = {"quick": (6144, 2), "full": (16500, 6)}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    what : str
    state : str
        ``OK``, ``NOTE`` (works, and there is something to know) or ``NO``.
    detail : str
    way_out : str
        What to do about it; empty when there is nothing to do.
    """

    what: str
    state: str
    detail: str
    way_out: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found.

    Attributes
    ----------
    versions : dict
        Version by package; None for what is not installed.
    builds : tuple of Build
        NIXL's builds and their plugins.
    machine : tuple of Finding
        Queues, descriptors, storage folder, SGLang.
    can_run : tuple of Finding
        The verdicts.
    usable : bool
        Whether the connector can run here: the POSIX plugin works on a queue, and the folder can be written to.
    """

    versions: dict[str, str | None]
    builds: tuple[Build, ...]
    machine: tuple[Finding, ...]
    can_run: tuple[Finding, ...]
    usable: bool


def diagnose(
    storage_dir: str | None = None,
    sglang: SGLang | None = None,
    progress: Callable[[str], object] = lambda step: None,
) -> Diagnosis:
    """Try everything that can be tried here; takes some seconds and leaves nothing behind.

    Parameters
    ----------
    storage_dir : str, optional
        As a user gave it; what a server would use when left out.
    sglang : SGLang, optional
        What ``sglang_check.find`` found.
    progress : callable, optional
        Told what is being tried.
    """
    progress("plugins of NIXL")
    with plugin_check.probing() as plugins:  # they are created while we go on
        storage = storage_check.find(storage_dir)
        progress("queues of the POSIX plugin")
        queues = queue_findings(storage)
        progress("open files and the storage folder")
        folder = storage_findings(storage)
        progress("the connector of SGLang")
        leaks = sglang_finding(sglang, storage)
        progress("plugins of NIXL")
        builds = tuple(plugins())
    machine = (*queues, descriptor_finding(), *folder, leaks)
    can_run = verdicts(storage, queues, folder, builds)
    return Diagnosis(versions(), builds, machine, can_run, usable=can_run[0].state == OK)


def versions() -> dict[str, str | None]:
    """Return the version of Python and of each package that matters."""
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def queue_findings(storage: Storage) -> list[Finding]:
    """Move a page on each queue of the POSIX plugin, in the folder for temporary files if need be."""
    where = "" if storage.place else " (tried in the folder for temporary files)"
    try:
        table = usable_queues(storage.place, timeout=SECONDS)
    except (WorkerError, ConfigError, OSError) as error:  # no folder to try them in, or no process
        return [Finding(f"queue {queue}", NO, _first_line(error)) for queue in QUEUES]
    found = []
    for row in table.itertuples():
        if row.works:
            found.append(Finding(f"queue {row.queue}", OK, f"moves pages{where}"))
        else:
            reason = _first_line(row.reason)
            kernel = _kernel_says(row.queue) if REFUSED in reason else ""
            found.append(Finding(f"queue {row.queue}", NO, reason, kernel))
    return found


def _kernel_says(queue: str) -> str:
    values = []
    for name in KERNEL[queue]:
        try:
            values.append(f"{name.replace('/', '.')} is {Path('/proc/sys', name).read_text().strip()}")
        except OSError:
            continue  # not in this kernel, or hidden in this container
    return "; ".join(values)


def descriptor_finding() -> Finding:
    """Tell the limits of open files, and what they mean to a server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = SGLANG_ASKS_FOR if soft < SGLANG_ASKS_FOR <= hard else soft
    ceiling = int(Path("/proc/sys/fs/nr_open").read_text())
    needed = RECORDED_BASELINE + FILES_PER_PAGE * LARGEST_CALL
    pages = max(0, server - RECORDED_BASELINE) // FILES_PER_PAGE
    told = f"soft {soft}, hard {hard}, root may go to {ceiling}"
    if server < needed:
        call = FILES_PER_PAGE * LARGEST_CALL
        short = f"a server has some {RECORDED_BASELINE}, and a call of {LARGEST_CALL} pages opens {call} more"
        return Finding("open files", NO, f"{told}; {short}", RAISE_LIMIT)
    if server < SGLANG_ASKS_FOR:
        dead = f"SGLang asks for {SGLANG_ASKS_FOR} and stays at {server}: with the leak it is dead after {pages} pages"
        return Finding("open files", NOTE, f"{told}; {dead}", RAISE_LIMIT)
    return Finding(
        "open files", OK, f"{told}; SGLang gets {server}: with the leak it is dead after {pages} pages"
    )


def storage_findings(storage: Storage) -> list[Finding]:
    """Tell whether the storage folder can be one, and what it lies on."""
    named = f"{storage.folder} ({storage.source})"
    if storage.place is None:
        return [
            Finding("storage folder", NO, f"{named} {storage.problem}", storage.way_out),
            *(Finding(what, NOTE, f"not tried: {NO_FOLDER}") for what in ("file system", "O_DIRECT")),
        ]
    if storage.place == storage.folder:
        found = [Finding("storage folder", OK, f"{named} can be written to")]
    else:
        made = f"{named} is not there yet; the connector makes it in {storage.place}"
        found = [Finding("storage folder", OK, made)]
    disk = storage_check.file_system(storage.place)
    told = f"{disk.kind}, {disk.free_bytes / 1e9:.1f} GB free; {disk.options}"
    if disk.in_memory:
        way_out = "Name a folder on a disk, with --storage-dir here"
        found.append(Finding("file system", NOTE, f"this is memory, not a disk: {told}", way_out))
    else:
        found.append(Finding("file system", OK, told))
    works, told = storage_check.direct_io(storage.place)
    if works and disk.in_memory:
        found.append(Finding("O_DIRECT", NOTE, f"{told}; in memory there is no page cache to go past"))
    elif works:
        found.append(Finding("O_DIRECT", OK, told))
    else:
        way_out = "use_direct_io falls back to the page cache there; ext4, XFS and NFS take it"
        found.append(Finding("O_DIRECT", NO, told, way_out))
    return found


def sglang_finding(sglang: SGLang | None, storage: Storage) -> Finding:
    """Tell which SGLang is installed, and whether it has the leak, the second leak, or neither."""
    if sglang is None:
        way_out = "--sglang FOLDER looks into another environment"
        return Finding("SGLang", NOTE, "not installed in this environment", way_out)
    judged = sglang_check.judge(sglang, storage.place, timeout=SECONDS)
    told = f"{sglang.name} in {sglang.folder}: {judged.leak} ({judged.evidence})"
    return Finding("SGLang", _state_of(judged), told, _way_out_of(judged))


def _state_of(judged: Verdict) -> str:
    if judged.leak == NEITHER:
        return OK if judged.measured else NOTE
    return NOTE if judged.leak == UNKNOWN else NO


def _way_out_of(judged: Verdict) -> str:
    if judged.leak == LEAK:
        return "PR #24671 is not in it: take 0.5.13 or later, or this package's connector"
    if judged.leak in (NEITHER, UNKNOWN):
        return ""
    return "PR #24671 is in it, PR #25173 is not: take 0.5.13 or later, or this package's connector"


def verdicts(
    storage: Storage, queues: Sequence[Finding], folder: Sequence[Finding], builds: Sequence[Build]
) -> tuple[Finding, ...]:
    """Say what this machine can run."""
    posix = _posix_verdict(storage, queues)
    return (
        posix,
        _direct_verdict(posix, folder[-1]),
        _plugin_verdict("OBJ", builds, "nixl_cu12 has one that loads without CUDA"),
        _plugin_verdict(
            "GDS", builds, NEEDS_GPU + ("" if NVIDIA_DRIVER.exists() else "; no NVIDIA driver here")
        ),
        _plugin_verdict("3FS", builds, "not in the wheels of NIXL"),
        *(_notebooks_verdict(profile, posix, storage) for profile in NOTEBOOKS),
        peers_verdict(),
    )


def _posix_verdict(storage: Storage, queues: Sequence[Finding]) -> Finding:
    working = [finding.what.removeprefix("queue ") for finding in queues if finding.state == OK]
    if storage.place is not None and working:
        return Finding("connector on POSIX", OK, f"on {', '.join(working)}")
    return Finding("connector on POSIX", NO, NO_FOLDER if working else "no queue works")


def _direct_verdict(posix: Finding, tried: Finding) -> Finding:
    if posix.state == NO:
        return Finding("with O_DIRECT", NO, posix.detail)
    meaning = {OK: "past the page cache", NOTE: "without effect", NO: "goes through the page cache"}
    return Finding("with O_DIRECT", tried.state, meaning[tried.state])


def _plugin_verdict(name: str, builds: Sequence[Build], otherwise: str) -> Finding:
    created = [build.name for build in builds if (plugin := build.plugin(name)) and plugin.state == OK]
    if not created:
        return Finding(f"connector on {name}", NO, otherwise)
    return Finding(f"connector on {name}", OK, f"{' and '.join(created)} can create it; no page was moved")


def _notebooks_verdict(profile: str, posix: Finding, storage: Storage) -> Finding:
    """Say whether a profile of the notebooks has the descriptors and the space that it needs."""
    limit, gigabytes = NOTEBOOKS[profile]
    what = f"notebooks, {profile}"
    if posix.state == NO or storage.place is None:
        return Finding(what, NO, posix.detail)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < limit:
        return Finding(what, NO, f"needs a hard limit of {limit} open files, here {hard}")
    free = storage_check.file_system(storage.place).free_bytes
    if free < gigabytes * 1e9:
        return Finding(what, NO, f"needs {gigabytes} GB of space, here {free / 1e9:.1f}")
    return Finding(what, OK, f"{limit} open files and {gigabytes} GB are there")


def peers_verdict() -> Finding:
    """Say which released connectors are in the cache; a registry is not asked."""
    folder = cache_folder()
    kept = [name for name, row in known_releases().items() if os.path.isfile(folder / row.wheel)]
    missing = [name for name in known_releases() if name not in kept]
    told = [f"in the cache: {', '.join(kept)}"] if kept else []
    told += [f"to be fetched with pip: {', '.join(missing)}"] if missing else []
    return Finding("released peers", OK if not missing else NOTE, "; ".join(told))


def _first_line(reason: object) -> str:
    return (str(reason).splitlines() or ["no reason was given"])[0].removesuffix(".")
