"""Raw access to what a connector keeps in an object store, past the connector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from obstore.store import S3Store
from pooled_store import KEYS, SPACES
from support import object_store

from hicache_nixl.lifetimes.pooled_objects.segment import FOLDER, Name, head, read_head


def _names(client: S3Store, folder: str | None = None) -> list[str]:
    return sorted(found["path"] for some in client.list(folder) for found in some)


def _bytes(client: S3Store, name: str) -> bytes:
    return bytes(client.get(name).bytes())


def empty_bucket() -> None:
    """Remove every object."""
    client = object_store().client()
    if names := _names(client):
        client.delete(names)


class Objects:
    """Pieces that are objects."""

    def __init__(self, folder: Path):
        self._client = object_store().client()

    def names(self) -> list[str]:
        return _names(self._client)

    def get(self, name: str) -> bytes:
        return _bytes(self._client, name)

    def put(self, name: str, content: bytes) -> None:
        self._client.put(name, content)

    def resize(self, name: str, size: int) -> None:
        self.put(name, self.get(name)[:size].ljust(size, b"\0"))

    def remove(self, name: str) -> None:
        self._client.delete(name)

    def handles(self) -> list[str]:
        return []


class ObjectRecords:
    """Pieces that are parts of records in segments.

    A piece that is removed or gets another size takes the record with it; the segment is written again without it.
    """

    def __init__(self, folder: Path):
        self._client = object_store().client()

    def pieces(self) -> dict[str, tuple[Name, int, int, int]]:
        """Return for each piece its segment, the number of its page there, its offset and size."""
        found = {}
        for path in _names(self._client, FOLDER):
            space = int(path.split("/")[1], 16)
            name = Name.read(space, path)
            assert name is not None
            keys, _ = read_head(name, _bytes(self._client, path)[: name.head_bytes])
            suffix, endings = SPACES[space]
            size = name.page_bytes // len(endings)
            for page, key in enumerate(keys):
                plain = KEYS[tuple(np.frombuffer(key, "<u8").tolist())] + suffix
                for number, ending in enumerate(endings):
                    offset = name.head_bytes + page * name.page_bytes + number * size
                    found[plain + ending] = name, page, offset, size
        return found

    def names(self) -> list[str]:
        return sorted(self.pieces())

    def get(self, name: str) -> bytes:
        segment, _, offset, size = self.pieces()[name]
        return _bytes(self._client, segment.path)[offset : offset + size]

    def put(self, name: str, content: bytes) -> None:
        raise NotImplementedError("a page is one record")  # tests that do it leave out such stores: BY_PIECE

    def flip(self, name: str) -> None:
        """Change a byte in the middle of a piece."""
        segment, _, offset, size = self.pieces()[name]
        content = bytearray(_bytes(self._client, segment.path))
        content[offset + size // 2] ^= 1
        self._client.put(segment.path, bytes(content))

    def resize(self, name: str, size: int) -> None:
        self.remove(name)

    def remove(self, name: str) -> None:
        segment, page, _, _ = self.pieces()[name]
        content = _bytes(self._client, segment.path)
        keys, checks = read_head(segment, content[: segment.head_bytes])
        kept = [number for number in range(segment.pages) if number != page]
        self._client.delete(segment.path)
        if kept:
            new = Name.new(segment.space, len(kept), segment.page_bytes)
            numbers = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 4)
            pages = content[segment.head_bytes :]
            parts = [pages[number * segment.page_bytes :][: segment.page_bytes] for number in kept]
            self._client.put(new.path, head(new, numbers[kept], checks[kept]) + b"".join(parts))

    def handles(self) -> list[str]:
        return []
