"""Host KV pools: pages in host memory, in the three memory layouts of SGLang.

A token's KV cache is, per layer, a key and a value of shape (heads, head_dim) for multi-head attention, or
one latent vector of rank + rope numbers for MLA.  A page is ``page_size`` consecutive tokens of all layers.
The layout is the order of layers and tokens in memory, and determines whether a page is contiguous:

==================  ============================  ====================================
layout              one plane of ``kv_buffer``    pieces per page
==================  ============================  ====================================
layer_first         [layers, tokens, H, D]        one per layer
page_first          [tokens, layers, H, D]        1
page_first_direct   [pages, layers, page, H, D]   1
==================  ============================  ====================================

Multi-head pools have two planes (``kv_buffer[0]`` keys, ``kv_buffer[1]`` values) and so twice the pieces; MLA
pools have a single plane with H = 1.  The methods behave as those of SGLang's host pools
(``memory_pool_host.py``, 0.5.11), so the connector works with both.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from ..config import ALIGNMENT, LAYOUTS, ZERO_COPY_LAYOUTS
from ..errors import ConfigError, PageIndexError
from .geometries import ModelGeometry, model_geometry

HUGE_PAGE = 2**21  # bytes of one, on x86-64 and on most ARM servers


class HostKVPool:
    """Base class; use ``MultiHeadHostPool`` or ``MlaHostPool``.

    Parameters
    ----------
    planes : int
        2 for separate keys and values, 1 for MLA.
    layers, heads, dim : int
        Numbers per token: ``layers`` times ``heads`` times ``dim``, in each plane.
    page_size : int
        Tokens per page.
    pages : int
        Pages in the pool.
    layout : str
        One of ``LAYOUTS``.
    dtype : torch.dtype

    Attributes
    ----------
    kv_buffer : torch.Tensor
        The pool's memory; its address is a multiple of 4096.
    size : int
        Tokens in the pool.
    page_bytes : int
        Bytes of a page in all planes.
    """

    planes: int
    pin_memory = False
    device = "cpu"

    def __init__(
        self,
        planes: int,
        layers: int,
        heads: int,
        dim: int,
        page_size: int,
        pages: int,
        layout: str,
        dtype: torch.dtype,
    ):
        for name, value in (
            ("layers", layers),
            ("heads", heads),
            ("dim", dim),
            ("page_size", page_size),
            ("pages", pages),
        ):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"host pool: {name}: expected an integer of at least 1, got {value!r}")
        self.planes, self.layer_num, self.heads, self.dim = planes, layers, heads, dim
        self.page_size, self.page_num, self.size = page_size, pages, page_size * pages
        self.layout, self.dtype = layout, dtype
        self.page_bytes = planes * layers * page_size * heads * dim * dtype.itemsize
        plane: tuple[int, ...]
        if layout == "layer_first":
            plane, self._axis = (layers, self.size, heads, dim), -3
        elif layout == "page_first":
            plane, self._axis = (self.size, layers, heads, dim), -4
        elif layout == "page_first_direct":
            plane, self._axis = (pages, layers, page_size, heads, dim), -5
        else:
            raise ConfigError(
                f"host pool: layout {layout!r} is unknown; expected one of {', '.join(LAYOUTS)}"
            )
        self.kv_buffer = aligned_tensor((planes, *plane) if planes > 1 else plane, dtype)
        self._piece_offsets, self.piece_bytes = self._pieces()

    def _pieces(self) -> tuple[torch.Tensor, int]:
        """Return the offsets of the pieces of the first page in the buffer, and the bytes of a piece."""
        row = self.heads * self.dim * self.dtype.itemsize  # one token of one layer
        plane_bytes = self.layer_num * self.size * row
        layers = self.layer_num if self.layout == "layer_first" else 1
        offsets = [
            layer * self.size * row + plane * plane_bytes
            for layer in range(layers)
            for plane in range(self.planes)
        ]
        return torch.tensor(offsets), self.page_size * row * self.layer_num // layers

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        """Return addresses and bytes of the pieces of some pages, page by page.

        Parameters
        ----------
        indices : torch.Tensor
            int64 token indices, ``page_size`` of them per page.

        Returns
        -------
        addresses, sizes : list of int
            Per page k then v; for ``layer_first`` k and v of layer 0, then of layer 1, ...
        """
        if len(indices) % self.page_size:
            raise PageIndexError(f"{len(indices)} indices are not whole pages of {self.page_size} tokens")
        starts = indices[:: self.page_size].to(torch.int64)
        layers = 1 if self.layout == "layer_first" else self.layer_num
        token_bytes = layers * self.heads * self.dim * self.dtype.itemsize
        addresses = self.kv_buffer.data_ptr() + starts[:, None] * token_bytes + self._piece_offsets
        return addresses.flatten().tolist(), [self.piece_bytes] * addresses.numel()

    def get_data_page(self, index: int | torch.Tensor, flat: bool = True) -> torch.Tensor:
        """Return the page that starts at a token index.

        With ``flat=False`` a view of ``kv_buffer``.  With ``flat=True`` one dimension: a copy, except where
        the page is contiguous (MLA in the page-first layouts), where it is a view.
        """
        page = self._page(int(index))
        return page.flatten() if flat else page

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        """Return a tensor of zeros of the size of a page, one dimension."""
        return torch.zeros(self.page_bytes // self.dtype.itemsize, dtype=self.dtype)

    def set_from_flat_data_page(self, index: int | torch.Tensor, data_page: torch.Tensor) -> None:
        """Copy a flat page into the pool."""
        page = self._page(int(index))
        page.copy_(data_page.reshape(page.shape))

    def is_stride_page_aligned(self, page_size_bytes: int = ALIGNMENT) -> bool:
        """Return whether every piece of every page starts at a multiple of some bytes, as O_DIRECT needs."""
        aligned = self.kv_buffer.data_ptr() % page_size_bytes == 0 and self.piece_bytes % page_size_bytes == 0
        return aligned and self.layout in ZERO_COPY_LAYOUTS

    def page_indices(self, first: int, pages: int) -> torch.Tensor:
        """Return the token indices of consecutive pages, as the server would pass them."""
        return torch.arange(first * self.page_size, (first + pages) * self.page_size, dtype=torch.int64)

    def _page(self, index: int) -> torch.Tensor:
        if index < 0 or index + self.page_size > self.size:
            raise PageIndexError(f"token index {index} is outside the pool of {self.size} tokens")
        if self.layout == "page_first_direct":
            return self.kv_buffer.narrow(self._axis, index // self.page_size, 1)
        return self.kv_buffer.narrow(self._axis, index, self.page_size)


class MultiHeadHostPool(HostKVPool):
    """Separate keys and values: multi-head, grouped-query and multi-query attention.

    Attributes
    ----------
    k_buffer, v_buffer : torch.Tensor
        The planes of ``kv_buffer``.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        pages: int,
        layout: str = "page_first",
        dtype: torch.dtype = torch.bfloat16,
    ):
        super().__init__(2, layers, kv_heads, head_dim, page_size, pages, layout, dtype)
        self.k_buffer, self.v_buffer = self.kv_buffer


class MlaHostPool(HostKVPool):
    """One latent vector per token: DeepSeek's multi-head latent attention."""

    def __init__(
        self,
        *,
        layers: int,
        kv_lora_rank: int,
        qk_rope_head_dim: int,
        page_size: int,
        pages: int,
        layout: str = "page_first",
        dtype: torch.dtype = torch.bfloat16,
    ):
        super().__init__(1, layers, 1, kv_lora_rank + qk_rope_head_dim, page_size, pages, layout, dtype)


def pool_for_model(
    model: str | ModelGeometry,
    *,
    page_size: int,
    pages: int,
    layout: str = "page_first",
    layers: int | None = None,
) -> HostKVPool:
    """Create a pool for a well-known model (``data/model_geometries.csv``).

    Parameters
    ----------
    layers : int, optional
        Number of layers, to fit a small machine; a page shrinks in proportion.
    """
    geometry = model_geometry(model) if isinstance(model, str) else model
    layers = geometry.checked_layers(layers)
    rest: dict[str, Any] = {
        "page_size": page_size,
        "pages": pages,
        "layout": layout,
        "dtype": geometry.torch_dtype,
    }
    if geometry.is_mla:
        return MlaHostPool(
            layers=layers,
            kv_lora_rank=geometry.kv_lora_rank,
            qk_rope_head_dim=geometry.qk_rope_head_dim,
            **rest,
        )
    return MultiHeadHostPool(layers=layers, kv_heads=geometry.kv_heads, head_dim=geometry.head_dim, **rest)


def pool_for_page_bytes(
    page_bytes: int, *, pages: int, layout: str = "page_first", mla: bool = False
) -> HostKVPool:
    """Create a pool whose pages have a given number of bytes, keys and values in total.

    A page has up to 64 tokens and 8 layers; the head size follows.
    """
    planes, itemsize = (1, 2) if mla else (2, 2)
    numbers = page_bytes // (planes * itemsize)
    if page_bytes < 8 or page_bytes % 8:
        raise ConfigError(f"page_bytes: expected a multiple of 8, got {page_bytes}")
    page_size = math.gcd(numbers // 2, 64)
    layers = math.gcd(numbers // 2 // page_size, 8)
    dim = numbers // page_size // layers
    if mla:
        rope = dim // 2
        return MlaHostPool(
            layers=layers,
            kv_lora_rank=dim - rope,
            qk_rope_head_dim=rope,
            page_size=page_size,
            pages=pages,
            layout=layout,
        )
    return MultiHeadHostPool(
        layers=layers, kv_heads=1, head_dim=dim, page_size=page_size, pages=pages, layout=layout
    )


def aligned_tensor(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Allocate a tensor of zeros whose address is a multiple of ``ALIGNMENT``, in huge pages where there are any.

    Without them the memory of a process may be scattered over single pages of 4 KiB, which a disk reads and writes one
    by one with O_DIRECT: two processes with the same I/O differed by a factor of up to 4.
    """
    wanted = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, wanted + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{wanted / 2**30:.1f} GiB of host memory: {error.strerror}") from error
    with suppress(OSError):  # a kernel without transparent huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    flat = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping alive
    offset = -flat.data_ptr() % HUGE_PAGE
    return flat[offset : offset + wanted].view(dtype).view(*shape)
