"""What can run on this machine, by what the checks found."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

from ..lab.worker.releases import cache_folder, known_releases
from . import storage_check
from .finding import NO, NOTE, OK, Finding
from .machine import NO_FOLDER
from .plugin_check import Build
from .storage_check import Storage

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
NEEDS_GPU = "needs an NVIDIA GPU with GPUDirect Storage"
WHAT = {
    "POSIX": "pages in files",
    "O_DIRECT": "files, O_DIRECT",
    "OBJ": "pages in S3 (OBJ)",
    "GDS": "GPU storage (GDS)",
    "3FS": "pages in 3FS",
}
# What the profiles of the notebooks need: the hard limit of RLIMIT_NOFILE, and GB of pages at a time.
NOTEBOOKS = {"quick": (6144, 2), "full": (16500, 6)}


def verdicts(
    storage: Storage, queues: Sequence[Finding], folder: Sequence[Finding], builds: Sequence[Build]
) -> tuple[Finding, ...]:
    """Say what this machine can run."""
    posix = _posix_verdict(storage, queues)
    return (
        posix,
        _direct_verdict(posix, folder[-1]),
        _plugin_verdict("OBJ", builds, "the build nixl_cu12 has a plugin OBJ that loads without CUDA"),
        _plugin_verdict(
            "GDS", builds, NEEDS_GPU + ("" if NVIDIA_DRIVER.exists() else "; no NVIDIA driver here")
        ),
        _plugin_verdict("3FS", builds, "the wheels of NIXL do not contain this plugin"),
        *(_notebooks_verdict(profile, posix, storage) for profile in NOTEBOOKS),
        peers_verdict(),
    )


def _posix_verdict(storage: Storage, queues: Sequence[Finding]) -> Finding:
    working = [finding.what.removeprefix("queue ") for finding in queues if finding.state == OK]
    if storage.place is not None and working:
        return Finding(WHAT["POSIX"], OK, f"on {', '.join(working)}")
    return Finding(WHAT["POSIX"], NO, NO_FOLDER if working else "no queue works")


def _direct_verdict(posix: Finding, tried: Finding) -> Finding:
    if posix.state == NO:
        return Finding(WHAT["O_DIRECT"], NO, posix.detail)
    meaning = {OK: "bypasses the page cache", NOTE: "without effect", NO: "uses the page cache"}
    return Finding(WHAT["O_DIRECT"], tried.state, meaning[tried.state])


def _plugin_verdict(name: str, builds: Sequence[Build], otherwise: str) -> Finding:
    created = [build.name for build in builds if (plugin := build.plugin(name)) and plugin.state == OK]
    if not created:
        return Finding(WHAT[name], NO, otherwise)
    return Finding(WHAT[name], OK, f"{' and '.join(created)} can create it; not tried with a page")


def _notebooks_verdict(profile: str, posix: Finding, storage: Storage) -> Finding:
    """Say whether there are the descriptors and the space that a profile of the notebooks needs."""
    limit, gigabytes = NOTEBOOKS[profile]
    what = f"notebooks, {profile}"
    if posix.state == NO or storage.place is None:
        return Finding(what, NO, posix.detail)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < limit:
        return Finding(what, NO, f"needs a hard limit of {limit} open files; it is {hard} here")
    free = storage_check.file_system(storage.place).free_bytes
    if free < gigabytes * 1e9:
        return Finding(what, NO, f"needs {gigabytes} GB of space; {free / 1e9:.1f} GB are free")
    return Finding(what, OK, f"{limit} open files and {gigabytes} GB are available")


def enough_for_notebooks() -> bool:
    """Return whether the hard limit of open files is high enough for the quick profile of the notebooks."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= NOTEBOOKS["quick"][0]


def peers_verdict() -> Finding:
    """Say which released connectors, which the notebooks compare, are in the cache, without asking a registry."""
    folder = cache_folder()
    kept = [name for name, row in known_releases().items() if os.path.isfile(folder / row.wheel)]
    missing = [name for name in known_releases() if name not in kept]
    parts = [f"downloaded: {', '.join(kept)}"] if kept else []
    parts += [f"downloaded with pip when they are compared: {', '.join(missing)}"] if missing else []
    return Finding("releases to compare", OK if not missing else NOTE, "; ".join(parts))
