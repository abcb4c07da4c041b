"""Two ways to publish a file only when all its bytes are written, and what each costs."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pandas as pd

from .alternating import alternating, counted

WAYS = ("size", "rename")


def publish_times(
    files: int, size: int, *, repeats: int, storage_dir: str | os.PathLike[str] | None = None
) -> pd.DataFrame:
    """Write files of ``size`` bytes, alternately under their final name and under a temporary one that is renamed.

    Under its final name, an incomplete file is recognized by its size, which is what ``scoped`` does.  These are
    plain writes without NIXL: both ways move the same bytes in the same way and differ in the names only.

    Returns
    -------
    pandas.DataFrame
        ``pair``, ``way`` (``"size"`` or ``"rename"``) and ``seconds`` for all the files.
    """
    data, rows = os.urandom(size), []
    with tempfile.TemporaryDirectory(dir=storage_dir) as folder:
        for pair, way in alternating(WAYS, repeats, label=f"files of {size} bytes"):
            paths = [Path(folder) / f"{way}{pair}_{number}" for number in range(files)]
            start = time.perf_counter()
            for path in paths:
                _write(path, data, beside=way == "rename")
            rows.append({"pair": pair, "way": way, "seconds": time.perf_counter() - start})
    return counted(rows)


def _write(path: Path, data: bytes, beside: bool) -> None:
    target = path.with_suffix(".part") if beside else path
    fd = os.open(target, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    if beside:
        target.rename(path)
