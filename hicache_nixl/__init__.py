"""A HiCache storage backend on NIXL, and the investigation of what its descriptors cost.

Names are loaded when they are used: the command must not wait for torch where it does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "HiCacheNixl": "connector",
    "HiCacheNixlError": "errors",
    "HiCacheStorageConfig": "config",
    "MlaHostPool": "host_pool",
    "MultiHeadHostPool": "host_pool",
    "NixlBackendConfig": "config",
    "pool_for_model": "host_pool",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
