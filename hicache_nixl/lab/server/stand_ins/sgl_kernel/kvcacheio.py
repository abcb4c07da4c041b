"""In place of the CUDA copies of KV pages between device and host pool: the same copies in torch.

Both pools are memory of this machine.  A device pool has a tensor [tokens, heads, dim] for each layer; a host pool has
one for all layers, in the layout that the names end with: ``lf`` is layer first, ``pf`` page first.  Indices are those of
tokens, whole pages of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch


def transfer_kv_direct(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy tokens, layer by layer, between pools that both are layer first."""
    for src, dst in zip(src_layers, dst_layers, strict=True):
        dst[dst_indices] = src[src_indices]


def transfer_kv_per_layer_direct_pf_lf(
    src_ptrs: Sequence[torch.Tensor],
    dst_ptrs: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    """Load one layer from host tensors [pages, layers, page_size, heads, dim]."""
    for src, dst in zip(src_ptrs, dst_ptrs, strict=True):
        loaded = src[_pages(src_indices, page_size), layer_id]
        dst[dst_indices] = loaded.flatten(0, 1).view(-1, *dst.shape[1:])


def transfer_kv_all_layer_direct_lf_pf(
    src_ptrs: Sequence[torch.Tensor],
    dst_ptrs: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Back up all layers, those of K before those of V, to host tensors [pages, layers, page_size, heads, dim]."""
    layers = len(src_ptrs) // len(dst_ptrs)
    pages = _pages(dst_indices, page_size)
    for number, src in enumerate(src_ptrs):
        dst = dst_ptrs[number // layers]
        dst[pages, number % layers] = src[src_indices].view(len(pages), page_size, *dst.shape[3:])


def transfer_kv_per_layer_pf_lf(
    src_k: torch.Tensor,
    dst_k: torch.Tensor,
    src_v: torch.Tensor,
    dst_v: torch.Tensor,
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    layer_id: int,
    item_size: int,
    src_layout_dim: int,
    **launch: int,
) -> None:
    """Load one layer from host tensors [tokens, layers, heads, dim]."""
    dst_k[dst_indices] = src_k[src_indices, layer_id]
    dst_v[dst_indices] = src_v[src_indices, layer_id]


def transfer_kv_all_layer_lf_pf(
    src_k_layers: torch.Tensor,
    dst_k: torch.Tensor,
    src_v_layers: torch.Tensor,
    dst_v: torch.Tensor,
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    item_size: int,
    dst_layout_dim: int,
    num_layers: int,
    **launch: int,
) -> None:
    """Back up all layers, whose addresses are given, to host tensors [tokens, layers, heads, dim]."""
    tokens = int(src_indices.max()) + 1 if len(src_indices) else 0
    for addresses, dst in ((src_k_layers, dst_k), (src_v_layers, dst_v)):
        rows = dst.view(dst.shape[0], num_layers, -1).view(torch.uint8)
        for layer, address in enumerate(addresses.tolist()[:num_layers]):
            rows[dst_indices, layer] = _at(address, tokens, item_size)[src_indices]


def _pages(indices: torch.Tensor, page_size: int) -> torch.Tensor:
    return indices[::page_size] // page_size


def _at(address: int, tokens: int, item_size: int) -> torch.Tensor:
    """Return the memory at an address as bytes [tokens, item_size]."""
    memory = (ctypes.c_uint8 * (tokens * item_size)).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8).view(tokens, item_size)


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"{__name__}.{name} has no stand-in without CUDA")

    return missing
