"""A HiCache storage backend on NIXL, and the investigation of what its descriptors cost.

The names are listed in ``__init__.pyi`` and loaded when they are used, so that a command that does not need torch does
not wait for it.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
