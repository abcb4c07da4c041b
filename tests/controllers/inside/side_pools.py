"""The host pools beside the KV pool that a ``HybridCacheController`` of SGLang 0.5.23 moves with it.

``draft``: the KV pages of a draft model, at the same places.  ``swa``: those of layers with a sliding window, of which only the
last pages of a prompt are kept.  ``mamba``: one state for the end of a prompt; its host pool has pages of one index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import releases
import torch
from releases import LAYERS, PAGE, WINDOW
from sglang.srt.mem_cache.device_pool_info import MambaStateBufferInfo
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.hybrid_cache.hybrid_pool_assembler import build_pool_entry
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost


class SidePool:
    """One of them.

    Parameters
    ----------
    window : int
        Trailing pages of a prompt that it keeps; 0 for all of them, at the places of the KV pool.
    """

    def __init__(self, name: str, device_pool: Any, host_pool: Any, window: int):
        self.name, self.pool, self._window = PoolName(name), host_pool, window
        self._device_pool = device_pool

    def join_group(self, group: Any) -> None:
        """Have the controller of a group of host pools move this one, too."""
        entry = build_pool_entry(
            name=self.name,
            host_pool=self.pool,
            device_pool=self._device_pool,
            layer_mapping={layer: layer for layer in range(LAYERS)},
            transfer_layer_id_max=LAYERS,
        )
        group.add_entry(entry)

    def join_controller(self, controller: Any) -> None:
        """Do nothing: the controller has the group."""

    def places(self, kv_places: torch.Tensor, first: int) -> torch.Tensor:
        """Return places for the pages of a prompt from page ``first`` on, given those in the KV pool."""
        if not self._window:
            return kv_places
        size = self.pool.page_size
        return torch.arange(min(self._window, len(kv_places) // PAGE) * size) + first * size

    def transfer(self, keys: Sequence[str], places: torch.Tensor) -> PoolTransfer:
        """Return what the cache passes on to have the pages of a prompt stored or loaded."""
        if not self._window:
            return PoolTransfer(self.name, indices_from_pool=PoolName.KV)
        policy = PoolHitPolicy.TRAILING_PAGES
        return PoolTransfer(
            self.name, host_indices=places, keys=list(keys[-self._window :]), hit_policy=policy
        )

    def zero(self) -> None:
        """Forget all pages."""
        buffers = self.pool.kv_buffer
        for buffer in buffers if isinstance(buffers, list) else [buffers]:
            buffer.zero_()


def make(names: Sequence[str], pages: int, layout: str) -> list[SidePool]:
    """Return side pools by their names; there is none for Mamba in the layouts ``layer_first`` and ``page_head``."""
    return [_MAKERS[name](pages, layout) for name in names]


def _draft(pages: int, layout: str) -> SidePool:
    device = releases.device_pool("multi_head", pages, "bfloat16")
    return SidePool("draft", device, releases.host_pool(device, layout).anchor_entry.host_pool, 0)


def _swa(pages: int, layout: str) -> SidePool:
    device = releases.device_pool("multi_head", 2 * WINDOW, "bfloat16")
    return SidePool("swa", device, releases.host_pool(device, layout).anchor_entry.host_pool, WINDOW)


def _mamba(pages: int, layout: str) -> SidePool:
    states = 8
    info = MambaStateBufferInfo(
        temporal=torch.zeros(LAYERS, states, 4, 8, 8),
        conv=(torch.zeros(LAYERS, states, 12, 3, dtype=torch.bfloat16),),
    )
    pool = MambaPoolHost(info, 2.0, 0, device_capacity=states, layout=layout, pin_memory=False)
    return SidePool("mamba", None, pool, 1)


_MAKERS = {"draft": _draft, "swa": _swa, "mamba": _mamba}
