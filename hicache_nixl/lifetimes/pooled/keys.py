"""Keys and spaces of pages as numbers: 256 bits of a key, 64 of everything else that tells pages apart."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from .row import Words

HEX_DIGITS = 64
_OTHER = b"hicache_nixl key:"  # before a key that is hashed here: its hash is none of a server's


@functools.lru_cache(maxsize=256)
def space_of(suffix: str, endings: tuple[str, ...]) -> int:
    """Return the number of a space: of the suffix and the pieces of pages."""
    text = "\0".join((suffix, *endings)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def numbers_of(keys: Sequence[str]) -> Words:
    """Return keys as uint64 of shape (n, 4).

    SGLang's keys, SHA-256 in hexadecimal, are taken as they are.  Of others the SHA-256 is taken.
    """
    digests = _digits("".join(keys), keys)
    if digests is None:
        digests = b"".join([_digits(key, [key]) or _digest(key) for key in keys])
    return np.frombuffer(digests, "<u8").reshape(-1, 4)


def _digits(joined: str, keys: Sequence[str]) -> bytes | None:
    """Return keys of 64 hexadecimal digits in lower case as bytes; None if one is something else."""
    if set(map(len, keys)) != {HEX_DIGITS}:
        return None
    try:
        digests = bytes.fromhex(joined)
    except ValueError:
        return None
    return digests if digests.hex() == joined else None  # no upper case, no spaces


def _digest(key: str) -> bytes:
    return hashlib.sha256(_OTHER + key.encode("utf-8", "surrogateescape")).digest()
