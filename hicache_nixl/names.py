"""What the pieces of a page are called in storage, so that two configurations never read each other's pages.

A name is ``<key>_<model>_<tp_rank>_<tp_size>``, as SGLang names pages, with ``_k`` and ``_v`` behind it for the
two pieces of a zero-copy page.  An MLA page is the same on every rank of tensor parallelism and a single
piece: ``<key>_<model>``, zero-copy ``<key>_<model>_k``.  ``/`` in a model's name becomes ``-``.

Whatever else changes the bytes of a page stands behind that as ``+part``, and only where it differs from the
plain case, so that what SGLang wrote for the plain case is still found: the rank and size of pipeline and of
context parallelism (``+pp1of2``, ``+cp0of4``), the number type unless it is bfloat16, the layout unless it is
``page_first`` in pieces or ``layer_first`` in one, and the tokens of a page unless they are 64 (``+page32``).
Mixing these corrupted caches silently elsewhere: sglang #24794, #33268.  A model's name that could be read as
such an ending (``m_0_1``, ``m+pp0of2``, ``m_k``) is followed by a hash; SGLang's own files of it are not found.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

from .config import HiCacheStorageConfig
from .errors import ConfigError, KeyRefusedError

NAME_MAX = 255  # bytes; the limit of ext4, xfs, tmpfs, ... and of an object's name in this project
KEY_BYTES = 64  # SGLang's keys: SHA-256 in hexadecimal, with "d:" before it for pages of a draft model
PLAIN_DTYPE, PLAIN_PAGE_SIZE = "bfloat16", 64
_SGLANG_KEY_AND_MORE = re.compile(r"(d:)?[0-9a-f]{64}_")
# A model's name that could be read as the end of another one's: "m_0_1", "m+pp0of2", "m_k".
_AMBIGUOUS_MODEL = re.compile(r"\+|_\d+_\d+(_|$)|_[kv]$")


class PageNames:
    """The names that one configuration gives.

    Parameters
    ----------
    config : HiCacheStorageConfig
    plain : bool
        Leave out every ``+part``, as SGLang does.

    Raises
    ------
    ConfigError
        When the model's name cannot be part of a file name.
    """

    def __init__(self, config: HiCacheStorageConfig, plain: bool = False):
        self._plain = plain
        model = (config.model_name or "").replace("/", "-")
        if not plain and _AMBIGUOUS_MODEL.search(model):
            model += f"+{hashlib.sha256(model.encode()).hexdigest()[:12]}"
        rank = "" if config.is_mla_model else f"_{config.tp_rank}_{config.tp_size}"
        parts = [
            f"+{kind}{index}of{size}"
            for kind, index, size in (
                ("pp", config.pp_rank, config.pp_size),
                ("cp", config.attn_cp_rank, config.attn_cp_size),
            )
            if size > 1
        ]
        self.suffix = f"_{model}{rank}" + ("" if plain else "".join(parts))
        self.page_suffix = self.suffix
        self._pieces = ("_k",) if config.is_mla_model else ("_k", "_v")
        self._check_length(model)

    def for_pool(self, pool: Any, zero_copy: bool) -> None:
        """Name from now on the pages of a host pool: its ``dtype``, ``layout`` and ``page_size`` count."""
        if self._plain:
            return
        # SGLang's host pools hold float8_e4m3fn and float8_e5m2 both as uint8; its device pool knows which
        dtype = getattr(getattr(pool, "device_pool", None), "dtype", pool.dtype)
        dtype = str(dtype).removeprefix("torch.")
        layout = "page_first" if zero_copy else "layer_first"
        parts = [f"+{dtype}"] if dtype != PLAIN_DTYPE else []
        parts += [f"+{pool.layout}"] if pool.layout != layout else []
        parts += [f"+page{pool.page_size}"] if pool.page_size != PLAIN_PAGE_SIZE else []
        self.page_suffix = self.suffix + "".join(parts)
        self._check_length(self.page_suffix)

    def of_values(self, keys: Sequence[str]) -> list[str]:
        """Return a name per key, after every key was checked."""
        return self._of(keys, self.suffix, ("",))

    def of_pages(self, keys: Sequence[str], zero_copy: bool) -> list[str]:
        """Return the names of the pieces of pages, page by page, after every key was checked."""
        return self._of(keys, self.page_suffix, self._pieces if zero_copy else ("",))

    def is_own(self, name: str) -> bool:
        """Tell whether a name is one of this configuration's.

        After one of SGLang's keys anything else than the suffix is part of another model's name:
        ``_model_0_1`` ends ``<key>_big_model_0_1`` too.  Any other key may hold what it likes.
        """
        endings = {self.suffix, *(self.page_suffix + piece for piece in ("", *self._pieces))}
        keys = {name.removesuffix(ending) for ending in endings if name.endswith(ending)}
        return any(key and not _SGLANG_KEY_AND_MORE.match(key) for key in keys)

    def _of(self, keys: Sequence[str], suffix: str, pieces: tuple[str, ...]) -> list[str]:
        endings = [suffix + piece for piece in pieces]
        longest = max(len(os.fsencode(ending)) for ending in endings)
        for key in keys:
            check_key(key, longest)
        return [key + ending for key in keys for ending in endings]

    def _check_length(self, shown: str) -> None:
        longest = KEY_BYTES + len(os.fsencode(self.page_suffix + "_k"))
        if "\0" in self.page_suffix or longest > NAME_MAX:
            raise ConfigError(
                f"model_name {shown[:40]!r} cannot be part of a file name: it holds a NUL, or with a key of "
                f"{KEY_BYTES} bytes the name has {longest} of at most {NAME_MAX} bytes"
            )


def check_key(key: str, longest_suffix: int) -> None:
    """Refuse a key that is not a plain file name, before any file is touched.

    Parameters
    ----------
    key : str
        SGLang's keys are 64 hexadecimal digits; any plain name is taken.
    longest_suffix : int
        Bytes that come behind it.
    """
    if not key or "/" in key or ".." in key or "\0" in key:
        raise KeyRefusedError(f"key {key!r} is refused: it is empty or holds '/', '..' or a NUL")
    if len(os.fsencode(key)) + longest_suffix > NAME_MAX:
        raise KeyRefusedError(
            f"key {key[:40]!r}... is refused: with its suffix it is longer than {NAME_MAX} bytes"
        )
