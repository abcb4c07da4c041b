"""Raw access to what each store holds, past the connector: tests put, get and damage pieces through it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import in_memory
from object_pieces import ObjectRecords, Objects
from pooled_store import Records
from support import LEFT, STORE_VARIABLE, names_open

from hicache_nixl.lifetimes import LIFETIMES

# Over objects in a process of its own, which has loaded the build of NIXL with OBJ; see test_objects_contract.py.
STORES = ("scoped_objects", "pooled_objects") if STORE_VARIABLE in os.environ else (*LIFETIMES, "in_memory")
ALONE = tuple(name for name in STORES if not LEFT[name].fails_together)  # where a bad page fails alone
BY_PIECE = tuple(name for name in STORES if not LEFT[name].one_record)  # where a piece can be stored by hand
# What can happen to a piece in any store: its size afterwards, None if it is missing, and the error of a get.
DAMAGE: dict[str, tuple[Callable[[int], int] | None, str]] = {
    "missing": (None, "[Errno 2]"),
    "truncated": (lambda size: size - 1, "[Errno 5] holds 3071 of 3072 bytes"),
    "halved": (lambda size: size // 2, "[Errno 5] holds 1536 of 3072 bytes"),
    "empty": (lambda size: 0, "[Errno 5] holds 0 of 3072 bytes"),
    "longer": (lambda size: size + 1, "[Errno 5] holds 3073 of 3072 bytes"),
}
NOT_STORED = "not stored, or not with this size"  # the only error of stores that keep a page as one record


class Raw(Protocol):
    """The pieces of a store by name."""

    def names(self) -> list[str]:
        """Return the sorted names of all pieces."""

    def get(self, name: str) -> bytes:
        """Return the bytes of a piece."""

    def put(self, name: str, content: bytes) -> None:
        """Store the bytes of a piece; not for stores that keep a page as one record."""

    def resize(self, name: str, size: int) -> None:
        """Give a piece another size."""

    def remove(self, name: str) -> None:
        """Remove a piece."""

    def handles(self) -> list[str]:
        """Return the names of the files that are held open beyond those of an idle store, one for each handle."""


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

    def resize(self, name: str, size: int) -> None:
        os.truncate(self._folder / name, size)

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

    def resize(self, name: str, size: int) -> None:
        self._pieces[name] = self._pieces[name][:size].ljust(size, b"\0")

    def remove(self, name: str) -> None:
        del self._pieces[name]

    def handles(self) -> list[str]:
        return []


def raw_access(lifetime: str, folder: Path) -> Raw:
    """Return raw access to the store of a lifetime in a folder."""
    kinds: dict[str, Callable[[Path], Raw]] = {
        "in_memory": Dict,
        "pooled": Records,
        "scoped_objects": Objects,
        "pooled_objects": ObjectRecords,
    }
    return kinds.get(lifetime, Files)(folder)


def damage(raw: Raw, name: str, how: str) -> None:
    """Damage a piece in one of the ways of ``DAMAGE``."""
    change = DAMAGE[how][0]
    if change is None:
        raw.remove(name)
    else:
        raw.resize(name, change(len(raw.get(name))))


def complaint(lifetime: str, name: str, how: str = "missing") -> list[str]:
    """Return what the error line of a get says after a piece was damaged."""
    if lifetime == "scoped_objects":
        told = {"missing": "there is no such object", "empty": "holds 0 of 3072 bytes"}
        return [name, told.get(how, "another size than 3072 bytes")]
    if LEFT[lifetime].one_record:
        return [repr(name.partition("_")[0]), NOT_STORED]
    return [name, DAMAGE[how][1]]
