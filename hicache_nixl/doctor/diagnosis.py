"""Everything that the doctor finds out about this machine."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from . import machine, plugin_check, storage_check
from .finding import NO, OK, Finding
from .plugin_check import Build
from .sglang_check import SGLang
from .verdicts import enough_for_notebooks, verdicts

PACKAGES = ("hicache-nixl", "nixl", "torch")


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes
    ----------
    versions : dict
        Version by package; None for what is not installed.
    leak : tuple of Finding
        Which connector leaks: that of the installed SGLang, of the releases, and of this package.
    can_run : tuple of Finding
        What can run here.
    machine : tuple of Finding
        Queues, descriptors, storage folder.
    builds : tuple of Build
        NIXL's builds and their plugins.
    leaking : bool
        Whether the connector of the installed SGLang leaks.
    usable : bool
        Whether the connector can run here: the POSIX plugin works on a queue, and the folder can be written to.
    enough_files : bool
        Whether the limit of open files is high enough for a server, and for the notebooks.
    """

    versions: dict[str, str | None]
    leak: tuple[Finding, ...]
    can_run: tuple[Finding, ...]
    machine: tuple[Finding, ...]
    builds: tuple[Build, ...]
    leaking: bool
    usable: bool
    enough_files: bool


def diagnose(
    storage_dir: str | None = None,
    sglang: SGLang | None = None,
    progress: Callable[[str], object] = lambda step: None,
) -> Diagnosis:
    """Check this machine by trying things, in some seconds, and leave nothing behind.

    Parameters
    ----------
    storage_dir : str, optional
        The folder to check; what a server would use when left out.
    sglang : SGLang, optional
        What ``sglang_check.find`` found.
    progress : callable, optional
        Called with what is being tried.
    """
    progress("plugins of NIXL")
    with plugin_check.probing() as plugins:  # in the background
        storage = storage_check.find(storage_dir)
        progress("queues of the POSIX plugin")
        queues = machine.queue_findings(storage)
        progress("open files and the storage folder")
        folder = machine.storage_findings(storage)
        progress("the connector of SGLang")
        leak = machine.leak_findings(sglang, storage)
        progress("plugins of NIXL")
        builds = tuple(plugins())
    files = machine.descriptor_finding()
    can_run = verdicts(storage, queues, folder, builds)
    return Diagnosis(
        versions(),
        leak,
        can_run,
        (*queues, files, *folder),
        builds,
        leaking=leak[0].state == NO,
        usable=can_run[0].state == OK,
        enough_files=files.state != NO and enough_for_notebooks(),
    )


def versions() -> dict[str, str | None]:
    """Return the version of Python and of each package that is needed."""
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
