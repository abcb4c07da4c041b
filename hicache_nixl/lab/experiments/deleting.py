"""What deleting files costs the creation of others."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pandas as pd

from ..progress import tqdm
from ..worker.placement import new_subfolder

SIZE = 4096  # bytes of a file


def deletion_times(
    files: int = 4000, *, repeats: int, storage_dir: str | os.PathLike[str] | None = None
) -> pd.DataFrame:
    """Create small files in a new folder, delete them, and create as many again.

    On ext4 the second creation may take several times as long, for the file system does not reuse the inode of a
    deleted file for some minutes and searches past such inodes one by one.  A store of a file per page meets this as
    soon as it evicts pages.  Plain files without NIXL; each repetition has a folder of its own, which ext4 places
    apart from the others.

    Returns
    -------
    pandas.DataFrame
        ``repeat``, ``when`` (``"new folder"`` or ``"after deleting"``), ``files`` and ``seconds`` for all the files.

    Examples
    --------
    >>> table = deletion_times(10, repeats=1)
    >>> table.when.tolist()
    ['new folder', 'after deleting']
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="hicache-nixl-", dir=storage_dir) as parent:
        for repeat in tqdm(range(repeats), desc="creating files", unit="repeat", leave=False):
            folder = Path(new_subfolder(parent))
            for when in ("new folder", "after deleting"):
                paths = [folder / f"{when[0]}{number}" for number in range(files)]
                start = time.perf_counter()
                for path in paths:
                    path.write_bytes(bytes(SIZE))
                seconds = time.perf_counter() - start
                rows.append({"repeat": repeat, "when": when, "files": files, "seconds": seconds})
                for path in paths:
                    path.unlink()
    return pd.DataFrame(rows)
