"""Watching the descriptors of a live process from outside, and judging whether they leak.

>>> from hicache_nixl import watch
>>> table = watch.read_watch("server.csv")      # doctest: +SKIP
>>> watch.Watch.of(table).answer()              # doctest: +SKIP
'leak: storage files grow by 1,920 per minute [1,904, 1,935], found after 11 s'

``process`` takes samples, ``follow`` takes them until something ends the watch, ``recording`` writes and reads them;
``series`` keeps them in bounded memory, ``rule`` says whether a count leaks, ``verdict`` whether a process does.

The names are listed in ``__init__.pyi`` and loaded when they are used: sampling must not wait for matplotlib.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
