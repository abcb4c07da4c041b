"""Opening a store again: on a disk without room, and after its maker was killed in the middle."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_store import SmallStore

from hicache_nixl.config import ConfigError
from hicache_nixl.lifetimes.pooled import opening
from hicache_nixl.lifetimes.pooled.inspection import Inspection


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is free."""
    values = [*os.fstatvfs(0)]
    values[4] = 0  # f_bavail
    monkeypatch.setattr(os, "fstatvfs", lambda fd: os.statvfs_result(values))


@pytest.mark.parametrize("segment_mb", [1, None])
def test_a_store_on_a_full_disk_is_opened_with_its_capacity(folder: Path, request, segment_mb):
    with SmallStore(folder) as store:
        store.set(range(8))
    request.getfixturevalue("full_disk")
    with SmallStore(folder, capacity_gb=None, segment_mb=segment_mb) as store:
        assert store.get(range(8)) == [True] * 8
        assert store.set(range(4)) == [True] * 4


@pytest.mark.usefixtures("full_disk")
def test_a_new_store_on_a_full_disk_is_refused(folder: Path):
    with pytest.raises(ConfigError, match="capacity_gb: 0 is less than two segments"):
        SmallStore(folder, capacity_gb=None)


@pytest.mark.parametrize("field", ["geometry", "start"])
def test_a_store_whose_maker_was_killed_is_made_again(folder: Path, monkeypatch, field):
    """It ends before the geometry is known, and before there is an index."""

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(opening if field == "geometry" else opening.Index, field, killed)
        with pytest.raises(KeyboardInterrupt):
            SmallStore(folder)
    with SmallStore(folder, capacity_gb=None) if field == "start" else SmallStore(folder) as store:
        assert store.set(range(8)) == [True] * 8
        assert store.get(range(8)) == [True] * 8
    with Inspection(folder) as inspection:
        assert inspection.facts().most_segments == 8
