"""Failures with real causes: files, folders, file systems, limits, threads.  No fault is made up here."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import threading

import pytest
import torch
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
    page_files,
    run_python,
    scramble,
    without_capabilities,
)

from hicache_nixl.config import LIFETIMES, QUEUES
from hicache_nixl.errors import ConfigError

NAME = "page1_org-model_0_1_k"
FILES = 4  # of a call with two pages


@pytest.fixture
def pool():
    return make_pool(False, "page_first")


@pytest.fixture
def store(make_store, lifetime, pool):
    return make_store(lifetime, pool=pool)


# -- one bad file ----------------------------------------------------------------------------------------


def remove(path):
    path.unlink()


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    os.truncate(path, 0)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove, "[Errno 2]"),
        (truncate, "[Errno 5] holds 3071 of 3072 bytes"),
        (empty, "[Errno 5] holds 0 of 3072 bytes"),
        (replace_by_folder, "[Errno 21]"),
    ],
    ids=["missing", "truncated", "empty", "folder"],
)
def test_get_of_a_damaged_page_says_which_file_and_why(store, left, pool, folder, log, damage, reason):
    keys = keys_of(3)
    assert all(store.batch_set_v1(keys, pool.page_indices(0, 3)))
    close_below(folder)
    damage(folder / NAME)
    assert store.batch_get_v1(keys, pool.page_indices(0, 3)) == [False] * 3
    line = log.line()
    assert "READ of 6" in line
    assert str(folder / NAME) in line
    assert reason in line
    opened = 6 if "Errno 5" in reason else 0  # an open that fails closes those before it
    assert len(names_open(folder)) == opened * left.fds, names_open(folder)
    assert all(store.batch_get_v1(keys[:1], pool.page_indices(0, 1))), "the other pages are still good"


def test_set_over_a_folder_is_false_and_says_so(store, pool, folder, log):
    (folder / NAME).mkdir()
    assert store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)) == [False] * 3
    line = log.line()
    assert str(folder / NAME) in line
    assert "[Errno 21]" in line
    assert files_in(folder) == [NAME]
    assert names_open(folder) == []


@pytest.mark.parametrize("queue", QUEUES)
def test_after_a_failed_transfer_the_next_calls_work(make_store, lifetime, pool, folder, log, queue):
    """One truncated page must not cost the cache: every later call is as good as before."""
    store = make_store(lifetime, pool=pool, posix={"queue": queue})
    assert all(store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)))
    truncate(folder / NAME)
    assert store.batch_get_v1(keys_of(3), pool.page_indices(0, 3)) == [False] * 3
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
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert store.set("value", torch.zeros(500)) is False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    line = log.line()
    assert "value_org-model_0_1" in line
    assert "[Errno 5] holds 1000 of 2000 bytes" in line
    assert files_in(folder) == []


# -- the folder ------------------------------------------------------------------------------------------


def test_a_missing_folder_is_made(make_store, tmp_path):
    deep = tmp_path / "some" / "where"
    assert make_store(path=str(deep)).set("key", torch.zeros(4))
    assert files_in(deep) == ["key_org-model_0_1"]


def test_a_folder_removed_while_running_is_made_again(store, pool, folder, log):
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    shutil.rmtree(folder)
    assert store.batch_exists(keys_of(2)) == 0
    assert log.lines() == []
    assert store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
    assert "[Errno 2]" in log.line()
    assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [True, True]
    assert store.batch_exists(keys_of(2)) == 2


def test_a_folder_that_becomes_a_file_is_false_with_a_line(store, pool, folder, log):
    folder.rmdir()
    folder.touch()
    assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
    assert "[Errno 17]" in (line := log.line()) or "[Errno 20]" in line
    assert str(folder) in line


def test_a_folder_that_may_no_longer_be_written_is_false_with_a_line(store, pool, folder, log):
    assert all(store.batch_set_v1(keys_of(1), pool.page_indices(0, 1)))
    before = files_in(folder)
    folder.chmod(0o555)
    with without_capabilities():
        assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
        assert store.batch_get_v1(keys_of(1), pool.page_indices(0, 1)) == [True]
    folder.chmod(0o755)
    line = log.line()
    assert "[Errno 13]" in line
    assert str(folder / NAME) in line
    assert files_in(folder) == before


# -- a full and a read-only file system ------------------------------------------------------------------


def unshare() -> tuple[str, ...]:
    """Return how to run a program in a mount namespace of its own, as root or with user namespaces."""
    for options in (("--mount",), ("--mount", "--map-root-user")):
        if subprocess.run(["unshare", *options, "true"], capture_output=True).returncode == 0:
            return ("unshare", *options)
    raise OSError("these tests mount a small tmpfs and need unshare(1): root, or user namespaces")


@pytest.fixture(scope="module")
def small_file_system(tmp_path_factory):
    """What stores answer on a file system that is full, then read-only."""
    folder = tmp_path_factory.mktemp("small")
    process = run_python(str(TESTS / "scripts" / "small_file_system.py"), str(folder), prefix=unshare())
    answers = answer_of(process)
    with open("/proc/self/mounts") as mounts:
        assert str(folder) not in mounts.read(), "a mount outlived its namespace"
    assert files_in(folder) == []
    return answers


@pytest.mark.parametrize("queue", QUEUES)
def test_a_full_file_system_is_false_with_errno_28_and_no_half_written_file(
    small_file_system, lifetime, queue
):
    answers = small_file_system["full"][f"{lifetime}-{queue}"]
    single = answers["single"]
    assert single["stored"] == 5
    assert len(single["lines"]) == 1
    assert re.search(r"\[Errno 28\] No space left on device, holds \d+ of 24576 bytes", single["lines"][0])
    assert "page5_org-model_0_1_k" in single["lines"][0]
    pages = sorted(f"{key}_org-model_0_1{ending}" for key in keys_of(5) for ending in ("_k", "_v"))
    assert single["files"] == pages, "what was stored before stays, of the sixth page nothing"
    assert answers["loaded"] == [True] * 5


@pytest.mark.parametrize("queue", QUEUES)
def test_a_batch_that_fills_the_file_system_leaves_no_half_written_file(small_file_system, lifetime, queue):
    batch = small_file_system["full"][f"{lifetime}-{queue}"]["batch"]
    assert batch["answers"] == [False] * 8
    assert len(batch["lines"]) == 1
    assert "[Errno 28]" in batch["lines"][0]
    assert batch["files"] == []


def test_a_full_file_system_costs_what_the_lifetime_predicts(small_file_system, lifetime, left):
    files = 2 * (6 + 5 + 8)  # pages set one by one, got, set in a batch
    for queue in QUEUES:
        assert small_file_system["full"][f"{lifetime}-{queue}"]["open"] == files * left.fds


@pytest.mark.parametrize("key", ["new", "old"])
def test_a_file_system_that_becomes_read_only_is_false_with_errno_30(small_file_system, lifetime, key):
    answers = small_file_system["read_only"][lifetime]
    assert answers[key]["answer"] == [False]
    assert len(answers[key]["lines"]) == 1
    assert "[Errno 30]" in answers[key]["lines"][0]
    assert f"{key}_org-model_0_1_k" in answers[key]["lines"][0]
    assert answers["exists"] == 1
    assert answers["files"] == ["old_org-model_0_1_k", "old_org-model_0_1_v"]


def test_a_read_only_file_system_is_an_error_at_construction(small_file_system, lifetime):
    assert "[Errno 30]" in small_file_system["read_only"][lifetime]["construction"]


# -- the limit on descriptors ----------------------------------------------------------------------------


def test_at_the_descriptor_limit_a_call_is_false_with_errno_24_and_leaves_nothing(store, pool, folder, log):
    before = names_open(folder)
    with free_descriptors(FILES - 1):
        assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
    assert "[Errno 24]" in log.line()
    assert names_open(folder) == before, "an open that fails half way closes what it opened"
    assert files_in(folder) == []
    assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [True, True]
    with free_descriptors(FILES - 1):
        assert store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
        assert "[Errno 24]" in log.line()
    assert store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)) == [True, True]


def test_without_a_single_descriptor_left_a_call_is_false_with_errno_24(store, pool, folder, log):
    with free_descriptors(0):
        assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
        assert "[Errno 24]" in log.line()
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


def test_try_finally_never_reaches_a_limit_that_one_call_fits_into(make_store, pool, log):
    store = make_store("try_finally", pool=pool)
    with free_descriptors(FILES):
        for _ in range(20):
            assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
            assert all(store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)))
    assert log.lines() == []


def test_construction_at_the_descriptor_limit_is_a_clear_error(make_store, folder):
    with free_descriptors(0), pytest.raises(ConfigError, match=r"\[Errno 24\]"):
        make_store()


# -- threads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("lifetime", [name for name in LIFETIMES if not LEFT[name].fds])
def test_three_threads_share_a_store_as_in_the_controller(tmp_path, lifetime, queue):
    """SGLang sets, looks up and gets from a thread each; a NIXL agent locks only when it is told to."""
    script = TESTS / "scripts" / "three_threads.py"
    assert answer_of(run_python(str(script), str(tmp_path), lifetime, queue)) == []


def test_on_posix_aio_a_bad_page_does_not_spoil_the_good_ones_of_another_thread(make_store, folder):
    """The queue keeps a failed I/O, so the agent is made anew; nobody else may be in a transfer then."""
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
