"""Watching the descriptors of a live process, and judging whether they leak.

Names are loaded when they are used: sampling must not wait for matplotlib.
"""

from __future__ import annotations

from ..lazy import lazily

__getattr__, __all__ = lazily(
    __name__, {"figure": ["watched"], "recording": ["WatchFile", "read_watch"], "verdict": ["Watch"]}
)


def __dir__() -> list[str]:
    return __all__
