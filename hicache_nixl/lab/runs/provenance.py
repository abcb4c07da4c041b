"""Machine, versions and storage that a result was measured with."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import psutil

from ...resources import resource as project_path

if TYPE_CHECKING:
    from .run import Run

PACKAGES = (
    "hicache-nixl",
    "nixl",
    "nixl-cu12",
    "nixl-cu13",
    "torch",
    "numpy",
    "pandas",
    "matplotlib",
    "papermill",
)


def provenance(storage_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return the machine, versions, limits and storage of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": {"model": _cpu_model(), "cores": psutil.cpu_count()},
        "memory_bytes": psutil.virtual_memory().total,
        "nofile_limit": {"soft": soft, "hard": hard},
        "storage": _storage(Path(storage_dir or tempfile.gettempdir())),
    }


def describe(run: Run) -> pd.DataFrame:
    """Return the provenance of a run as a short table."""
    known = run.files.provenance()
    storage = known["storage"]
    rows = {
        "python, nixl, torch": ", ".join(
            str(known["versions"][name]) for name in ("python", "nixl", "torch")
        ),
        "kernel": known["kernel"],
        "cpu": f"{known['cpu']['model']}, {known['cpu']['cores']} cores",
        "storage folder on": f"{storage['file_system']} ({storage['options']})",
        "RLIMIT_NOFILE": f"soft {known['nofile_limit']['soft']}, hard {known['nofile_limit']['hard']}",
        "git commit": known["git_commit"],
    }
    return pd.DataFrame(rows.items(), columns=["what", "value"])


def file_system(storage_dir: str | os.PathLike[str] | None = None) -> str:
    """Return the type of the file system that a folder, or the folder for temporary files, is on."""
    return _storage(Path(storage_dir or tempfile.gettempdir()))["file_system"]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of the clone, with ``+changes`` when files differ from it."""
    root = project_path("hicache_nixl").parent
    if not (root / ".git").exists():
        return None  # installed from a wheel
    try:
        described = subprocess.run(
            [
                "git",
                "-C",
                str(root),
                "describe",
                "--always",
                "--abbrev=12",
                "--dirty=+changes",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or sys.platform


def _storage(folder: Path) -> dict[str, str]:
    mount = mount_of(folder)
    return {"file_system": mount.fstype, "options": mount.opts, "mounted_on": mount.mountpoint}


def mount_of(place: Path) -> Any:
    """Return the mount that a folder lies on, as ``psutil.disk_partitions`` gives it."""
    place = place.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if place.is_relative_to(part.mountpoint)]
    longest = max(len(part.mountpoint) for part in mounts)
    return [part for part in mounts if len(part.mountpoint) == longest][
        -1
    ]  # a later mount covers an earlier one
