"""Options of a server that depend on the machine: they are checked before anything is installed or started."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

from ...errors import ConfigError

LEAST_DESCRIPTORS = (
    200  # a scheduler has some 60 when it answers first, and 22 more with the call of a prompt
)


def check_nofile_limit(limit: int) -> None:
    """Refuse a limit of descriptors that cannot be set, or that a server cannot start with; 0 stands for none."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and limit > hard:
        raise ConfigError(f"nofile_limit is {limit}; the hard limit is {hard}")
    if limit and limit < LEAST_DESCRIPTORS:
        raise ConfigError(
            f"nofile_limit is {limit}; a server needs {LEAST_DESCRIPTORS} to start and to answer, and 400 shows the leak"
        )


def check_storage_dir(folder: Path) -> None:
    """Refuse a storage folder that is none, cannot be made in a folder that exists, or cannot be written to."""
    try:
        if not folder.is_dir():
            if folder.exists():
                raise ConfigError(f"storage folder {folder}: it is a file, not a folder")
            if not folder.absolute().parent.is_dir():
                raise ConfigError(f"storage folder {folder}: there is no folder {folder.absolute().parent}")
        tempfile.TemporaryFile(dir=folder if folder.is_dir() else folder.absolute().parent).close()
    except OSError as error:
        raise ConfigError(f"storage folder {folder} cannot be written to: {error.strerror}") from error
