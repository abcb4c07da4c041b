"""The interface between the connector and a lifetime.

The connector checks its arguments, names pages and their pieces, splits calls into batches, and turns errors
into False.  A lifetime owns the storage: where the bytes of a page are, and everything that is opened or
registered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from ..config import NixlBackendConfig
from ..names import KV, Named, PageNames
from ..transport.registration import Buffer
from .outcome import Outcome


class Lifetime(Protocol):
    """Storage of pages by name.

    A method that fails as a whole raises; ``HiCacheNixlError`` for errors that are expected.  ``store`` and
    ``load`` report an error that concerns single pages in their outcomes.

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
    even_pieces : bool
        Whether each piece of a page takes as much room as the largest; a page of very different pieces is then copied.
    direct : bool
        Whether buffers should be aligned for O_DIRECT where possible.

    Raises
    ------
    ConfigError, PluginError, NixlMissingError
        When the configuration cannot work.
    """

    as_released: bool
    stages_copies: bool
    even_pieces: bool
    direct: bool

    def __init__(self, config: NixlBackendConfig, storage_dir: str): ...

    def check_pages(self, *calls: tuple[Sequence[int], int]) -> None:
        """Raise ``ConfigError`` if the pages of some calls cannot be stored together.

        Parameters
        ----------
        calls : (sequence of int, int)
            Bytes of each piece of a page, and the most pages of a call; a pair for each host pool.
        """

    def register_pool(self, memory: Sequence[torch.Tensor], pool: str = KV) -> None:
        """Take the memory of a host pool, in which buffers of later calls lie, in place of any earlier memory of it.

        Parameters
        ----------
        memory : sequence of torch.Tensor
            Contiguous tensors; empty when each call brings its own buffers.
        pool : str
            Name of the host pool; the memory of the others stays as it is.
        """

    def store(self, pages: Named, buffers: Sequence[Buffer]) -> Sequence[Outcome]:
        """Store pages, replacing what was stored under their names.

        When a piece fails, no piece of its page stays, unless no piece of the page was touched.  Objects stay: a request
        under way cannot be called back, and a key is a hash of the tokens that its page is computed from.

        Parameters
        ----------
        pages : Named
            n pages of k pieces.
        buffers : sequence of torch.Tensor or (int, int)
            Length n * k, page by page: contiguous tensors, or addresses with sizes in bytes.

        Returns
        -------
        sequence of Outcome
            Length n.
        """

    def load(self, pages: Named, buffers: Sequence[Buffer]) -> Sequence[Outcome]:
        """Load pages into buffers of exactly their size; parameters and return value as in ``store``."""

    def present(self, pages: Named, sizes: Sequence[int] | None) -> Iterable[bool]:
        """Return for each page whether all its bytes are stored.

        Parameters
        ----------
        pages : Named
            n pages of k pieces.
        sizes : sequence of int or None
            Length k: bytes of each piece of a page; None for any size above 0.

        Returns
        -------
        iterable of bool
            Length n, in order.  It may be lazy, because the connector stops at the first page that is
            missing.
        """

    def clear(self, names: PageNames) -> int:
        """Remove what is stored under names of a configuration; return how many there were."""

    def register_buffers(self, buffers: torch.Tensor | Sequence[Buffer]) -> Any:
        """Register host memory with NIXL until ``close``; return the registration."""

    def register_files(self, paths: Sequence[str]) -> Any:
        """Open files and register them with NIXL; return an owner with ``close()``, or the registration."""

    def register_objects(self, keys: Sequence[str], sizes: Sequence[int]) -> Any:
        """Register objects of the given bytes with NIXL until ``close``; return the registration."""

    def close(self) -> None:
        """Release everything that the lifetime owns.  May be called twice."""
