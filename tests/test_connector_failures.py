"""Failures with real causes: folders, limits, threads.  No fault is made up here.

Bad files: ``test_bad_pages.py``; full and read-only file systems: ``test_file_systems.py``.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading

import pytest
import torch
from pooled_store import Records
from support import (
    LEFT,
    TESTS,
    answer_of,
    close_below,
    files_in,
    free_descriptors,
    keys_of,
    make_pool,
    names_open,
    run_python,
    without_capabilities,
)

from hicache_nixl import lifetimes
from hicache_nixl.config import LIFETIMES, QUEUES
from hicache_nixl.errors import ConfigError

NAME = "page1_org-model_0_1_k"
FILES = 4  # of a call with two pages
POOLED_OPENS = 6  # descriptors at construction: folder, locks, state and index; these two are mapped, too
RELEASING = [name for name in LIFETIMES if not LEFT[name].fds]


@pytest.fixture
def pool():
    return make_pool(False, "page_first")


@pytest.fixture
def store(make_store, lifetime, pool):
    return make_store(lifetime, pool=pool)


# -- the folder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lifetime", LIFETIMES)
def test_a_missing_folder_is_made(make_store, lifetime, tmp_path):
    deep = tmp_path / "some" / "where"
    assert make_store(lifetime, path=str(deep)).set("key", torch.zeros(4))
    assert files_in(deep) == ["pooled" if LEFT[lifetime].one_record else "key_org-model_0_1"]
    assert stat.S_IMODE(deep.stat().st_mode) == 0o700


def test_a_folder_removed_while_running_is_made_again(store, left, pool, folder, log):
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    shutil.rmtree(folder)
    assert store.batch_exists(keys_of(2)) == 0
    assert log.lines() == []
    assert store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
    lines = log.lines()
    assert len(lines) == left.lines(2)
    assert all("[Errno 2]" in line for line in lines)
    assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [True, True]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert store.batch_exists(keys_of(2)) == 2


def test_a_folder_that_becomes_a_file_is_false_with_a_line(store, pool, folder, log):
    folder.rmdir()
    folder.touch()
    assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
    line = log.line()
    assert "[Errno 20]" in line
    assert str(folder) in line


def test_a_folder_that_may_no_longer_be_written_is_false_with_a_line(store, left, pool, folder, log):
    assert all(store.batch_set_v1(keys_of(1), pool.page_indices(0, 1)))
    before = files_in(folder)
    folder.chmod(0o555)
    with without_capabilities():
        answers = store.batch_set_v1(keys_of(2), pool.page_indices(0, 2))
        assert store.batch_get_v1(keys_of(1), pool.page_indices(0, 1)) == [True]
    folder.chmod(0o755)
    assert answers == left.answers(True, False)
    lines = log.lines()
    assert len(lines) == left.lines(1)
    assert all("[Errno 13]" in line for line in lines)
    assert str(folder / NAME) in lines[0]
    assert files_in(folder) == before


# -- the limit on descriptors ----------------------------------------------------------------------------


def test_at_the_descriptor_limit_a_page_is_false_with_errno_24_and_leaves_nothing(
    store, left, pool, folder, log
):
    before, answers = names_open(folder), left.answers(True, False)
    with free_descriptors(FILES - 1):
        assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == answers
    assert "[Errno 24]" in log.line()
    assert names_open(folder) == before, "an open that fails half way closes what it opened"
    assert files_in(folder) == [f"page0_org-model_0_1{ending}" for ending in ("_k", "_v") if any(answers)]
    assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [True, True]
    with free_descriptors(FILES - 1):
        assert store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)) == answers
        assert "[Errno 24]" in log.line()
    assert store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)) == [True, True]


def test_without_a_single_descriptor_left_a_call_is_false_with_errno_24(store, left, pool, folder, log):
    with free_descriptors(0):
        assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
        lines = log.lines()
    assert len(lines) == left.lines(2)
    assert all("[Errno 24]" in line for line in lines)
    assert files_in(folder) == []
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))


def test_leaky_runs_into_the_limit_on_the_predicted_call_and_works_once_descriptors_are_free(
    make_store, pool, folder, log
):
    store = make_store("leaky", pool=pool)
    with free_descriptors(14):  # 4 a call: the fourth finds 2
        answers = [store.batch_set_v1(keys_of(2), pool.page_indices(0, 2))[0] for _ in range(5)]
        assert answers == [True, True, True, False, False]
        lines = log.lines()
        assert len(lines) == 2
        assert all("[Errno 24]" in line for line in lines)
        close_below(folder)
        assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))


@pytest.mark.parametrize("lifetime", ["pooled"])
def test_at_the_descriptor_limit_pooled_can_do_all_that_needs_no_new_segment(store, pool, folder, log):
    with free_descriptors(0):
        assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
        assert "[Errno 24]" in log.line()
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    with free_descriptors(0):
        assert all(store.batch_set_v1(keys_of(2, "other"), pool.page_indices(2, 2)))
        assert all(store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)))
        assert store.batch_exists(keys_of(2, "other")) == 2
    assert log.lines() == []
    assert Records(folder).handles() == []


@pytest.mark.parametrize("lifetime", RELEASING)
def test_a_limit_that_one_call_fits_into_is_never_reached(make_store, lifetime, pool, log):
    store = make_store(lifetime, pool=pool)
    with free_descriptors(FILES):
        for _ in range(20):
            assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
            assert all(store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)))
    assert log.lines() == []


@pytest.mark.parametrize(
    ("lifetime", "free"), [("scoped", 0), *(("pooled", free) for free in range(POOLED_OPENS))]
)
def test_construction_at_the_descriptor_limit_is_a_clear_error(make_store, folder, lifetime, free):
    lifetimes.load(lifetime)  # no import needs a descriptor then
    with free_descriptors(free), pytest.raises(ConfigError, match=r"\[Errno 24\]"):
        make_store(lifetime)
    assert names_open(folder) == []
    assert make_store(lifetime).set("value", torch.zeros(4))


# -- threads ---------------------------------------------------------------------------------------------


def test_three_threads_share_a_store_as_in_the_controller(tmp_path):
    """SGLang sets, looks up and gets from a thread each; a NIXL agent has no locking by default."""
    script = TESTS / "scripts" / "three_threads.py"
    answers = answer_of(run_python(str(script), str(tmp_path), *RELEASING))
    assert answers == {f"{lifetime}-{queue}": [] for lifetime in RELEASING for queue in QUEUES}


def test_on_posix_aio_a_bad_page_does_not_affect_those_of_another_thread(make_store, folder):
    """The queue keeps a failed I/O, so the agent is replaced, which must not happen during a transfer."""
    pool = make_pool(False, "page_first", pages=2)
    store = make_store(pool=pool, posix={"queue": "posix_aio"})
    assert all(store.batch_set_v1(["good", "bad"], pool.page_indices(0, 2)))
    os.truncate(folder / "bad_org-model_0_1_k", 1)
    answers = []
    getting = threading.Thread(
        target=lambda: answers.extend(
            store.batch_get_v1(["good"], pool.page_indices(0, 1))[0] for _ in range(50)
        )
    )
    getting.start()
    bad = [store.batch_get_v1(["bad"], pool.page_indices(1, 1))[0] for _ in range(20)]
    getting.join(30)
    assert answers == [True] * 50
    assert bad == [False] * 20
