"""What the machine has: queues of NIXL's POSIX plugin, descriptors, a storage folder, and an SGLang."""

from __future__ import annotations

import resource
from pathlib import Path

from ..config import QUEUES
from ..errors import ConfigError
from ..lab.experiments.compare import usable_queues
from ..lab.worker.client import WorkerError
from ..lab.worker.schedule import RECORDED_BASELINE
from . import sglang_check, storage_check
from .finding import NO, NOTE, OK, Finding
from .sglang_check import LEAK, NEITHER, UNKNOWN, SGLang, Verdict
from .storage_check import Storage

SECONDS = (
    20.0  # for one queue, and for the connector of SGLang; half a second each is usual on an idle machine
)
FILES_PER_PAGE = 2  # K and V of a multi-head page
LARGEST_CALL = 128  # pages, of SGLang's controller
SGLANG_ASKS_FOR = 65535  # set_ulimit() of SGLang, which keeps the soft limit where the hard one is lower
RAISE_LIMIT = "Raise it: ulimit -n, LimitNOFILE=, docker run --ulimit nofile=65535"
NO_FOLDER = "no storage folder"
YOUR_SGLANG = "your SGLang"
RELEASES = "up to 0.5.11 file descriptors leak, in 0.5.12 memory registrations, later neither"
# Settings of the kernel that explain why it refuses a queue.
REFUSED = "cannot be created"
KERNEL = {
    "libaio": ("fs/aio-nr", "fs/aio-max-nr"),
    "io_uring": ("kernel/io_uring_disabled",),
    "posix_aio": (),
}


def queue_findings(storage: Storage) -> list[Finding]:
    """Move a page on each queue of the POSIX plugin; without a storage folder, in the folder for temporary files."""
    where = "" if storage.place else " (tried in the folder for temporary files)"
    try:
        table = usable_queues(storage.place, timeout=SECONDS)
    except (WorkerError, ConfigError, OSError) as error:  # there is no folder, or no process could be started
        return [Finding(f"queue {queue}", NO, _first_line(error)) for queue in QUEUES]
    found = []
    for row in table.itertuples():
        if row.works:
            found.append(Finding(f"queue {row.queue}", OK, f"moves pages{where}"))
        else:
            reason = _first_line(row.reason)
            settings = _kernel_settings(row.queue) if REFUSED in reason else ""
            found.append(Finding(f"queue {row.queue}", NO, reason, settings))
    return found


def _kernel_settings(queue: str) -> str:
    values = []
    for name in KERNEL[queue]:
        try:
            values.append(f"{name.replace('/', '.')} is {Path('/proc/sys', name).read_text().strip()}")
        except OSError:
            continue  # this kernel does not have it, or this container hides it
    return "; ".join(values)


def descriptor_finding() -> Finding:
    """Find the limits of open files, and what they mean for a server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = SGLANG_ASKS_FOR if soft < SGLANG_ASKS_FOR <= hard else soft
    ceiling = int(Path("/proc/sys/fs/nr_open").read_text())
    needed = RECORDED_BASELINE + FILES_PER_PAGE * LARGEST_CALL
    pages = max(0, server - RECORDED_BASELINE) // FILES_PER_PAGE
    limits = f"soft {soft}, hard {hard}, at most {ceiling} as root"
    if server < needed:
        call = FILES_PER_PAGE * LARGEST_CALL
        need = f"a server has about {RECORDED_BASELINE} open, and a call of {LARGEST_CALL} pages opens {call} more"
        return Finding("open files", NO, f"{limits}; {need}", RAISE_LIMIT)
    if server < SGLANG_ASKS_FOR:
        end = f"SGLang asks for {SGLANG_ASKS_FOR} and gets {server}: a connector that leaks uses them up after {pages} pages"
        return Finding("open files", NOTE, f"{limits}; {end}", RAISE_LIMIT)
    return Finding(
        "open files",
        OK,
        f"{limits}; SGLang gets {server}: a connector that leaks uses them up after {pages} pages",
    )


def storage_findings(storage: Storage) -> list[Finding]:
    """Find whether the storage folder can be used, and what file system it is on."""
    named = f"{storage.folder} ({storage.source})"
    if storage.place is None:
        return [
            Finding("storage folder", NO, f"{named} {storage.problem}", storage.advice),
            *(Finding(what, NOTE, f"not tried: {NO_FOLDER}") for what in ("file system", "O_DIRECT")),
        ]
    if storage.place == storage.folder:
        found = [Finding("storage folder", OK, f"{named} can be written to")]
    else:
        made = f"{named} does not exist yet; the connector creates it in {storage.place}"
        found = [Finding("storage folder", OK, made)]
    disk = storage_check.file_system(storage.place)
    about = f"{disk.kind}, {disk.free_bytes / 1e9:.1f} GB free; {disk.options}"
    if disk.in_memory:
        advice = "Choose a folder on a disk; check it with --storage-dir"
        found.append(Finding("file system", NOTE, f"this is memory, not a disk: {about}", advice))
    else:
        found.append(Finding("file system", OK, about))
    works, result = storage_check.direct_io(storage.place)
    if works and disk.in_memory:
        found.append(
            Finding("O_DIRECT", NOTE, f"{result}; without effect, since there is no page cache in memory")
        )
    elif works:
        found.append(Finding("O_DIRECT", OK, result))
    else:
        advice = "use_direct_io falls back to the page cache there; ext4, XFS and NFS support it"
        found.append(Finding("O_DIRECT", NO, result, advice))
    return found


def leak_findings(sglang: SGLang | None, storage: Storage) -> tuple[Finding, ...]:
    """Find which connector leaks: that of the installed SGLang, of the releases, and of this package."""
    return (
        sglang_finding(sglang, storage),
        Finding("SGLang's releases", NOTE, RELEASES),
        Finding("this package", OK, "leaks neither (lifetime scoped, the default)"),
    )


def sglang_finding(sglang: SGLang | None, storage: Storage) -> Finding:
    """Find which SGLang is installed, and what its connector leaks."""
    if sglang is None:
        advice = "Check another environment with --sglang FOLDER"
        return Finding(YOUR_SGLANG, NOTE, "not installed in this environment", advice)
    judged = sglang_check.judge(sglang, storage.place, timeout=SECONDS)
    about = f"{sglang.name} {judged.leak} ({judged.evidence}); it is in {sglang.folder}"
    return Finding(YOUR_SGLANG, _state_of(judged), about, _advice_on(judged))


def _state_of(judged: Verdict) -> str:
    if judged.leak == NEITHER:
        return OK if judged.measured else NOTE
    return NOTE if judged.leak == UNKNOWN else NO


def _advice_on(judged: Verdict) -> str:
    if judged.leak == LEAK:
        return "It lacks PR #24671: use 0.5.13 or later, or the connector of this package"
    if judged.leak in (NEITHER, UNKNOWN):
        return ""
    return "It has PR #24671 and lacks PR #25173: use 0.5.13 or later, or the connector of this package"


def _first_line(reason: object) -> str:
    return (str(reason).splitlines() or ["no reason was given"])[0].removesuffix(".")
