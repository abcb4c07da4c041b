"""After the machine was booted, ``pooled`` trusts nothing of before: a page that is loaded has its bytes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support import keys_of
from versions import PAGE_BYTES, filled, versions_in

from hicache_nixl.host.pools import pool_for_page_bytes
from hicache_nixl.lifetimes.pooled import opening, state

PAGES, VERSIONS = 48, 12  # 1.5 MiB of pages in 4 MiB of segments
KEYS = keys_of(PAGES)
INDEX, STATE, SEGMENTS = "index.*", "state", "segment-*"


@pytest.fixture
def pool():
    return pool_for_page_bytes(PAGE_BYTES, pages=PAGES)


@pytest.fixture
def open_store(make_store, pool, monkeypatch):
    """Return a function that opens the store after a certain boot of the machine."""

    def open_after(boot: str, verify: str = "none"):
        for module in (state, opening):
            monkeypatch.setattr(module, "boot_id", boot.encode)
        return make_store(
            "pooled", pool=pool, capacity_gb=4 / 1024, segment_mb=1, min_free_gb=0, verify=verify
        )

    return open_after


def set_version(store, pool, version: int) -> None:
    for page in range(PAGES):
        filled(pool, page, page, version)
    assert all(store.batch_set_v1(KEYS, pool.page_indices(0, PAGES)))


def loaded(store, pool) -> list[set[int]]:
    """Return the versions in each page that is loaded."""
    good = store.batch_get_v1(KEYS, pool.page_indices(0, PAGES))
    return [versions_in(pool, page, page) for page in range(PAGES) if good[page]]


def contents(store: Path, *patterns: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for pattern in patterns for path in store.glob(pattern)}


def restore(files: dict[Path, bytes]) -> None:
    """Write files back in place, as a disk that has only part of what was written."""
    for path, content in files.items():
        path.write_bytes(content)


def without_tail(*patterns: str) -> Callable[[Path, dict[Path, bytes]], None]:
    def lose(store: Path, old: dict[Path, bytes]) -> None:
        for path, content in contents(store, *patterns).items():
            half = len(content) // 2 // 4096 * 4096
            restore({path: content[:half] + bytes(len(content) - half)})

    return lose


def cut(*patterns: str) -> Callable[[Path, dict[Path, bytes]], None]:
    def shorten(store: Path, old: dict[Path, bytes]) -> None:
        for path in contents(store, *patterns):
            os.truncate(path, path.stat().st_size // 2)

    return shorten


def older(*patterns: str) -> Callable[[Path, dict[Path, bytes]], None]:
    def bring_back(store: Path, old: dict[Path, bytes]) -> None:
        restore({path: old[path] for path in contents(store, *patterns) if path in old})

    return bring_back


def mixed(*patterns: str) -> Callable[[Path, dict[Path, bytes]], None]:
    """Blocks of 4 KiB are old, new or zeros."""

    def mix(store: Path, old: dict[Path, bytes]) -> None:
        chance = random.Random(1)
        for path, new in contents(store, *patterns).items():
            kinds = (new, new, old.get(path, new), bytes(len(new)))
            blocks = [chance.choice(kinds)[at : at + 4096] for at in range(0, len(new), 4096)]
            restore({path: b"".join(blocks)})

    return mix


LOSSES = {
    "tails of segments": without_tail(SEGMENTS),
    "tail of the index": without_tail(INDEX),
    "tail of the state": without_tail(STATE),
    "short segments": cut(SEGMENTS),
    "short index": cut(INDEX),
    "short state": cut(STATE),
    "old index": older(INDEX),
    "old state": older(STATE),
    "old index and state": older(INDEX, STATE),
    "old segments": older(SEGMENTS),
    "blocks of segments": mixed(SEGMENTS),
    "blocks of the index": mixed(INDEX),
    "blocks of the state": mixed(STATE),
    "blocks of all": mixed(SEGMENTS, INDEX, STATE),
}


@pytest.mark.parametrize("verify", ["none", "checksum"])
@pytest.mark.parametrize("lost", LOSSES)
def test_after_a_boot_pages_are_whole_or_missing_whatever_was_lost(open_store, folder, pool, lost, verify):
    with open_store("first") as store:
        set_version(store, pool, 1)
        old = contents(folder / "pooled", SEGMENTS, INDEX, STATE)
        for version in range(2, VERSIONS):
            set_version(store, pool, version)
    LOSSES[lost](folder / "pooled", old)
    with open_store("second", verify) as store:
        for versions in loaded(store, pool):
            assert len(versions) == 1
            assert versions <= set(range(1, VERSIONS))
        for version in range(VERSIONS, 2 * VERSIONS):
            set_version(store, pool, version)
            assert loaded(store, pool) == [{version}] * PAGES


def test_without_another_boot_id_old_bytes_are_loaded(open_store, folder, pool):
    """So the losses of the test above are real ones."""
    with open_store("first") as store:
        set_version(store, pool, 1)
        old = contents(folder / "pooled", SEGMENTS)
        set_version(store, pool, 2)
    restore({path: bytes(len(content)) for path, content in old.items()})
    with open_store("first") as store:
        assert {-1} in loaded(store, pool)


def test_after_a_boot_pages_that_were_not_lost_are_loaded(open_store, pool):
    with open_store("first") as store:
        set_version(store, pool, 1)
    with open_store("second") as store:
        assert loaded(store, pool) == [{1}] * PAGES


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [("ordered", "none"), ("writeback", "none"), ("no_journal", "none"), ("ordered", "checksum")],
    ids=" ".join,
)
def test_after_a_power_cut_no_page_has_other_bytes(left_by_cuts, arguments):
    left = left_by_cuts("pooled_power_cut.py", *arguments)
    assert left["cuts"] == 40
    assert left["present"] > 500
    assert (left["other bytes"], left["refused"]) == (0, 0)


@pytest.mark.slow
def test_without_another_boot_id_a_power_cut_leaves_pages_with_other_bytes(left_by_cuts):
    """So the cuts of the test above are real ones."""
    assert left_by_cuts("pooled_power_cut.py", "ordered", "nothing")["other bytes"] > 0
