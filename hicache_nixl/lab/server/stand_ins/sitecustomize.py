"""What SGLang expects of CUDA, put in place when the modules concerned are imported.

Python imports a module of this name when it starts, so it also reaches the scheduler, which the server spawns.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_LIBRARIES: list[Any] = []  # torch forgets the operators of a library that is not kept


def declare_vision_operators() -> None:
    """Declare two operators that torchvision's Python code registers its own for; a text model calls neither.

    PyPI's torchvision is built for the CUDA build of torch, and does not declare them beside the other one.
    """
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


def name_copies(module: ModuleType) -> None:
    """Give the pools the names of the page copies, which they import on a GPU only."""
    import sgl_kernel.kvcacheio as copies

    for name in vars(copies):
        if name.startswith("transfer_kv") and not hasattr(module, name):
            setattr(module, name, getattr(copies, name))


def leave_unpinned(module: ModuleType) -> None:
    """Let the host pool be ordinary memory.

    Pinning needs the CUDA driver, and lets a GPU read memory directly.  NIXL's file plugins read ordinary memory as well.
    """
    pool = module.HostKVCache
    construct, signature = pool.__init__, inspect.signature(pool.__init__)

    @functools.wraps(construct)
    def unpinned(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        given.arguments["pin_memory"] = False
        construct(*given.args, **given.kwargs)

    pool.__init__ = unpinned


def complete_streams(module: ModuleType) -> None:
    """Give the streams of processors two methods: an operation is complete when its call returns."""
    import torch

    stream: Any = torch.cpu.Stream
    stream.synchronize = lambda self: None
    stream.query = lambda self: True


def prepare_pools(module: ModuleType) -> None:
    """Prepare the host pools of the releases that have all of them in one module."""
    name_copies(module)
    if getattr(vars(module).get("HostKVCache"), "__module__", None) == module.__name__:
        leave_unpinned(module)


def allocate_in_torch(module: Any) -> None:
    """Allocate pages in torch, where a release has Triton kernels for that, which do not run on processors.

    More tokens of a prompt: SGLang has that function itself.  One more token for each request: it is the place after
    the last one, or the first of the next free page.
    """
    import torch

    if not hasattr(module, "alloc_extend_kernel"):
        return

    def extend(prefix: Any, lengths: Any, last: Any, free: Any, out: Any, _: int, page_size: int) -> None:
        module.alloc_extend_naive(prefix, lengths, last, free, out, page_size, out.device)

    def decode(lengths: Any, last: Any, free: Any, out: Any, _: int, page_size: int) -> None:
        new = (lengths - 1) % page_size == 0
        out.copy_(last + 1)
        out[new] = free[: int(torch.count_nonzero(new))] * page_size

    module.alloc_extend_kernel = _Launched(extend)
    module.alloc_decode_kernel = _Launched(decode)


class _Launched:
    """A function that is called as Triton's kernels are: ``kernel[grid](...)``."""

    def __init__(self, function: Callable[..., None]):
        self._function = function

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._function


BEFORE: dict[str, Callable[[], None]] = {"torchvision": declare_vision_operators}
AFTER: dict[str, Callable[[ModuleType], None]] = {
    "sglang.srt.managers.cache_controller": complete_streams,
    "sglang.srt.mem_cache.allocator": allocate_in_torch,  # 0.5.11, 0.5.12
    "sglang.srt.mem_cache.allocator.paged": allocate_in_torch,  # 0.5.13.post1
    "sglang.srt.mem_cache.memory_pool_host": prepare_pools,  # up to 0.5.13.post1
    "sglang.srt.mem_cache.pool_host.base": leave_unpinned,  # 0.5.23
    "sglang.srt.mem_cache.pool_host.mha": name_copies,
    "sglang.srt.mem_cache.pool_host.mla": name_copies,
}


class _Hook(importlib.abc.MetaPathFinder):
    """Calls a function before or after the import of a module, once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the usual spec of a module, with the function called after it; None for other modules."""
        if name in BEFORE:
            BEFORE.pop(name)()
        after = AFTER.pop(name, None)
        spec = importlib.machinery.PathFinder.find_spec(name, path) if after else None
        if spec is None or spec.loader is None or after is None:
            return None
        load = spec.loader.exec_module

        def load_and_call(module: ModuleType) -> None:
            load(module)
            after(module)

        spec.loader.exec_module = load_and_call  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Hook())
