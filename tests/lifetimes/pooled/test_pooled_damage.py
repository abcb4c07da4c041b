"""Files of a store that are removed, cut, replaced or changed: pages are missing, none is wrong, nothing crashes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from large_pages import KEYS, PAGES, get_pages, set_pages
from support import as_bytes

from hicache_nixl.errors import HiCacheNixlError


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def halved(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def longer(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 4096)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"x" * max(path.stat().st_size, 1))
    other.rename(path)


def overwritten(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def renamed(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def link(path: Path) -> None:
    renamed(path)
    path.symlink_to(path.with_name("elsewhere"))


def hard_link(path: Path) -> None:
    os.link(path, path.with_name("elsewhere"))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flipped(path: Path) -> None:
    chance = random.Random(1)
    with open(path, "r+b") as file:
        content = bytearray(file.read())
        for _ in range(200 if content else 0):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.seek(0)
        file.write(content)


KINDS = (
    emptied,
    halved,
    longer,
    replaced,
    overwritten,
    zeroed,
    renamed,
    link,
    hard_link,
    fifo,
    folder_instead,
)
DAMAGE: dict[str, Callable[[Path], None]] = {
    "removed": Path.unlink,
    **{kind.__name__: kind for kind in (*KINDS, flipped)},
}
FILES = ("segment-0000", "index.0", "state", "locks")


def loaded(store, pool) -> list[bool]:
    """Load all pages, check the bytes of those that are present, and return which are."""
    expected = as_bytes(pool.kv_buffer).clone()
    as_bytes(pool.kv_buffer).zero_()
    good = get_pages(store, pool)
    for page in range(PAGES):
        places = (slice(None), slice(page * pool.page_size, (page + 1) * pool.page_size))
        got, stored = as_bytes(pool.kv_buffer)[places], expected[places]
        assert not good[page] or torch.equal(got, stored), f"page {page} has other bytes"
    as_bytes(pool.kv_buffer).copy_(expected)
    return good


def works_again(store, pool) -> bool:
    """Tell whether pages can be stored and loaded, also when all segments are recycled."""
    for _ in range(6):
        set_pages(store, pool)  # what is lost may be noticed by the first
    return all(set_pages(store, pool)) and all(loaded(store, pool))


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_under_a_live_store_makes_pages_missing_and_the_next_store_works(
    open_store, folder, pool, log, name, how
):
    store = open_store()
    assert all(set_pages(store, pool))
    DAMAGE[how](folder / "pooled" / name)
    loaded(store, pool)
    assert len(log.lines()) <= 2
    set_pages(store, pool)
    loaded(store, pool)
    store.exists(KEYS[0])
    store.clear()
    store.close()
    assert_next_store_works(open_store, folder, pool, name)


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_between_two_stores_makes_pages_missing_and_the_next_store_works(
    open_store, folder, pool, log, name, how
):
    store = open_store()
    assert all(set_pages(store, pool))
    store.close()
    DAMAGE[how](folder / "pooled" / name)
    assert_next_store_works(open_store, folder, pool, name)


def assert_next_store_works(open_store, folder, pool, name) -> None:
    """What is no regular file is refused by name, and then removed by hand."""
    path = folder / "pooled" / name
    is_file = path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1
    if name in ("state", "locks") and path.exists() and not is_file:
        with pytest.raises(HiCacheNixlError, match=f"{folder}.*{name}"):
            open_store()
        path.rename(folder / "removed")
    store = open_store()
    loaded(store, pool)
    assert works_again(store, pool)


@pytest.mark.parametrize(
    "how", [name for name in DAMAGE if name not in ("flipped", "renamed", "link", "hard_link")]
)
def test_a_damaged_segment_is_named_in_one_line_and_pages_of_others_are_loaded(
    open_store, folder, pool, log, how
):
    open_store().close()
    store = open_store()
    assert all(set_pages(store, pool))
    DAMAGE[how](folder / "pooled" / "segment-0000")
    assert loaded(store, pool) == [False] * 4 + [True] * 4
    line = log.line()
    assert "READ of 4, first 'page0'" in line
    assert (
        "segment 0 holds other bytes" in line if how in ("overwritten", "zeroed") else "segment-0000" in line
    )
    assert [store.exists(key) for key in KEYS] == [False] * 4 + [True] * 4
    assert works_again(store, pool)


def test_a_lost_index_starts_empty_and_says_so(open_store, folder, pool, log):
    store = open_store()
    assert all(set_pages(store, pool))
    (folder / "pooled" / "index.0").unlink()
    assert store.batch_exists(KEYS) == 0
    assert "index of the store is lost, so it starts empty" in log.line()
    assert all(set_pages(store, pool))
    assert all(loaded(store, pool))


def test_a_damaged_state_is_set_aside_and_the_store_starts_empty(open_store, folder, pool, log):
    store = open_store()
    assert all(set_pages(store, pool))
    store.close()
    overwritten(folder / "pooled" / "state")
    store = open_store()
    assert "state of the store" in log.line()
    assert (folder / "pooled" / "state.damaged").exists()
    assert store.batch_exists(KEYS) == 0
    assert all(set_pages(store, pool))


def test_an_emptied_state_is_a_store_that_starts_empty_and_says_so(open_store, folder, pool, log):
    open_store().close()
    os.truncate(folder / "pooled" / "state", 0)
    open_store()
    assert "is lost, so it starts empty" in log.line()


def test_a_damaged_state_that_another_store_uses_is_refused(open_store, folder, pool):
    with open_store():
        overwritten(folder / "pooled" / "state")
        with pytest.raises(HiCacheNixlError, match="state"):
            open_store()


def test_too_many_open_files_lose_no_page(open_store, pool, log, monkeypatch):
    """Index and segments are only opened when they are needed."""
    store = open_store()
    assert all(set_pages(store, pool))
    store.close()
    store = open_store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert not any(loaded(store, pool))
        assert not any(set_pages(store, pool))
    assert all(loaded(store, pool))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert all(loaded(store, pool))


def refuse(*args, **kwargs):
    raise OSError(24, "Too many open files")
