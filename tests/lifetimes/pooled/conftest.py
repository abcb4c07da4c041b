"""Fixtures of the tests of `pooled`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def dir_fd(tmp_path: Path) -> Iterator[int]:
    """The test's folder, open."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
