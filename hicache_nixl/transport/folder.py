"""The storage folder: how it is made, and who else may write to it.

A page that another user put there would be loaded into the model's cache.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import ConfigError, FileError

# A KV page contains the input of a user: only the owner of the process may read it.
FILE_MODE, FOLDER_MODE = 0o600, 0o700
ROOT = 0


def make_folder(path: str) -> None:
    """Create a folder and its missing parents, accessible to their owner only, whatever the umask."""
    folder = Path(path)
    try:
        for missing in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
            try:
                missing.mkdir(FOLDER_MODE)
                missing.chmod(FOLDER_MODE)
            except FileExistsError:
                if not missing.is_dir():
                    raise
    except OSError as error:
        raise FileError.of(error, path) from error


def refuse_shared(path: str, user: int) -> None:
    """Raise ``ConfigError`` if anyone but a user and root can write to a folder.

    Parameters
    ----------
    user : int
        The owner of a new file in this folder.  On NFS that need not be the user of the process.
    """
    status = os.stat(path)
    if status.st_uid not in (user, ROOT):
        problem, way_out = f"belongs to user {status.st_uid}, and this process is user {user}", "chown it"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem, way_out = (
            f"can be written by others (mode {stat.S_IMODE(status.st_mode):04o})",
            "chmod go-w it",
        )
    else:
        return
    raise ConfigError(
        f"storage folder {path} {problem}, who could put pages into the cache of the model; {way_out}, "
        f"use a folder of your own such as {path}/pages, or set allow_shared_folder to true in the extra config"
    )
