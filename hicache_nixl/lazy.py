"""Names of a package that are loaded when they are used (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, modules: Mapping[str, Iterable[str]]) -> tuple[Callable[[str], Any], list[str]]:
    """Return a package's ``__getattr__`` and ``__all__``, given its modules and the names to take from each.

    Examples
    --------
    >>> get, names = lazily("hicache_nixl", {"errors": ["ConfigError"]})
    >>> get("ConfigError").__module__, names
    ('hicache_nixl.errors', ['ConfigError'])
    """
    home = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{home[name]}", package), name)

    return get, sorted(home)
