"""What a connector has stored, read past it: one class for each kind of store.

A connector that swaps keys and values, or writes at another offset, would read its own pages back without an error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from ...errors import HiCacheNixlError
from ...lifetimes.pooled.inspection import Inspection
from ...lifetimes.pooled.keys import numbers_of
from .setup import Setup


class Stored(Protocol):
    """The pages in a store."""

    def wrong(self, key: str, content: bytes) -> str:
        """Compare a page with what it should be; return why it is wrong, empty when it is right."""


def stored_by(setup: Setup, folder: Path) -> Stored:
    """Return access to what the connector of a setup stores in a folder."""
    if setup.on_objects:
        return Unknown()
    return Segments(folder) if setup.connector == "pooled" else Files(setup, folder)


class Unknown:
    """Objects, and the pages of a benchmark, which are not read."""

    def wrong(self, key: str, content: bytes) -> str:
        """Return that nothing is known to be wrong."""
        return ""


class Segments:
    """Pages of ``pooled``; nothing of the store stays open after a look."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._space: int | None = None  # that of all pages

    def wrong(self, key: str, content: bytes) -> str:
        """Compare the pieces of a page, in the place that the index has for it."""
        try:
            with Inspection(self._folder) as inspection:
                rows = inspection.find(numbers_of([key]), self._space)
                if not len(rows):
                    return f"the set says that {key} is stored: it is not in the index"
                self._space = int(rows["space"][0])
                found = b"".join(inspection.pieces(rows[0]))
        except HiCacheNixlError as error:
            return f"the set says that {key} is stored: {error}"
        if len(found) != len(content):
            return f"the set stored {len(found)} bytes of {key}, expected {len(content)}"
        return "" if found == content else f"the set stored other bytes than those of {key}"


class Files:
    """A file for each piece of a page, named as SGLang names it."""

    def __init__(self, setup: Setup, folder: Path):
        self._folder, self._direct = folder, setup.direct
        self._pieces: tuple[str, ...] = (
            ("",) if setup.layout == "layer_first" else ("_k",) if setup.mla else ("_k", "_v")
        )
        self._middle: str | None = None  # what stands between the key and the piece in a file's name

    def wrong(self, key: str, content: bytes) -> str:
        """Compare the files of a page with its pieces."""
        self._pieces = self._pieces if self._middle is not None else self._stored_pieces(key)
        size = len(content) // len(self._pieces)
        for number, piece in enumerate(self._pieces):
            try:
                found = self._read(self._path(key, piece))
            except OSError as error:
                return f"the set says that {key} is stored: {error}"
            if len(found) != size:
                return f"the set stored {len(found)} bytes of {key}{piece}, expected {size}"
            if found != content[number * size : (number + 1) * size]:
                return f"the set stored other bytes than those of {key}{piece}"
        return ""

    def _stored_pieces(self, key: str) -> tuple[str, ...]:
        """Return the pieces that a page is stored in: O_DIRECT may need a copy of it, in one file without a suffix."""
        if not self._direct:
            return self._pieces
        files = [path.name for path in self._folder.rglob(f"{key}*")]
        return ("",) if files and not any(name.endswith(self._pieces) for name in files) else self._pieces

    def _path(self, key: str, piece: str) -> Path:
        """Find a file by its name, in the folder or in one below it."""
        if self._middle is None:
            found = next(self._folder.rglob(f"{key}*{piece}"), None)
            if found is None:
                return self._folder / f"{key}{piece}"
            self._middle = found.name.removeprefix(key).removesuffix(piece)
        name = f"{key}{self._middle}{piece}"
        path = self._folder / name
        return path if path.exists() else next(self._folder.glob(f"*/{name}"), path)

    def _read(self, path: Path) -> bytes:
        with path.open("rb") as file:
            content = file.read()
            if self._direct:  # the next get is to find nothing of it in the page cache
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return content
