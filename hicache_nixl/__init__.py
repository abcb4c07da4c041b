"""A HiCache storage backend on NIXL, and the investigation of what its descriptors cost.

Names are loaded when they are used: the command must not wait for torch where it does without.
"""

from __future__ import annotations

from .lazy import lazily

__version__ = "0.1.0"

__getattr__, __all__ = lazily(
    __name__,
    {
        "config": ["HiCacheStorageConfig", "NixlBackendConfig"],
        "connector": ["HiCacheNixl"],
        "errors": ["HiCacheNixlError"],
        "host.pools": ["MlaHostPool", "MultiHeadHostPool", "pool_for_model"],
    },
)


def __dir__() -> list[str]:
    return __all__
