"""``pooled``: a store of pages in a few large files, which are opened and registered with NIXL once.

``lifetime`` implements ``lifetimes.protocol``; ``opening`` opens a store, whose parts are ``segments`` (where bytes
go), ``index`` with its ``table`` (where pages are), ``state`` (what all processes share), ``locks`` and ``counters``.
``inspection`` and ``compaction`` are for the command ``hicache-nixl store``.
"""

from .lifetime import Lifetime as Lifetime
