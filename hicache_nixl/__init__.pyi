from .config import HiCacheStorageConfig as HiCacheStorageConfig
from .config import NixlBackendConfig as NixlBackendConfig
from .connector import HiCacheNixl as HiCacheNixl
from .errors import HiCacheNixlError as HiCacheNixlError
from .host.pools import MlaHostPool as MlaHostPool
from .host.pools import MultiHeadHostPool as MultiHeadHostPool
from .host.pools import pool_for_model as pool_for_model

__version__: str
