"""What the pieces of a page are called in storage: SGLang's names.

``<key>_<model>_<tp_rank>_<tp_size>``, with ``_k`` and ``_v`` behind it for the two pieces of a zero-copy page.
An MLA page is the same on every rank and a single piece: ``<key>_<model>``, zero-copy ``<key>_<model>_k``.
``/`` in a model's name becomes ``-``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from .config import HiCacheStorageConfig
from .errors import ConfigError, KeyRefusedError

NAME_MAX = 255  # bytes; the limit of ext4, xfs, tmpfs, ... and of an object's name in this project
KEY_BYTES = 64  # SGLang's keys: SHA-256 in hexadecimal, with "d:" before it for pages of a draft model
_SGLANG_KEY_AND_MORE = re.compile(r"(d:)?[0-9a-f]{64}_")


class PageNames:
    """The names that one configuration gives.

    Raises
    ------
    ConfigError
        When the model's name cannot be part of a file name.
    """

    def __init__(self, config: HiCacheStorageConfig):
        model = (config.model_name or "").replace("/", "-")
        self.suffix = f"_{model}" if config.is_mla_model else f"_{model}_{config.tp_rank}_{config.tp_size}"
        self._pieces = ("_k",) if config.is_mla_model else ("_k", "_v")
        longest = KEY_BYTES + len(os.fsencode(self.suffix + "_k"))
        if "\0" in model or longest > NAME_MAX:
            raise ConfigError(
                f"model_name {model[:40]!r} cannot be part of a file name: it holds a NUL, or with a key of "
                f"{KEY_BYTES} bytes the name has {longest} of at most {NAME_MAX} bytes"
            )

    def of_values(self, keys: Sequence[str]) -> list[str]:
        """Return a name per key, after every key was checked."""
        return self._of(keys, ("",))

    def of_pages(self, keys: Sequence[str], zero_copy: bool) -> list[str]:
        """Return the names of the pieces of pages, page by page, after every key was checked."""
        return self._of(keys, self._pieces if zero_copy else ("",))

    def is_own(self, name: str) -> bool:
        """Tell whether a name is one of this configuration's.

        After one of SGLang's keys anything else than the suffix is part of another model's name:
        ``_model_0_1`` ends ``<key>_big_model_0_1`` too.  Any other key may hold what it likes.
        """
        for suffix in (self.suffix, *(self.suffix + piece for piece in self._pieces)):
            if name.endswith(suffix) and len(name) > len(suffix):
                return not _SGLANG_KEY_AND_MORE.match(name.removesuffix(suffix))
        return False

    def _of(self, keys: Sequence[str], endings: tuple[str, ...]) -> list[str]:
        longest = len(os.fsencode(self.suffix)) + max(map(len, endings))
        for key in keys:
            check_key(key, longest)
        return [f"{key}{self.suffix}{ending}" for key in keys for ending in endings]


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
