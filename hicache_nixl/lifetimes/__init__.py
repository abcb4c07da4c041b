"""Lifetimes: who owns the storage of pages, and when what a call opens and registers is released.

``leaky``, ``try_finally`` and ``scoped`` keep a file or object per piece of a page and share
``file_per_piece``.  They have the same outline, so that ``diff`` of two neighbours is the patch between them.
``pooled`` keeps all pages in a few files that are opened once, and with OBJ the pages of a call in few objects
(``pooled_objects``).
A lifetime implements ``protocol.Lifetime``; it is added with a line in ``BY_NAME``, without a change in the
connector.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .protocol import Lifetime

# Name to module, which is imported when the lifetime is used: listing the names does not need torch.
FILE_PER_PIECE = ("leaky", "try_finally", "scoped")
BY_NAME = {name: f"{__name__}.{name}" for name in FILE_PER_PIECE} | {"pooled": f"{__name__}.pooled.lifetime"}
LIFETIMES = tuple(BY_NAME)
DEFAULT_LIFETIME = "scoped"
POOLED_OBJECTS = f"{__name__}.pooled_objects.lifetime"  # in place of ``pooled``, with OBJ
# Those that reproduce a release of SGLang, including its answers and its names of pages.
RELEASED = {"leaky": "SGLang up to 0.5.11", "try_finally": "SGLang 0.5.12"}


def load(name: str, plugin: str = "auto") -> type[Lifetime]:
    """Return the class of a lifetime, for a plugin of NIXL.

    Examples
    --------
    >>> load("scoped").__module__
    'hicache_nixl.lifetimes.scoped'
    """
    module = POOLED_OBJECTS if (name, plugin) == ("pooled", "OBJ") else BY_NAME[name]
    lifetime: type[Lifetime] = import_module(module).Lifetime
    return lifetime
