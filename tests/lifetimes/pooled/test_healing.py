"""A store whose state, locks or folder are lost while it is in use: a call or two fail, then it is opened anew."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from large_pages import KEYS, PAGES, get_pages, set_pages
from support import as_bytes, fds_below, names_open, scramble

from hicache_nixl.lifetimes.pooled import healing

ALL = [True] * PAGES


def overwritten(path, content):
    with path.open("r+b") as file:
        file.write(content)


def replaced(path):
    """Put a copy in the place of a file."""
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


# What is done to the folder of the store, and whether its pages survive.
LOSSES = {
    "state removed": (lambda store: (store / "state").unlink(), False),
    "state replaced": (lambda store: replaced(store / "state"), True),
    "state emptied": (lambda store: os.truncate(store / "state", 0), False),
    "state cut": (lambda store: os.truncate(store / "state", 5000), False),
    "state overwritten": (lambda store: overwritten(store / "state", b"x" * 4096), False),
    "state zeroed": (lambda store: overwritten(store / "state", bytes(1 << 17)), False),
    "locks removed": (lambda store: (store / "locks").unlink(), True),
    "locks replaced": (lambda store: replaced(store / "locks"), True),
    "all files removed": (lambda store: [path.unlink() for path in store.iterdir()], False),
    "folder removed": (shutil.rmtree, False),
    "storage folder removed": (lambda store: shutil.rmtree(store.parent), False),
}


@pytest.fixture
def at_once(monkeypatch):
    """Let no time pass between two tries."""
    monkeypatch.setattr(healing, "INTERVAL", 0)


@pytest.fixture
def no_log():
    """Let nobody keep errors, and so the frames in which they were raised, with arrays that map files."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def used(store, pool) -> list[bool]:
    """Set pages, get them, and check their bytes; return which were loaded."""
    set_pages(store, pool)
    expected = as_bytes(pool.kv_buffer).clone()
    scramble(pool)
    good = get_pages(store, pool)
    if all(good):
        assert as_bytes(pool.kv_buffer).equal(expected)
    return good


@pytest.mark.parametrize("how", LOSSES)
def test_a_live_store_works_again_with_the_pages_that_are_left(open_store, pool, folder, log, how):
    lose, kept = LOSSES[how]
    store = open_store()
    assert used(store, pool) == ALL
    lose(folder / "pooled")
    assert not all(get_pages(store, pool))
    log.lines()
    assert (get_pages(store, pool) == ALL) is kept
    assert used(store, pool) == ALL
    assert store.batch_exists(KEYS) == PAGES


@pytest.mark.parametrize("use_direct_io", [False, True], ids=["buffered", "direct"])
def test_nothing_of_the_store_before_stays_open_or_registered(
    open_store, pool, folder, regions_alive, at_once, use_direct_io
):
    store = open_store(use_direct_io=use_direct_io)
    lanes = store.lifetime._transfers.lanes
    alive = [regions_alive(SimpleNamespace(registration=lane.registration)) for lane in lanes]
    found = []
    for _ in range(4):
        assert used(store, pool) == ALL
        found.append((Counter(names_open(folder)), [dict(each) for each in alive]))
        shutil.rmtree(folder / "pooled")
        assert not any(set_pages(store, pool))
    assert found[1:] == found[:1] * 3
    store.close()
    assert fds_below(folder) == {}


def test_one_line_says_that_it_is_lost_and_one_that_it_is_opened_again(
    open_store, pool, folder, log, at_once
):
    store = open_store()
    assert used(store, pool) == ALL
    (folder / "pooled" / "locks").unlink()
    log.lines(logging.WARNING)
    assert not any(get_pages(store, pool))
    assert "READ of 8, first 'page0': locks was removed" in log.line()
    assert get_pages(store, pool) == ALL
    assert log.lines(logging.WARNING) == [
        f"opened the store in {folder}/pooled again, its pages are there: locks was removed (No such file or directory)"
    ]
    (folder / "pooled" / "state").unlink()
    assert not any(get_pages(store, pool))
    assert not any(get_pages(store, pool))
    assert "it is new and empty: state was removed" in "\n".join(log.lines(logging.WARNING))


def test_what_cannot_be_opened_is_tried_once_a_second(open_store, pool, folder, log, monkeypatch):
    store, tries = open_store(), []
    really_open = store.lifetime.open
    monkeypatch.setattr(store.lifetime, "open", lambda path: tries.append(path) or really_open(path))
    monkeypatch.setattr(healing, "INTERVAL", 0.2)
    (folder / "pooled" / "state").unlink()
    (folder / "pooled" / "state").mkdir()
    for _ in range(20):
        assert not any(set_pages(store, pool))
    assert len(tries) == 1
    assert all("state" in line for line in log.lines())
    (folder / "pooled" / "state").rmdir()
    time.sleep(0.2)
    assert set_pages(store, pool) == ALL
    assert len(tries) == 2


def test_no_symbolic_link_is_followed_to_another_folder(open_store, pool, folder, log, at_once):
    """Whoever removed the folder may have put it there."""
    store = open_store()
    shutil.rmtree(folder)
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    for _ in range(3):
        assert not any(set_pages(store, pool))
    assert f"{folder} leads to {elsewhere} now" in log.lines()[-1]
    assert list(elsewhere.iterdir()) == []
    folder.unlink()
    assert set_pages(store, pool) == ALL


@pytest.mark.usefixtures("no_log")
@pytest.mark.parametrize("how", LOSSES)
def test_stores_of_several_processes_meet_again(open_store, pool, folder, at_once, how):
    stores = [open_store() for _ in range(3)]
    for store in stores:
        assert used(store, pool) == ALL
    LOSSES[how][0](folder / "pooled")
    for _ in range(4):
        for store in stores:
            used(store, pool)
    for store in stores:
        assert set_pages(store, pool) == ALL
        for other in stores:
            assert get_pages(other, pool) == ALL
    assert Counter(names_open(folder))["pooled/state"] == 2 * len(stores)


@pytest.mark.usefixtures("no_log")
@pytest.mark.parametrize("how", ["state removed", "locks replaced", "folder removed"])
def test_threads_that_use_a_store_while_it_is_lost_get_right_bytes_or_false(
    open_store, pool, folder, at_once, run_together, how
):
    """None of them uses files of the store before, or a store that is closed."""
    store, size = open_store(), 64 << 10
    answers, done = Counter(), threading.Event()

    def use(number):
        expected, target = (
            torch.full((size,), number, dtype=torch.uint8),
            torch.empty(size, dtype=torch.uint8),
        )
        while not done.is_set():
            answers["set", store.set(f"key{number}", expected)] += 1
            loaded = store.get(f"key{number}", target.zero_())
            answers["get", loaded is not None] += 1
            assert loaded is None or loaded.equal(expected)
            store.exists(f"key{number}")

    def lose():
        try:
            for _ in range(20):
                time.sleep(0.02)
                with suppress(OSError):  # it is not there again yet, or its files are being made
                    LOSSES[how][0](folder / "pooled")
        finally:
            done.set()

    run_together(lose, *[partial(use, number) for number in range(3)])
    assert min(answers["set", True], answers["get", True]) > 20
    assert answers["set", False] + answers["get", False] > 0
    used(store, pool)
    assert used(store, pool) == ALL
    assert Counter(names_open(folder))["pooled/state"] == 2
