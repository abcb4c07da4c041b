"""A full, a read-only and a small file system, mounted in a namespace of a script's own."""

from __future__ import annotations

import re

import pytest
from support import TESTS, answer_of, files_in, keys_of, run_python, unshare

from hicache_nixl.config import QUEUES

PAGES, FIT = 8, 5


def files_of(pages):
    return sorted(f"{key}_org-model_0_1{ending}" for key in keys_of(pages) for ending in ("_k", "_v"))


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
    small_file_system, lifetime, left, queue
):
    answers = small_file_system["full"][f"{lifetime}-{queue}"]
    single = answers["single"]
    assert single["stored"] == FIT
    assert len(single["lines"]) == left.lines(1)
    assert re.search(r"\[Errno 28\] No space left on device, holds \d+ of 24576 bytes", single["lines"][0])
    assert "page5_org-model_0_1_k" in single["lines"][0]
    assert single["files"] == files_of(FIT), "what was stored before stays, of the sixth page nothing"
    assert answers["loaded"] == [True] * FIT


@pytest.mark.parametrize("queue", QUEUES)
def test_a_batch_that_fills_the_file_system_leaves_no_half_written_file(
    small_file_system, lifetime, left, queue
):
    batch = small_file_system["full"][f"{lifetime}-{queue}"]["batch"]
    assert batch["answers"] == left.answers(*[True] * FIT, *[False] * (PAGES - FIT))
    assert len(batch["lines"]) == left.lines(PAGES - FIT)
    assert all("[Errno 28]" in line for line in batch["lines"])
    assert batch["files"] == files_of(sum(batch["answers"]))


def test_a_full_file_system_costs_what_the_lifetime_predicts(small_file_system, lifetime, left):
    files = 2 * (FIT + 1 + FIT + PAGES)  # pages set one by one, got, set in a batch
    for queue in QUEUES:
        assert small_file_system["full"][f"{lifetime}-{queue}"]["open"] == files * left.fds


@pytest.mark.parametrize("key", ["new", "old"])
def test_a_file_system_that_becomes_read_only_is_false_with_errno_30(small_file_system, lifetime, left, key):
    answers = small_file_system["read_only"][lifetime]
    assert answers[key]["answer"] == [False]
    assert len(answers[key]["lines"]) == left.lines(1)
    assert all("[Errno 30]" in line for line in answers[key]["lines"])
    assert f"{key}_org-model_0_1_k" in answers[key]["lines"][0]
    assert answers["exists"] == 1
    assert answers["files"] == ["old_org-model_0_1_k", "old_org-model_0_1_v"]


def test_a_read_only_file_system_is_an_error_at_construction(small_file_system, lifetime):
    assert "[Errno 30]" in small_file_system["read_only"][lifetime]["construction"]
