"""Two ways to let nobody see a page before all its bytes are there, and what each costs."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pandas as pd

from ..progress import tqdm

WAYS = ("size", "rename")


def publish_times(
    files: int, size: int, *, repeats: int, storage_dir: str | os.PathLike[str] | None = None
) -> pd.DataFrame:
    """Write files of ``size`` bytes, alternately under their name and beside it with a rename at the end.

    Under its name a file tells by its size that it is not whole yet, which is what ``scoped`` does.  Plain writes
    without NIXL: both ways move the same bytes in the same way, so the difference is that of the names.

    Returns
    -------
    pandas.DataFrame
        ``pair``, ``way`` (``"size"`` or ``"rename"``) and ``seconds`` for all the files.
    """
    data, rows = os.urandom(size), []
    with tempfile.TemporaryDirectory(dir=storage_dir) as folder:
        for pair in tqdm(range(-1, repeats), desc=f"files of {size} bytes", unit="pair", leave=False):
            for way in WAYS if pair % 2 else WAYS[::-1]:
                paths = [Path(folder) / f"{way}{pair}_{number}" for number in range(files)]
                start = time.perf_counter()
                for path in paths:
                    _write(path, data, beside=way == "rename")
                rows.append({"pair": pair, "way": way, "seconds": time.perf_counter() - start})
    table = pd.DataFrame(rows)
    return table[table.pair >= 0].reset_index(drop=True)


def _write(path: Path, data: bytes, beside: bool) -> None:
    target = path.with_suffix(".part") if beside else path
    fd = os.open(target, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    if beside:
        target.rename(path)
