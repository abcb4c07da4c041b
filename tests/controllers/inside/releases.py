"""What differs between releases of SGLang: where the ranks are kept, how a host pool is made, and how the scheduler
and the threads of the controller hand a prefetch to each other.

Read in ``managers/cache_controller.py``, ``mem_cache/hybrid_cache`` and the radix caches of 0.5.11 and 0.5.23.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.distributed import parallel_state
from sglang.srt.managers import cache_controller
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool

try:
    from sglang.srt.mem_cache import memory_pool_host
    from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle
    from sglang.srt.mem_cache.hybrid_cache import hybrid_cache_controller, hybrid_pool_assembler
    from sglang.srt.mem_cache.pool_host import base as host_pools
    from sglang.srt.mem_cache.utils import get_storage_hash_str
    from sglang.srt.runtime_context import get_context, get_parallel

    HAS_CONTEXT = True  # 0.5.23
except ImportError:
    from sglang.srt.mem_cache import memory_pool_host
    from sglang.srt.mem_cache.utils import get_hash_str

    host_pools, HAS_CONTEXT = memory_pool_host, False

PAGE, LAYERS = 16, 3  # tokens of a page
WINDOW = 4  # pages that are kept of layers with a sliding window
KV_CACHE_DTYPES = {"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}  # how a server is asked for them
MODEL = "org/model"
host_pools.HICACHE_HOST_MEMORY_RESERVE_BYTES = (
    0  # SGLang leaves 10 GB of the machine, which these small pools need not
)


def take_place(rank: int, ranks: int, meeting: str) -> None:
    """Join the process group of a tensor-parallel server, through a file."""
    if HAS_CONTEXT:
        get_context().override_server_args(tp_size=ranks, hicache_ratio=2).install()
        zero = ("pp", "attn_dp", "attn_cp", "attn_dcp", "moe_ep", "moe_dp")
        places = {f"{name}_rank": 0 for name in zero}
        get_parallel().override_permanently(tp_rank=rank, attn_tp_rank=rank, moe_tp_rank=rank, **places)
    parallel_state.init_distributed_environment(ranks, rank, f"file://{meeting}", rank, "gloo")
    parallel_state.initialize_model_parallel(*(() if HAS_CONTEXT else (ranks,)))


def device_pool(kind: str, pages: int, dtype: str) -> Any:
    """Return a small pool of the "device", which is memory of this machine; a piece of a page is 4096 bytes or a multiple."""
    size, number_type = pages * PAGE, getattr(torch, dtype)
    if HAS_CONTEXT:
        get_context().override("tests", kv_cache_dtype=KV_CACHE_DTYPES.get(dtype, "auto"))
    if kind == "mla":
        return MLATokenToKVPool(size, PAGE, number_type, 96, 32, LAYERS, "cpu", False)
    return MHATokenToKVPool(size, PAGE, number_type, 2, 64, LAYERS, "cpu", False)


def host_pool(device: Any, layout: str) -> Any:
    """Return the host pool of a device pool, twice as large; in 0.5.23 a group with one pool."""
    mla = isinstance(device, MLATokenToKVPool)
    if not HAS_CONTEXT:
        kind = memory_pool_host.MLATokenToKVPoolHost if mla else memory_pool_host.MHATokenToKVPoolHost
        return kind(device, 2.0, 0, PAGE, layout)
    get_context().override("tests", hicache_mem_layout=layout)
    layers = {layer: layer for layer in range(LAYERS)}
    return hybrid_pool_assembler.build_kv_only_group(
        page_size=PAGE, kv_pool=device, full_layer_mapping=layers, use_mla=mla
    )


def page_hashes(tokens: list[int]) -> list[str]:
    """Return the keys of the pages of a prompt: each is a hash of all tokens up to its end."""
    if HAS_CONTEXT:
        return list(get_storage_hash_str(tokens, None, page_size=PAGE))
    hashes: list[str] = []
    for first in range(0, len(tokens), PAGE):
        hashes.append(get_hash_str(tokens[first : first + PAGE], hashes[-1] if hashes else None))
    return hashes


def make_controller(name: str, device: Any, pool: Any) -> Any:
    """Return the controller of that name, without storage."""
    module = cache_controller if name == "HiCacheController" else hybrid_cache_controller
    host = pool if name == "HybridCacheController" or not HAS_CONTEXT else pool.anchor_entry.host_pool
    allocator = PagedTokenToKVPoolAllocator(device.size, PAGE, device.dtype, "cpu", device, False)
    group = parallel_state.get_tp_group().cpu_group
    return getattr(module, name)(allocator, host, PAGE, group, threading.Event(), io_backend="kernel")


def attach(controller: Any, extra_config: dict[str, Any]) -> None:
    """Attach a storage backend as a server does that is started with it."""
    entries = getattr(controller.mem_pool_host, "entries", None)
    several = {} if entries is None else {"host_pools": entries}
    controller.attach_storage_backend("dynamic", 1, MODEL, dict(extra_config), **several)


class Draft:
    """The KV pages of a draft model in 0.5.11, which its controller stores as tensors of one page, under ``d:KEY``."""

    name = "draft"

    def __init__(self, pages: int, layout: str):
        self._device = device_pool("multi_head", pages, "bfloat16")
        self.pool = host_pool(self._device, layout)

    def join_group(self, group: Any) -> None:
        """Do nothing: there are no groups yet."""

    def join_controller(self, controller: Any) -> None:
        """Have the controller move these pages with those of the KV pool."""
        controller.set_draft_kv_pool(self._device, self.pool)

    def places(self, kv_places: torch.Tensor, first: int) -> torch.Tensor:
        """Return the places of the KV pool."""
        return kv_places

    def transfer(self, keys: Sequence[str], places: torch.Tensor) -> None:
        """Return nothing: the controller needs none."""

    def zero(self) -> None:
        """Forget all pages."""
        self.pool.kv_buffer.zero_()


class Prefetches:
    """The scheduler's side of prefetches; ``loaded`` has the number of pages of those that ended, by their number.

    In 0.5.23 the prefetch thread returns an operation with its hits, the scheduler gives it places in the host pool and
    passes it on, and the I/O thread reports in acknowledgements.  In 0.5.11 it has its places from the start.
    """

    def __init__(self, controller: Any):
        self._controller, self._numbers, self._running = controller, 0, {}
        self.loaded: dict[int, int] = {}
        self.hits: dict[int, dict[str, int]] = {}  # of side pools

    def start(self, tokens: list[int], places: torch.Tensor, side_pools: Sequence[Any] = ()) -> int:
        """Ask for the pages of a prompt, and for those of side pools; return the number of this prefetch."""
        self._numbers += 1
        name = f"request-{self._numbers}"
        if not HAS_CONTEXT:
            operation = self._controller.prefetch(name, places, tokens)
        else:
            hybrid = isinstance(self._controller, hybrid_cache_controller.HybridCacheController)
            more = {"extra_pools": list(side_pools)} if side_pools else {}
            operation = self._controller.prefetch(
                CacheRequestHandle(name, 0) if hybrid else name, tokens, **more
            )
        self._running[id(operation)] = (self._numbers, operation, places)
        return self._numbers

    def advance(self) -> None:
        """Do what the scheduler does between two batches."""
        (self._advance_acknowledged if HAS_CONTEXT else self._advance_by_looking)()

    def _advance_by_looking(self) -> None:
        revoked = set()
        while not self._controller.prefetch_revoke_queue.empty():
            revoked.add(self._controller.prefetch_revoke_queue.get())
        for _, operation, _ in list(self._running.values()):
            whole = len(operation.hash_value) * PAGE
            if (
                operation.request_id in revoked
                or operation.is_terminated()
                or operation.completed_tokens == whole > 0
            ):
                self._end(operation, operation.completed_tokens)

    def _advance_acknowledged(self) -> None:
        while not self._controller.prefetch_hit_queue.empty():
            operation = self._controller.prefetch_hit_queue.get()
            if operation.storage_hit_count == 0:
                self._end(operation, 0)
                continue
            operation.host_indices = self._running[id(operation)][2][: operation.storage_hit_count]
            self._controller.prefetch_buffer.put(operation)
        while not self._controller.ack_prefetch_queue.empty():
            acknowledged = self._controller.ack_prefetch_queue.get()
            operation = acknowledged.operation
            if acknowledged.completed_tokens is not None:
                operation.completed_tokens = acknowledged.completed_tokens
            if acknowledged.pool_hits is not None:
                self.hits[self._running[id(operation)][0]] = dict(acknowledged.pool_hits)
            if acknowledged.completed_req:
                self._end(operation, operation.completed_tokens)

    def _end(self, operation: Any, tokens: int) -> None:
        number = self._running.pop(id(operation))[0]
        self.loaded[number] = tokens // PAGE
