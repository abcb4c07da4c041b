"""The CSV of a watch: written sample by sample, and read back."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from ..errors import ConfigError, FileError
from ..interrupts import deferred
from .sample import COLUMNS, Sample


class WatchFileError(ConfigError):
    """A file that is not the CSV of a watch, or cannot be created as one."""


class WatchFile:
    """The CSV of a watch; each sample is in it as soon as it was taken.

    Raises
    ------
    WatchFileError
        When the file exists already, or cannot be created.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        try:
            deferred(self._create, path)
        except BaseException:  # such as an interrupt that arrived meanwhile
            if hasattr(self, "_file"):
                self.close()
            raise

    def _create(self, path: str | os.PathLike[str]) -> None:
        self._samples = 0
        try:
            self._file = open(self.path, "xb", buffering=0)
        except FileExistsError:
            raise WatchFileError(f"--csv {path} {_what_is_there(self.path)}; name a new file") from None
        except OSError as error:
            raise WatchFileError(
                f"--csv {path}: {error.strerror}; expected a new file in an existing folder"
            ) from None
        self._size = 0
        try:
            self._write(",".join(COLUMNS) + "\n")
        except FileError as error:
            raise WatchFileError(
                f"--csv {path}: {error.strerror}; expected a file with room to grow"
            ) from None

    def write(self, sample: Sample) -> None:
        """Write one sample completely or not at all.

        Raises
        ------
        FileError
            When the disk is full, for instance; the samples before this one stay in the file.
        """
        self._write(sample.line())
        self._samples += 1

    def _write(self, line: str) -> None:
        data = line.encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise FileError.of(error, str(self.path)) from error
        self._size = self._file.tell()

    def close(self) -> None:
        """Close the file, and remove it if it has no sample; may be called twice."""
        if not self._file.closed and not self._samples:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> WatchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_watch(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read the CSV of ``hicache-nixl watch``.

    Returns
    -------
    pandas.DataFrame
        ``COLUMNS``; ``storage_fds`` is missing where no folder was named, ``limit`` where there is none.

    Raises
    ------
    WatchFileError
        When it is not such a file.
    """
    try:
        table = pd.read_csv(Path(path), dtype=str)  # a Path, since pandas would load a URL as well
    except (OSError, ValueError) as error:  # ValueError: no columns, not a CSV, not text
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise WatchFileError(f"{path}: {reason}; expected a CSV of hicache-nixl watch") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise WatchFileError(f"{path}: no column {', '.join(missing)}; expected a CSV of hicache-nixl watch")
    if table.empty:
        raise WatchFileError(f"{path}: the file has no samples")
    table["time"] = pd.to_datetime(table["time"], utc=True, errors="coerce", format="ISO8601")
    for name in COLUMNS[1:]:
        whole = "" if name == "seconds" else " whole"
        numbers = pd.to_numeric(table[name], errors="coerce")
        optional = table[name].isna() & (name in ("storage_fds", "limit"))
        wrong = ~optional & (numbers.isna() | (numbers < 0) | (bool(whole) & (numbers % 1 != 0)))
        if wrong.any():
            line = int(wrong.idxmax())
            found = "missing" if pd.isna(table[name][line]) else repr(table[name][line])
            raise WatchFileError(f"{path}: line {line + 2}: {name} is {found}, not a{whole} number")
        table[name] = numbers.astype("float64" if name == "seconds" else "Int64")
    if table["time"].isna().any():
        raise WatchFileError(f"{path}: line {int(table['time'].isna().idxmax()) + 2}: time is not a time")
    if not table["seconds"].is_monotonic_increasing or not table["seconds"].is_unique:
        raise WatchFileError(f"{path}: seconds do not increase from line to line")
    return table[list(COLUMNS)]


def _what_is_there(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "is a symbolic link to nowhere"
    if path.is_dir():
        return "is a folder"
    return "exists already" if path.is_file() else "is a device or a pipe"
