"""Names of the pieces of a page in storage; two configurations never read each other's pages.

A name is ``<key>_<model>_<tp_rank>_<tp_size>``, as in SGLang, followed by ``_k`` or ``_v`` for the two pieces
of a zero-copy page.  An MLA page is the same on every rank of tensor parallelism and has a single piece:
``<key>_<model>``, zero-copy ``<key>_<model>_k``.  ``/`` in the name of a model becomes ``-``.

Everything else that changes the bytes of a page is appended as ``+part``, but only where it differs from a
default, so that pages that SGLang wrote with the defaults are found: rank and size of pipeline and of context
parallelism (``+pp1of2``, ``+cp0of4``), the number type unless it is bfloat16, the layout unless it is
``page_first`` (zero-copy) or ``layer_first`` (copied), and the tokens per page unless they are 64
(``+page32``).  Sharing names between these corrupted caches silently in other projects: sglang #24794,
#33268. The name of a model that could be mistaken for such an ending (``m_0_1``, ``m+pp0of2``, ``m_k``) is
followed by a hash; files that SGLang wrote for such a model are not found.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .config import HiCacheStorageConfig
from .errors import ConfigError, KeyRefusedError

NAME_MAX = 255  # bytes; the limit of ext4, XFS, tmpfs, ..., used for objects too
KEY_BYTES = 64  # SGLang's keys: SHA-256 in hexadecimal, after "d:" for pages of a draft model
PLAIN_DTYPE, PLAIN_PAGE_SIZE = "bfloat16", 64
_SGLANG_KEY_AND_MORE = re.compile(r"(d:)?[0-9a-f]{64}_")
# Names of models that could be mistaken for the ending of a name: "m_0_1", "m+pp0of2", "m_k".
_AMBIGUOUS_MODEL = re.compile(r"\+|_\d+_\d+(_|$)|_[kv]$")


@dataclass(frozen=True)
class Named:
    """Pages, or values, with the names of their pieces.

    Attributes
    ----------
    keys : sequence of str
        Length n.
    suffix : str
        What follows each key: model, rank, and all else that changes the bytes of a page.
    endings : tuple of str
        Length k: what follows the suffix for each piece of a page.

    Examples
    --------
    >>> Named(["a", "b"], "_model_0_1", ("_k", "_v")).names
    ['a_model_0_1_k', 'a_model_0_1_v', 'b_model_0_1_k', 'b_model_0_1_v']
    """

    keys: Sequence[str]
    suffix: str
    endings: tuple[str, ...] = ("",)

    @cached_property
    def names(self) -> list[str]:
        """The names of all pieces, page by page: length n * k."""
        endings = [self.suffix + ending for ending in self.endings]
        return [key + ending for key in self.keys for ending in endings]

    def parts(self, pages: int) -> Iterator[tuple[slice, Named]]:
        """Yield the pages in parts of at most so many, each with the slice of its pieces."""
        k = len(self.endings)
        for first in range(0, len(self.keys), pages):
            part = Named(self.keys[first : first + pages], self.suffix, self.endings)
            yield slice(first * k, (first + pages) * k), part


class PageNames:
    """The names of one configuration.

    Parameters
    ----------
    config : HiCacheStorageConfig
    plain : bool
        Omit every ``+part``, as SGLang does.

    Raises
    ------
    ConfigError
        When the name of the model cannot be part of a file name.
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
        """Use the ``dtype``, ``layout`` and ``page_size`` of a host pool in the names of pages."""
        if self._plain:
            return
        # SGLang's host pools store float8_e4m3fn and float8_e5m2 as uint8; the device pool has the real type
        dtype = getattr(getattr(pool, "device_pool", None), "dtype", pool.dtype)
        dtype = str(dtype).removeprefix("torch.")
        layout = "page_first" if zero_copy else "layer_first"
        parts = [f"+{dtype}"] if dtype != PLAIN_DTYPE else []
        parts += [f"+{pool.layout}"] if pool.layout != layout else []
        parts += [f"+page{pool.page_size}"] if pool.page_size != PLAIN_PAGE_SIZE else []
        self.page_suffix = self.suffix + "".join(parts)
        self._check_length(self.page_suffix)

    def of_values(self, keys: Sequence[str]) -> Named:
        """Return the names of values, after checking all keys."""
        return self._of(keys, self.suffix, ("",))

    def of_pages(self, keys: Sequence[str], zero_copy: bool) -> Named:
        """Return the names of pages and their pieces, after checking all keys."""
        return self._of(keys, self.page_suffix, self._pieces if zero_copy else ("",))

    def own(self) -> list[Named]:
        """Return a ``Named`` without keys for each kind of value and page of this configuration."""
        pages = [Named((), self.page_suffix, endings) for endings in (("",), self._pieces)]
        return [Named((), self.suffix), *pages]

    def is_own(self, name: str) -> bool:
        """Return whether a name belongs to this configuration.

        Behind a key of SGLang, anything before the suffix is part of the name of another model:
        ``<key>_big_model_0_1`` also ends with ``_model_0_1``.  Any other key may contain such text.
        """
        endings = {self.suffix, *(self.page_suffix + piece for piece in ("", *self._pieces))}
        keys = {name.removesuffix(ending) for ending in endings if name.endswith(ending)}
        return any(key and not _SGLANG_KEY_AND_MORE.match(key) for key in keys)

    def _of(self, keys: Sequence[str], suffix: str, pieces: tuple[str, ...]) -> Named:
        if not _all_plain(keys):
            longest = max(len(os.fsencode(suffix + piece)) for piece in pieces)
            for key in keys:
                check_key(key, longest)
        return Named(keys, suffix, pieces)

    def _check_length(self, shown: str) -> None:
        longest = KEY_BYTES + len(os.fsencode(self.page_suffix + "_k"))
        if "\0" in self.page_suffix or longest > NAME_MAX:
            raise ConfigError(
                f"model_name {shown[:40]!r} cannot be part of a file name: it contains a NUL, or with a key "
                f"of {KEY_BYTES} bytes the name has {longest} of at most {NAME_MAX} bytes"
            )


def _all_plain(keys: Sequence[str]) -> bool:
    """Return whether all keys have 64 ASCII characters that a file name may have: they need no other check."""
    try:
        joined = "".join(keys)
    except TypeError:  # what is no string is named by check_key
        return False
    refused = "/" in joined or "." in joined or "\0" in joined
    return not refused and joined.isascii() and set(map(len, keys)) == {KEY_BYTES}


def check_key(key: str, longest_suffix: int) -> None:
    """Raise ``KeyRefusedError`` for a key that is not a plain file name.

    Parameters
    ----------
    key : str
        SGLang's keys are 64 hexadecimal digits; any plain name is accepted.
    longest_suffix : int
        Bytes that follow the key.
    """
    if not key or "/" in key or ".." in key or "\0" in key:
        raise KeyRefusedError(f"key {key!r} is refused: it is empty or contains '/', '..' or a NUL")
    if len(os.fsencode(key)) + longest_suffix > NAME_MAX:
        raise KeyRefusedError(
            f"key {key[:40]!r}... is refused: with its suffix it is longer than {NAME_MAX} bytes"
        )
