"""A folder of page files."""

from __future__ import annotations

import pytest
from support import close_below

from hicache_nixl.transport.files import NixlFileManager


@pytest.fixture
def manager(tmp_path):
    made = NixlFileManager(str(tmp_path))
    yield made
    made.close()
    close_below(tmp_path)


@pytest.fixture
def paths(manager):
    """Three page files."""
    made = [manager.get_file_path(name) for name in ("a", "b", "c")]
    for path in made:
        assert manager.create_file(path)
    return made
