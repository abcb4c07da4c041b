"""``pooled``: a store of pages in a few large files, which are opened and registered with NIXL once.

``lifetime`` implements ``lifetimes.protocol``; ``opening`` opens a store, whose parts are ``segments`` (where bytes
go), ``index`` with its ``table`` (where pages are), ``state`` (what all processes share), ``locks`` and ``counters``.
``inspection`` and ``compaction`` are for the command ``hicache-nixl store``.

Descriptors of an open store, whatever the number of keys: one for each segment that was used, at most
``capacity / segment_mb`` (two each with ``use_direct_io``), and 6: the folder, ``locks``, and 2 each for the mapped
files ``state`` and ``index.N`` (one more pair while the index grows).  With io_uring NIXL has 2 more, one per agent.
"""
