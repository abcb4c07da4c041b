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
    files: int = 2000, *, rounds: int = 6, repeats: int, storage_dir: str | os.PathLike[str] | None = None
) -> pd.DataFrame:
    """Create small files in a new folder and delete them, round after round.

    ext4 may skip the inodes of deleted files for some minutes, one by one, so that creating a file takes longer the
    more were deleted nearby.  A store of a file per page meets this as soon as it evicts pages.  Plain files without
    NIXL; each repetition has a folder of its own, which ext4 places apart from the others.

    Returns
    -------
    pandas.DataFrame
        A row per repetition and round: ``repeat``; ``deleted``, the files that were deleted in this folder before the
        round; ``files``, those that it creates; and ``seconds`` for creating all of them.

    Examples
    --------
    >>> deletion_times(10, rounds=3, repeats=1).deleted.tolist()
    [0, 10, 20]
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="hicache-nixl-", dir=storage_dir) as parent:
        for repeat in tqdm(range(repeats), desc="creating files", unit="repeat", leave=False):
            folder = Path(new_subfolder(parent))
            for deleted in range(0, rounds * files, files):
                paths = [folder / str(deleted + number) for number in range(files)]
                start = time.perf_counter()
                for path in paths:
                    path.write_bytes(bytes(SIZE))
                seconds = time.perf_counter() - start
                rows.append({"repeat": repeat, "deleted": deleted, "files": files, "seconds": seconds})
                for path in paths:
                    path.unlink()
    return pd.DataFrame(rows)
