"""Indexes of many segments in one object, so that a new server reads a few objects and not one for each segment.

A server that had to read many indexes one by one leaves them behind together.  Such an object only saves requests: what is
in none is read from its segment, and what is gone is not looked for.
"""

from __future__ import annotations

import logging
import re
import struct
import time
from collections.abc import Collection, Sequence
from typing import Protocol

from xxhash import xxh3_64_intdigest

from ...errors import StoreError
from ...transport.bucket import Bucket
from ...transport.lane import windows
from .segment import FOLDER, Name, unique

logger = logging.getLogger(__name__)

MANY = 64  # indexes that were read one by one
IN_ONE = 8 << 20  # bytes of indexes, or a single one; an index has 5 kB for a segment of 128 pages
MOST_BYTES = 64 << 20  # of an object; the name of one that another program made may tell any size
_HEADER = struct.Struct("<8sQQ")  # magic, indexes, checksum of the rest
_MAGIC = b"hicnixlg"
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}-([0-9a-f]{1,10})")


class Requests(Protocol):
    """What moves whole objects."""

    def read(self, objects: Sequence[tuple[str, int]]) -> list[bytes | Exception]:
        """Return the first bytes of objects, or the error of one that could not be read."""

    def write(self, name: str, content: bytes) -> Exception | None:
        """Store an object."""


class Gathered:
    """The gathered indexes of a space."""

    def __init__(self, space: int, bucket: Bucket, requests: Requests):
        self._space, self._bucket, self._requests = space, bucket, requests
        self._folder = gathered_folder_of(space)

    def load(self, wanted: Collection[str], *, tidy: bool = False) -> dict[str, bytes]:
        """Return the indexes of segments by the ``base`` of their names, those that are wanted and gathered.

        With ``tidy``, an object that has none that another one lacks is removed; ``wanted`` are all segments then.
        """
        listed = [(path, _size_of(path)) for path in self._bucket.names(self._folder)]
        names = [(path, size) for path, size in listed if 0 < size <= MOST_BYTES]
        found: dict[str, bytes] = {}
        useless = []
        for (path, _), content in zip(reversed(names), self._requests.read(names[::-1]), strict=True):
            if isinstance(content, Exception):
                continue
            new = {
                base: head
                for base, head in self._parse(content).items()
                if base in wanted and base not in found
            }
            if not new:
                useless.append(path)
            found.update(new)
        if tidy:
            self._bucket.remove(useless)
        return found

    def _parse(self, content: bytes) -> dict[str, bytes]:
        """Return the indexes in an object; none if it is not as it was stored."""
        magic, count, checksum = _HEADER.unpack(content[: _HEADER.size].ljust(_HEADER.size))
        rest = content[_HEADER.size :]
        if magic != _MAGIC or checksum != xxh3_64_intdigest(rest):
            return {}
        bases, _, heads = rest.partition(b"\n\n")
        found, at = {}, 0
        for base in bases.decode().split("\n")[:count]:
            name = Name.read(self._space, base)
            if name is None:
                return {}
            found[base] = heads[at : at + name.head_bytes]
            at += name.head_bytes
        return found

    def keep(self, indexes: Sequence[tuple[Name, bytes]]) -> None:
        """Store indexes that were read one by one, unless another server has just done so."""
        if len(indexes) < MANY:
            return
        try:
            if self.load({name.base for name, _ in indexes[:1]}):
                return
            for first, last in windows([len(head) for _, head in indexes], IN_ONE):
                self._store(indexes[first:last])
        except StoreError as error:
            logger.debug("indexes are not gathered: %s", error)

    def _store(self, indexes: Sequence[tuple[Name, bytes]]) -> None:
        bases = "\n".join(name.base for name, _ in indexes).encode()
        rest = bases + b"\n\n" + b"".join(head for _, head in indexes)
        content = _HEADER.pack(_MAGIC, len(indexes), xxh3_64_intdigest(rest)) + rest
        path = f"{self._folder}{time.time_ns():016x}-{unique()}-{len(content):x}"
        if error := self._requests.write(path, content):
            logger.debug("indexes are not gathered: %s", error)

    def clear(self) -> None:
        """Remove all of them."""
        self._bucket.remove(self._bucket.names(self._folder))


def gathered_folder_of(space: int) -> str:
    """Return what the names of the gathered indexes of a space begin with."""
    return f"{FOLDER}-gathered/{space:016x}/"


def _size_of(path: str) -> int:
    """Return the bytes of gathered indexes, which their name tells; 0 for another object."""
    match = _NAME.fullmatch(path.rpartition("/")[2])
    return int(match[1], 16) if match else 0
