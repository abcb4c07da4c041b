"""Raw access to what each store holds, past the connector: tests put, get and damage pieces through it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import in_memory
from support import LEFT, names_open

from hicache_nixl.lifetimes import FILE_PER_PIECE

STORES = (*FILE_PER_PIECE, "in_memory")
ALONE = tuple(name for name in STORES if not LEFT[name].fails_together)  # where a bad page fails alone
# What can happen to a piece in any store, and the error of a get that follows.
DAMAGE: dict[str, tuple[Callable[[bytes], bytes] | None, str]] = {
    "missing": (None, "[Errno 2]"),
    "truncated": (lambda content: content[:-1], "[Errno 5] holds 3071 of 3072 bytes"),
    "halved": (lambda content: content[: len(content) // 2], "[Errno 5] holds 1536 of 3072 bytes"),
    "empty": (lambda content: b"", "[Errno 5] holds 0 of 3072 bytes"),
    "longer": (lambda content: content + b"\0", "[Errno 5] holds 3073 of 3072 bytes"),
}


class Raw(Protocol):
    """The pieces of a store by name."""

    def names(self) -> list[str]:
        """Return the sorted names of all pieces."""

    def get(self, name: str) -> bytes:
        """Return the bytes of a piece."""

    def put(self, name: str, content: bytes) -> None:
        """Store the bytes of a piece."""

    def remove(self, name: str) -> None:
        """Remove a piece."""

    def handles(self) -> list[str]:
        """Return the names of the pieces that are held open, one for each handle."""


class Files:
    """Pieces that are files of a folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def names(self) -> list[str]:
        return sorted(os.listdir(self._folder)) if self._folder.exists() else []

    def get(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def put(self, name: str, content: bytes) -> None:
        (self._folder / name).write_bytes(content)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()

    def handles(self) -> list[str]:
        return names_open(self._folder)


class Dict:
    """Pieces that are entries of a dict."""

    def __init__(self, folder: Path):
        self._pieces = in_memory.STORES.setdefault(str(folder), {})

    def names(self) -> list[str]:
        return sorted(self._pieces)

    def get(self, name: str) -> bytes:
        return self._pieces[name]

    def put(self, name: str, content: bytes) -> None:
        self._pieces[name] = content

    def remove(self, name: str) -> None:
        del self._pieces[name]

    def handles(self) -> list[str]:
        return []


def raw_access(lifetime: str, folder: Path) -> Raw:
    """Return raw access to the store of a lifetime in a folder."""
    return Dict(folder) if lifetime == "in_memory" else Files(folder)


def damage(raw: Raw, name: str, how: str) -> None:
    """Damage a piece in one of the ways of ``DAMAGE``."""
    change = DAMAGE[how][0]
    if change is None:
        raw.remove(name)
    else:
        raw.put(name, change(raw.get(name)))
