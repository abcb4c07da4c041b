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

A model with several host pools has pages in each of them.  Those of a pool other than ``kv`` are named as in SGLang
0.5.23: ``_<pool>`` follows the suffix, then ``_k`` or ``_v``, for the state of a Mamba layer ``_temporal`` or
``_conv_<n>``, for any other number of pieces ``_<n>``.  A Mamba state has the rank in its name, also with MLA.  Parts
are omitted for ``page_first``, pages of 64 tokens or one, and bfloat16 or uint8 (bytes of any kind).  The number type of
a Mamba layer's temporal state is a part unless it is float32 (``+temporal_float16``), those of states beside it always
are (``+beside_int32``).  A pool that SGLang 0.5.23 does not know is ``+pool_<name>`` instead of ``_<name>``, so that no
model can be mistaken for it.
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
from .contract import kv_cache_dtype
from .errors import ConfigError, KeyRefusedError

NAME_MAX = 255  # bytes; the limit of ext4, XFS, tmpfs, ..., used for objects too
KEY_BYTES = 64  # SGLang's keys: SHA-256 in hexadecimal, after "d:" for pages of a draft model
PLAIN_DTYPE, PLAIN_PAGE_SIZE = "bfloat16", 64
PLAIN_DTYPES = (PLAIN_DTYPE, "uint8", "float8_e4m3fn")  # of pools other than kv, some of which store bytes
# What SGLang stores as uint8, by --kv-cache-dtype: "auto" stores bytes only for a checkpoint of the first type.
FLOAT8 = {"auto": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
KV, MAMBA = "kv", "mamba"
# The other pools of SGLang 0.5.23 (``PoolName``).
_POOLS = (
    r"mamba|(auxiliary_)?swa|indexer|draft(_indexer|_swa)?|deepseek_v4_c\d+(_indexer|_rope|_state|_scale)*"
)
_SGLANG_KEY_AND_MORE = re.compile(r"(d:)?[0-9a-f]{64}_")
# Names of models that could be mistaken for the ending of a name: "m_0_1", "m+pp0of2", "m_k".
_AMBIGUOUS_MODEL = re.compile(r"\+|_\d+_\d+(_|$)|_[kv]$")
_AMBIGUOUS_MLA_MODEL = re.compile(rf"_({_POOLS})(_\d+)?$")  # "m_draft", where no rank stands between


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

    def of(self, keys: Sequence[str]) -> Named:
        """Return other pages that are named alike, after checking their keys.

        Raises
        ------
        KeyRefusedError
            For a key that is not a plain file name.
        """
        if not _all_plain(keys):
            longest = max(len(os.fsencode(self.suffix + ending)) for ending in self.endings)
            for key in keys:
                check_key(key, longest)
        return Named(keys, self.suffix, self.endings)

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
        mla_as_pool = config.is_mla_model and _AMBIGUOUS_MLA_MODEL.search(model)
        if not plain and (mla_as_pool or _AMBIGUOUS_MODEL.search(model)):
            model += f"+{hashlib.sha256(model.encode()).hexdigest()[:12]}"
        rank = f"_{config.tp_rank}_{config.tp_size}"
        parts = [
            f"+{kind}{index}of{size}"
            for kind, index, size in (
                ("pp", config.pp_rank, config.pp_size),
                ("cp", config.attn_cp_rank, config.attn_cp_size),
            )
            if size > 1
        ]
        of_rank, of_all = (f"_{model}{ranks}" + ("" if plain else "".join(parts)) for ranks in (rank, ""))
        self.suffix = of_all if config.is_mla_model else of_rank
        self.page_suffix, self._state_suffix = self.suffix, of_rank
        self._one_rank_stores = config.is_mla_model and config.tp_size > 1
        self.other_pools: dict[str, Named] = {}  # without keys
        self._pieces = ("_k",) if config.is_mla_model else ("_k", "_v")
        self._check_length(model, self.suffix)
        self._note_own()

    def for_pool(self, pool: Any, zero_copy: bool) -> None:
        """Use the ``dtype``, ``layout`` and ``page_size`` of the KV pool in the names of pages."""
        layout = "page_first" if zero_copy else "layer_first"
        dtypes = PLAIN_DTYPES if without_memory(pool) else (PLAIN_DTYPE,)
        self.page_suffix = self.suffix + self._parts(pool, layout, dtypes, (PLAIN_PAGE_SIZE,))
        self._check_length(self.page_suffix, self.page_suffix)
        self._note_own()

    def for_other_pool(self, name: str, pool: Any, pieces: int) -> Named:
        """Name the pages of a pool other than ``kv``, of so many pieces; return their names without keys.

        Raises
        ------
        ConfigError
            When the name of the pool cannot be part of a file name, or its pages are not those of all ranks.
        """
        if not re.fullmatch(r"\w+", name, re.ASCII):
            raise ConfigError(f"pool {name!r}: expected a name of letters, digits and '_'")
        if self._one_rank_stores and name != MAMBA and hasattr(pool, "v_buffer"):
            raise ConfigError(
                f"pool {name} has the heads of one rank, and SGLang stores the pages of an MLA model on rank 0 only; "
                f"expected a pool whose pages are the same on all ranks, or a tp_size of 1"
            )
        suffix = self._state_suffix if name == MAMBA else self.suffix
        suffix += self._parts(pool, "page_first", PLAIN_DTYPES, (PLAIN_PAGE_SIZE, 1))
        known = self._plain or re.fullmatch(_POOLS, name)
        endings = tuple(
            (f"_{name}" if known else f"+pool_{name}") + ending for ending in _endings(name, pieces)
        )
        self._check_length(suffix, suffix, max(endings, key=len))
        named = Named((), suffix, endings)
        self.other_pools = {**self.other_pools, name: named}
        self._note_own()
        return named

    def _parts(self, pool: Any, layout: str, dtypes: Sequence[str], page_sizes: Sequence[int]) -> str:
        """Return the parts in which a pool differs from a layout, types of numbers and sizes of pages."""
        if self._plain:
            return ""
        dtype = _number_type(pool)
        parts = [f"+{dtype}"] if dtype not in dtypes else []
        temporal = str(getattr(pool, "temporal_dtype", "float32")).removeprefix("torch.")
        parts += [f"+temporal_{temporal}"] if temporal != "float32" else []
        beside = [
            str(state.dtype).removeprefix("torch.") for state in getattr(pool, "slot_state_buffers", ())
        ]
        parts += [f"+beside_{'_'.join(beside)}"] if beside else []
        parts += [f"+{pool.layout}"] if pool.layout != layout else []
        parts += [f"+page{pool.page_size}"] if pool.page_size not in page_sizes else []
        return "".join(parts)

    def of_values(self, keys: Sequence[str]) -> Named:
        """Return the names of values, after checking all keys."""
        return Named((), self.suffix).of(keys)

    def of_pages(self, keys: Sequence[str], zero_copy: bool) -> Named:
        """Return the names of pages of the KV pool and their pieces, after checking all keys."""
        return Named((), self.page_suffix, self._pieces if zero_copy else ("",)).of(keys)

    def own(self) -> list[Named]:
        """Return a ``Named`` without keys for each kind of value and page of this configuration."""
        pages = [Named((), self.page_suffix, endings) for endings in (("",), self._pieces)]
        return [Named((), self.suffix), *pages, *self.other_pools.values()]

    def is_own(self, name: str) -> bool:
        """Return whether a name belongs to this configuration.

        Behind a key of SGLang, anything before the suffix is part of the name of another model:
        ``<key>_big_model_0_1`` also ends with ``_model_0_1``.  Any other key may contain such text.
        """
        keys = {name.removesuffix(ending) for ending in self._own_endings if name.endswith(ending)}
        return any(key and not _SGLANG_KEY_AND_MORE.match(key) for key in keys)

    def _note_own(self) -> None:
        """Note what own names end with: it is compared with every file of a folder."""
        self._own_endings = {own.suffix + ending for own in self.own() for ending in own.endings}

    @staticmethod
    def _check_length(shown: str, suffix: str, ending: str = "_k") -> None:
        longest = KEY_BYTES + len(os.fsencode(suffix + ending))
        if "\0" in suffix or longest > NAME_MAX:
            raise ConfigError(
                f"model_name {shown[:40]!r} cannot be part of a file name: it contains a NUL, or with a key "
                f"of {KEY_BYTES} bytes the name has {longest} of at most {NAME_MAX} bytes"
            )


def without_memory(pool: Any) -> bool:
    """Return whether a host pool only counts pages, as SGLang's ``LogicalHostPool`` does for DeepSeek V4."""
    return getattr(pool, "kv_buffer", pool) is None and getattr(pool, "size_per_token", None) == 0


def _number_type(pool: Any) -> str:
    """Return the type of a pool's numbers, also where SGLang stores 8-bit types as uint8.

    The device pool has the real type, and up to SGLang 0.5.13 a host pool knows it.  In 0.5.23 the server is asked.
    """
    dtype = getattr(getattr(pool, "device_pool", None), "dtype", pool.dtype)
    name = str(dtype).removeprefix("torch.")
    asked = kv_cache_dtype() if name == "uint8" else None
    return name if asked is None else FLOAT8.get(asked, f"uint8_{asked}")


def _endings(pool: str, pieces: int) -> list[str]:
    """Return what follows the name of a pool in the names of the pieces of a page."""
    if pieces == 1:
        return [""]
    if pool == MAMBA:
        return ["_temporal", *(f"_conv_{number}" for number in range(pieces - 1))]
    return ["_k", "_v"] if pieces == 2 else [f"_{number}" for number in range(pieces)]


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
