"""Bad files and failed transfers: what is answered and logged, which files stay, what the next calls do."""

from __future__ import annotations

import os

import pytest
import torch
from support import (
    close_below,
    file_size_limit,
    files_in,
    free_descriptors,
    keys_of,
    make_pool,
    names_open,
    page_files,
    scramble,
    without_capabilities,
)

from hicache_nixl.config import QUEUES

NAME = "page1_org-model_0_1_k"


@pytest.fixture
def pool():
    return make_pool(False, "page_first")


@pytest.fixture
def store(make_store, lifetime, pool):
    return make_store(lifetime, pool=pool)


def files_of(*keys):
    return sorted(f"{key}_org-model_0_1{ending}" for key in keys for ending in ("_k", "_v"))


# -- damage ----------------------------------------------------------------------------------------------


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def forbid(path):
    path.chmod(0)


# What only files can suffer; what any piece can is in the contract suite.
DAMAGE = {"folder": (replace_by_folder, "[Errno 21]"), "unreadable": (forbid, "[Errno 13]")}


@pytest.mark.parametrize("call", ["batch_set_v1", "batch_get_v1"])
@pytest.mark.parametrize(
    ("put", "reason"),
    [("link", "a symbolic link"), ("hard link", "has other names"), ("fifo", "not a regular")],
)
def test_scoped_keeps_away_from_what_is_not_its_own_file(
    make_store, pool, folder, tmp_path, log, call, put, reason
):
    store, keys, other = make_store("scoped", pool=pool), keys_of(3), tmp_path / "other"
    assert all(store.batch_set_v1(keys, pool.page_indices(0, 3)))
    other.write_bytes(bytes((folder / NAME).stat().st_size))
    before = other.read_bytes()
    (folder / NAME).unlink()
    {"link": os.symlink, "hard link": os.link, "fifo": lambda _, path: os.mkfifo(path)}[put](
        other, folder / NAME
    )
    read = (put, call) == ("hard link", "batch_get_v1")  # its bytes are there, and nothing is changed
    assert getattr(store, call)(keys, pool.page_indices(0, 3)) == [True, read, True]
    assert read or reason in log.line()
    assert other.read_bytes() == before


# -- get -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGE)
def test_get_of_a_damaged_file_says_which_and_why(store, left, pool, folder, log, damage):
    keys, (damaged, reason) = keys_of(3), DAMAGE[damage]
    assert all(store.batch_set_v1(keys, pool.page_indices(0, 3)))
    close_below(folder)
    damaged(folder / NAME)
    with without_capabilities():
        answers = store.batch_get_v1(keys, pool.page_indices(0, 3))
    assert answers == left.answers(True, False, True)
    line = log.line()
    assert "READ" in line
    assert str(folder / NAME) in line
    assert reason in line
    assert names_open(folder) == [], "an open that fails closes those before it"
    assert all(store.batch_get_v1(keys[:1], pool.page_indices(0, 1))), "the other pages are still good"


def test_every_bad_file_has_its_own_line(make_store, pool, folder, log):
    store = make_store(pool=pool)
    assert all(store.batch_set_v1(keys_of(8), pool.page_indices(0, 8)))
    bad = [folder / f"page{page}_org-model_0_1_v" for page in (0, 3, 7)]
    for path in bad:
        path.unlink()
    good = [page not in (0, 3, 7) for page in range(8)]
    assert store.batch_get_v1(keys_of(8), pool.page_indices(0, 8)) == good
    assert [line.split("'")[-2] for line in log.lines()] == [str(path) for path in bad]


# -- set -------------------------------------------------------------------------------------------------


def test_set_over_a_folder_is_false_and_says_so(store, left, pool, folder, log):
    (folder / NAME).mkdir()
    answers = left.answers(True, False, True)
    assert store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)) == answers
    line = log.line()
    assert str(folder / NAME) in line
    assert "[Errno 21]" in line
    stored = files_of(*(key for key, good in zip(keys_of(3), answers, strict=True) if good))
    assert files_in(folder) == sorted([NAME, *stored]), "of the bad page no other piece stays"
    assert names_open(folder) == []


def test_a_page_of_which_one_file_cannot_be_written_loses_the_older_other_one(make_store, pool, folder):
    """A new piece next to an old one would be a page that was never stored."""
    store = make_store(pool=pool)
    assert all(store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)))
    replace_by_folder(folder / NAME)
    assert store.batch_set_v1(keys_of(3), pool.page_indices(3, 3)) == [True, False, True]
    assert files_in(folder) == sorted([NAME, *files_of("page0", "page2")])


def test_a_page_of_which_no_file_could_be_opened_is_as_before(store, left, pool, folder, log):
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    original = [page_files(pool, False, page) for page in (0, 1)]
    with free_descriptors(0):
        assert store.batch_set_v1(keys_of(2), pool.page_indices(2, 2)) == [False, False]
    assert len(log.lines()) == left.lines(2)
    assert store.batch_exists(keys_of(2)) == 2
    assert all(store.batch_get_v1(keys_of(2), pool.page_indices(4, 2)))
    assert [page_files(pool, False, page) for page in (4, 5)] == original


# -- transfers that fail ---------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", QUEUES)
def test_after_a_failed_transfer_the_next_calls_work(make_store, lifetime, left, pool, folder, log, queue):
    """One truncated page must not cost the cache: every later call is as good as before."""
    store = make_store(lifetime, pool=pool, posix={"queue": queue})
    assert all(store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)))
    truncate(folder / NAME)
    answers = left.answers(True, False, True)
    assert store.batch_get_v1(keys_of(3), pool.page_indices(0, 3)) == answers
    log.line()
    expected = page_files(pool, False, 0)
    scramble(pool)
    assert store.batch_get_v1(keys_of(1), pool.page_indices(0, 1)) == [True]
    assert page_files(pool, False, 0) == expected
    assert all(store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)))
    assert all(store.batch_get_v1(keys_of(3), pool.page_indices(0, 3)))
    assert log.lines() == []


@pytest.mark.parametrize("queue", QUEUES)
def test_a_write_that_falls_short_is_false_and_leaves_no_file(make_store, lifetime, folder, log, queue):
    """The limit on the size of a file ends a write half way, like a full disk."""
    store = make_store(lifetime, posix={"queue": queue})
    with file_size_limit(1000):
        assert store.set("value", torch.zeros(500)) is False
    line = log.line()
    assert "value_org-model_0_1" in line
    assert "[Errno 5] holds 1000 of 2000 bytes" in line
    assert files_in(folder) == []


@pytest.mark.parametrize("queue", QUEUES)
def test_values_that_fit_are_kept_beside_one_that_does_not(make_store, folder, log, queue):
    store = make_store(posix={"queue": queue})
    values = [torch.zeros(100), torch.zeros(500), torch.zeros(200)]
    with file_size_limit(1000):
        assert store.batch_set(keys_of(3), values) is False
    assert files_in(folder) == ["page0_org-model_0_1", "page2_org-model_0_1"]
    assert "page1_org-model_0_1" in (line := log.line())
    assert "[Errno 5] holds 1000 of 2000 bytes" in line
