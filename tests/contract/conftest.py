"""The contract suite: what the connector promises with every lifetime, also with one that keeps no files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import in_memory
import pytest
from object_pieces import empty_bucket
from pooled_store import note_names
from several import several_pools
from stores import STORES, Raw, raw_access
from support import STORE_VARIABLE

from hicache_nixl import lifetimes
from hicache_nixl.lifetimes.pooled_objects import catalogue


@pytest.fixture(autouse=True)
def pages_in_a_dict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add a lifetime by its name; nothing else knows of it."""
    monkeypatch.setitem(lifetimes.BY_NAME, "in_memory", "in_memory")
    yield
    in_memory.STORES.clear()


@pytest.fixture(autouse=True)
def empty_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin each test that is over objects with an empty bucket."""
    if STORE_VARIABLE in os.environ:
        empty_bucket()
        monkeypatch.setattr(catalogue, "FRESH", 0)  # what tests remove by hand is noticed at once


@pytest.fixture(autouse=True)
def names_of_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let raw access name the pages of ``pooled``."""
    note_names(monkeypatch)


@pytest.fixture(params=STORES)
def lifetime(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def raw(lifetime: str, folder: Path) -> Raw:
    """What the stores of this test hold, past the connector."""
    return raw_access(lifetime, folder)


@pytest.fixture
def raw_of(folder: Path) -> Callable[[str], Raw]:
    """Raw access by the name of a lifetime, for tests of several."""
    return lambda lifetime: raw_access(lifetime, folder)


@pytest.fixture
def pools() -> dict[str, Any]:
    """Return the host pools of a model that has several."""
    return several_pools()
