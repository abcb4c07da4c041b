"""Host pools of a model with several of them, and what the tests say of their pages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from support import as_bytes, close_below, make_pool, scramble, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.contract import PoolTransfer
from hicache_nixl.host.pools import MlaHostPool, MultiHeadHostPool, aligned_tensor

PAGES = 8  # of every pool
OTHERS = ("mamba", "swa", "indexer", "draft")


class StatePool:
    """The states of Mamba layers: a page is one slot, in a tensor for the temporal state and one for each convolution."""

    layout, page_size, dtype = "page_first", 1, torch.bfloat16

    def __init__(
        self,
        slots: int = PAGES,
        temporal: torch.dtype = torch.float32,
        beside: Sequence[torch.dtype] = (),
    ):
        self.size, self.temporal_dtype = slots, temporal
        self.temporal_buffer = aligned_tensor((slots, 3, 1, 32), temporal)
        self.conv_buffer = [aligned_tensor((slots, 3, 1, 4 + n), self.dtype) for n in range(2)]
        self.slot_state_buffers = [aligned_tensor((slots, 4), dtype) for dtype in beside]

    def get_hybrid_pool_buffer(self) -> list[torch.Tensor]:
        return [self.temporal_buffer, *self.conv_buffer, *self.slot_state_buffers]

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        rows = [tensor[index] for index in indices.tolist() for tensor in self.get_hybrid_pool_buffer()]
        return [row.data_ptr() for row in rows], [row.nbytes for row in rows]

    def get_data_page(self, index: int, flat: bool = True) -> torch.Tensor:
        return torch.cat([as_bytes(tensor[index]).flatten() for tensor in self.get_hybrid_pool_buffer()])

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros(
            sum(tensor[0].nbytes for tensor in self.get_hybrid_pool_buffer()), dtype=torch.uint8
        )

    def set_from_flat_data_page(self, index: int, data_page: torch.Tensor) -> None:
        sizes = [tensor[0].nbytes for tensor in self.get_hybrid_pool_buffer()]
        for tensor, part in zip(self.get_hybrid_pool_buffer(), data_page.split(sizes), strict=True):
            as_bytes(tensor[index]).copy_(part.reshape(as_bytes(tensor[index]).shape))


class StatePoolWithMore(StatePool):
    """One with more state than its pages give: SGLang's refuses to tell where its pages are."""

    def get_page_buffer_meta(self, indices: torch.Tensor) -> Any:
        raise NotImplementedError("use a whole page")


class LogicalPool:
    """A KV pool without memory, as SGLang has it for DeepSeek V4."""

    layout, page_size, dtype, kv_buffer, size_per_token = "layer_first", 64, torch.uint8, None, 0
    size = PAGES * page_size


def several_pools(layout: str = "page_first") -> dict[str, Any]:
    """Return a KV pool and others of other shapes, in the order in which a server registers them."""
    shape = {"page_size": 64, "pages": PAGES, "layout": layout}
    pools = {
        "kv": make_pool(False, layout, PAGES),
        "mamba": StatePool(),
        "swa": MultiHeadHostPool(layers=2, kv_heads=1, head_dim=4, **shape),
        "indexer": MlaHostPool(layers=3, kv_lora_rank=1, qk_rope_head_dim=1, dtype=torch.uint8, **shape),
        "draft": MultiHeadHostPool(layers=1, kv_heads=2, head_dim=4, **shape),
    }
    scramble_all(pools)
    return pools


def scramble_all(pools: dict[str, Any]) -> None:
    for pool in pools.values():
        if isinstance(pool, StatePool):
            for tensor in pool.get_hybrid_pool_buffer():
                as_bytes(tensor).random_(0, 256)
        elif getattr(pool, "kv_buffer", None) is not None:
            scramble(pool)


def register(store: Any, pools: dict[str, Any]) -> None:
    """Register pools as SGLang's controller does: the KV pool twice, and then the end of it."""
    store.register_mem_pool_host(pools["kv"])
    for name, pool in pools.items():
        store.register_mem_host_pool_v2(pool, name)
    store.on_host_pools_registered()


def page_of(pool: Any, page: int) -> bytes:
    """Return the bytes of a page, the same for every layout of buffers."""
    return as_bytes(pool.get_data_page(page * pool.page_size, flat=True).contiguous()).numpy().tobytes()


def indices_of(pool: Any, pages: Sequence[int]) -> torch.Tensor:
    """Return the token indices of pages."""
    starts = torch.tensor(pages, dtype=torch.int64)[:, None] * pool.page_size
    return (starts + torch.arange(pool.page_size)).flatten()


def transfer(
    name: str, pool: Any, keys: list[str], pages: Sequence[int] | None = None, **more: Any
) -> PoolTransfer:
    """Return a transfer of pages, the first ones unless they are given."""
    pages = range(len(keys)) if pages is None else pages
    return PoolTransfer(name, host_indices=indices_of(pool, pages), keys=keys, **more)


def transfers_of(pools: dict[str, Any], keys: list[str], **more: Any) -> list[PoolTransfer]:
    return [transfer(name, pool, keys, **more) for name, pool in pools.items()]


def each(names: Iterable[str], answer: Sequence[bool]) -> dict[str, list[bool]]:
    return {name: list(answer) for name in names}


def pages_of(pools: dict[str, Any], count: int) -> dict[str, list[bytes]]:
    return {name: [page_of(pool, page) for page in range(count)] for name, pool in pools.items()}


def hashed(count: int, prefix: str = "page") -> list[str]:
    """Return keys like a server's."""
    return [hashlib.sha256(f"{prefix}{number}".encode()).hexdigest() for number in range(count)]


@contextmanager
def opened(lifetime: str, folder: Path, **config: Any) -> Iterator[HiCacheNixl]:
    """Hold a connector open, and close what it leaks."""
    with HiCacheNixl(storage_config(lifetime, **config), str(folder)) as store:
        yield store
    close_below(folder)
