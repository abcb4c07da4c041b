"""The interface between the connector and a lifetime.

The connector checks its arguments, names the pieces of pages, splits calls into batches, and turns errors
into False.  A lifetime owns the storage: where the bytes of a name are, and everything that is opened or
registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch

from ..config import NixlBackendConfig
from ..transport.registration import Buffer
from .outcome import Outcome


class Lifetime(Protocol):
    """Storage of the pieces of pages by name.

    A method that fails as a whole raises; ``HiCacheNixlError`` for errors that are expected.  ``store`` and
    ``load`` report an error that concerns single pieces in their outcomes.

    Parameters
    ----------
    config : NixlBackendConfig
        Plugin and options.
    storage_dir : str
        Folder for page files.  A lifetime that keeps no files may use it as a name, or ignore it.

    Attributes
    ----------
    as_released : bool
        Whether pages are named as in the releases of SGLang, without ``+part``; see ``names``.
    stages_copies : bool
        Whether pages that are not contiguous in the pool are copied through memory that is registered once
        (``register_pool``) instead of a new tensor for each page.
    direct : bool
        Whether buffers should be aligned for O_DIRECT where possible.

    Raises
    ------
    ConfigError, PluginError, NixlMissingError
        When the configuration cannot work.
    """

    as_released: bool
    stages_copies: bool
    direct: bool

    def __init__(self, config: NixlBackendConfig, storage_dir: str): ...

    def register_pool(self, memory: Sequence[torch.Tensor]) -> None:
        """Take the host memory in which the buffers of later calls lie, in place of any earlier memory.

        Parameters
        ----------
        memory : sequence of torch.Tensor
            Contiguous tensors; empty when each call brings its own buffers.
        """

    def store(
        self, names: Sequence[str], buffers: Sequence[Buffer], pieces_per_page: int
    ) -> Sequence[Outcome]:
        """Store buffers under names, replacing what was stored there.

        When a piece fails, no piece of its page stays, unless no piece of the page was touched.

        Parameters
        ----------
        names : sequence of str
            Length n, page by page.
        buffers : sequence of torch.Tensor or (int, int)
            Length n: contiguous tensors, or addresses with sizes in bytes.
        pieces_per_page : int
            Consecutive names that belong to one page; n is a multiple of it.

        Returns
        -------
        sequence of Outcome
            Length n.
        """

    def load(self, names: Sequence[str], buffers: Sequence[Buffer]) -> Sequence[Outcome]:
        """Load what is stored under names into buffers of exactly that size; parameters as in ``store``."""

    def present(self, names: Sequence[str], sizes: Sequence[int | None]) -> Iterable[bool]:
        """Return for each name whether all its bytes are stored.

        Parameters
        ----------
        names : sequence of str
            Length n.
        sizes : sequence of int or None
            Length n: bytes; None for any size above 0.

        Returns
        -------
        iterable of bool
            Length n, in order.  It may be lazy, because the connector stops at the first name that is
            missing.
        """

    def clear(self, is_own: Callable[[str], bool]) -> int:
        """Remove what is stored under the names for which ``is_own`` is True; return how many there were."""

    def register_buffers(self, buffers: torch.Tensor | Sequence[Buffer]) -> Any:
        """Register host memory with NIXL until ``close``; return the registration."""

    def register_files(self, paths: Sequence[str]) -> Any:
        """Open files and register them with NIXL; return an owner with ``close()``, or the registration."""

    def register_objects(self, keys: Sequence[str], sizes: Sequence[int]) -> Any:
        """Register objects of the given bytes with NIXL until ``close``; return the registration."""

    def close(self) -> None:
        """Release everything that the lifetime owns.  May be called twice."""
