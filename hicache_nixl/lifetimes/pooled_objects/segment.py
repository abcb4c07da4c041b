"""The format of a segment: the name of its object, and what stands in front of its pages."""

from __future__ import annotations

import os
import re
import struct
import time
from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_64_intdigest

from ...errors import DamagedError

FOLDER = "pooled-1"  # the number is that of the format
_HEADER = struct.Struct("<8sIIQQQ")  # magic, format, pages, bytes of a page, space, checksum of the rest
KEY_BYTES = 32
_ROW = KEY_BYTES + 8  # bytes: key, checksum of the page
_MAGIC, _FORMAT = b"hicnixlo", 1
HEADER_BYTES = 64
MOST_PAGES = 1 << 20  # of a segment
_NAME = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}-([0-9a-f]{1,8})-([0-9a-f]{1,12})")


@dataclass(frozen=True)
class Name:
    """The name of a segment.

    Attributes
    ----------
    space : int
        What its pages have in common, see ``pooled.keys.space_of``.
    time : int
        Nanoseconds since 1970 by the clock of its writer.
    base : str
        The name without folder and space, which is unique.
    pages, page_bytes : int
    """

    space: int
    time: int
    base: str
    pages: int
    page_bytes: int

    @classmethod
    def new(cls, space: int, pages: int, page_bytes: int) -> Name:
        """Return a name that no other segment has."""
        now = time.time_ns()
        base = f"{now:016x}-{unique()}-{pages:x}-{page_bytes:x}"
        return cls(space, now, base, pages, page_bytes)

    @classmethod
    def read(cls, space: int, path: str) -> Name | None:
        """Return the name of an object; None for one that is no segment."""
        base = path.rpartition("/")[2]
        match = _NAME.fullmatch(base)
        if match is None or not 0 < (pages := int(match[2], 16)) <= MOST_PAGES:
            return None
        return cls(space, int(match[1], 16), base, pages, int(match[3], 16))

    @property
    def path(self) -> str:
        """The name of the object."""
        return folder_of(self.space) + self.base

    @property
    def head_bytes(self) -> int:
        """Bytes in front of the first page."""
        return HEADER_BYTES + self.pages * _ROW

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return size_of(self.pages, self.page_bytes)


def size_of(pages: int, page_bytes: int) -> int:
    """Return the bytes of a segment."""
    return HEADER_BYTES + pages * (_ROW + page_bytes)


def unique() -> str:
    """Return 16 hexadecimal digits by chance; with the time in front they are those of no other process or call."""
    return os.urandom(8).hex()


def folder_of(space: int) -> str:
    """Return what the names of the segments of a space begin with."""
    return f"{FOLDER}/{space:016x}/"


def since(space: int, moment: int) -> str:
    """Return a name that is before those of all segments since a moment, in nanoseconds since 1970."""
    return f"{folder_of(space)}{max(moment, 0):016x}"


def keys_of(numbers: bytes) -> list[bytes]:
    """Return keys that stand one behind the other."""
    return [numbers[at : at + KEY_BYTES] for at in range(0, len(numbers), KEY_BYTES)]


def head(name: Name, keys: np.ndarray, checks: np.ndarray) -> bytes:
    """Return the index of a segment: uint64 of shapes (n, 4) and (n,), keys and checksums of its pages."""
    rows = keys.astype("<u8").tobytes() + checks.astype("<u8").tobytes()
    checked = _HEADER.pack(_MAGIC, _FORMAT, name.pages, name.page_bytes, name.space, 0) + rows
    header = _HEADER.pack(
        _MAGIC, _FORMAT, name.pages, name.page_bytes, name.space, xxh3_64_intdigest(checked)
    )
    return header.ljust(HEADER_BYTES, b"\0") + rows


def read_head(name: Name, content: bytes) -> tuple[list[bytes], np.ndarray]:
    """Return the keys, 32 bytes each, and the checksums of the pages of a segment.

    Raises
    ------
    DamagedError
        When this is not the index of a segment of this name.
    """
    rows = content[HEADER_BYTES:]
    *given, checksum = _HEADER.unpack(content[: _HEADER.size])
    checked = _HEADER.pack(*given, 0) + rows
    expected = [_MAGIC, _FORMAT, name.pages, name.page_bytes, name.space]
    if given != expected or checksum != xxh3_64_intdigest(checked):
        raise DamagedError(f"{name.path}: its index is not as it was stored")
    return keys_of(rows[: KEY_BYTES * name.pages]), np.frombuffer(rows, "<u8", offset=KEY_BYTES * name.pages)
