"""Prompts, and the bytes of their pages: the same in every process."""

from __future__ import annotations

from typing import Any

import torch
from releases import PAGE


def tokens_of(prompt: int, pages: int) -> list[int]:
    """Return a prompt, which has the number of its own and then tokens that all have; a longer one begins with a shorter one."""
    return [prompt + 1, *range(1, pages * PAGE)]


def fill(pool: Any, places: torch.Tensor, seed: int) -> None:
    """Put pages into a host pool."""
    starts = places[:: pool.page_size].tolist()
    dtype = pool.get_dummy_flat_data_page().dtype
    for start, page in zip(starts, _contents(pool, seed, len(starts)), strict=True):
        pool.set_from_flat_data_page(start, page.view(dtype))


def count_right(pool: Any, places: torch.Tensor, seed: int) -> int:
    """Return the number of leading pages whose bytes are in their places."""
    starts = places[:: pool.page_size].tolist()
    for page, expected in enumerate(_contents(pool, seed, len(starts))):
        if not torch.equal(pool.get_data_page(starts[page]).view(torch.uint8), expected):
            return page
    return len(starts)


def count_outside(pool: Any, places: torch.Tensor) -> int:
    """Set pages to zero; return how many bytes of the KV pool are not zero."""
    for start in places[:: pool.page_size].tolist():
        pool.set_from_flat_data_page(start, torch.zeros_like(pool.get_data_page(start)))
    return int(pool.kv_buffer.view(torch.uint8).count_nonzero())


def _contents(pool: Any, seed: int, pages: int) -> torch.Tensor:
    """Return the bytes of pages of a pool, [pages, bytes]."""
    random = torch.Generator().manual_seed(seed)
    size = pool.get_dummy_flat_data_page().nbytes
    return torch.randint(0, 256, (pages, size), dtype=torch.uint8, generator=random)
