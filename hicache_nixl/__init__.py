"""A HiCache storage backend on NIXL, and the investigation of what its descriptors cost."""

from .config import HiCacheStorageConfig, NixlBackendConfig
from .connector import HiCacheNixl
from .errors import HiCacheNixlError
from .host_pool import MlaHostPool, MultiHeadHostPool, pool_for_model

__version__ = "0.1.0"

__all__ = [
    "HiCacheNixl",
    "HiCacheNixlError",
    "HiCacheStorageConfig",
    "MlaHostPool",
    "MultiHeadHostPool",
    "NixlBackendConfig",
    "pool_for_model",
]
