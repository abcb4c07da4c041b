"""Watching the descriptors of a live process, and judging whether they leak.

The names are listed in ``__init__.pyi`` and loaded when they are used: sampling must not wait for matplotlib.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
