"""Several processes and their one verdict."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest
from processes import have_ended, sleeping_child, wait_until
from test_verdict import FLAT, LEAKING

from hicache_nixl.lab.worker.descriptors import ProcessGoneError
from hicache_nixl.watch.group import Group
from hicache_nixl.watch.sample import Sample
from hicache_nixl.watch.tree import family


@pytest.fixture
def pids() -> Iterator[list[int]]:
    with ExitStack() as ends:
        yield [ends.enter_context(sleeping_child()) for _ in range(3)]


def end(pids: list[int]) -> None:
    processes = [psutil.Process(pid) for pid in pids]
    for process in processes:
        process.kill()
    wait_until(lambda: have_ended(processes))


def group_of(pids: list[int], *samples: list[Sample]) -> Group:
    """A group whose processes have been seen to do this."""
    group = Group(pids, horizon=0.01)
    for member, seen in zip(group.members, samples, strict=True):
        for one in seen:
            member.seen.add(one)
    return group


@pytest.mark.parametrize(
    ("samples", "state"),
    [
        ([FLAT, FLAT], "no leak"),
        ([FLAT, LEAKING], "leak"),
        ([LEAKING, FLAT[:5]], "leak"),
        ([FLAT, FLAT[:5]], "no leak"),  # seen only for a moment
        ([FLAT[:5], FLAT[:5]], "undecided"),
    ],
)
def test_it_leaks_if_one_does_and_does_not_if_none_does(pids, samples, state):
    assert group_of(pids[:2], *samples).state == state


def test_one_that_leaked_until_its_end_is_still_judged_and_a_healthy_one_is_not(pids):
    group = group_of(pids, FLAT, LEAKING, FLAT)
    end(pids[1:])
    group.sample()
    assert [member.ended for member in group.members] == [False, True, True]
    assert [member.process.pid for member in group.judged] == pids[:2]
    assert group.state == "leak"


def test_when_all_have_ended_it_is_said(pids):
    group = Group(pids)
    end(pids)
    with pytest.raises(ProcessGoneError, match="all 3 processes have ended"):
        group.sample()


def test_what_one_process_opened_is_not_missed_in_the_others(pids, tmp_path):
    """Of the schedulers of a server, only the first may store pages."""
    with open(tmp_path / "page", "w") as page, sleeping_child(page.fileno()) as storing:
        group = Group([pids[0], storing], str(tmp_path), horizon=0.001)
        for _ in range(14):
            group.sample()
    assert [member.seen.never_opened() for member in group.members] == [False, False]


def test_between_two_samples_it_looks_for_the_first_storage_file(tmp_path):
    group = Group([os.getpid()], str(tmp_path))
    assert group.peek()
    with open(tmp_path / "page", "w"):
        assert not group.peek()
    assert not group.peek()
    group.sample()
    assert not group.members[0].seen.never_opened()


def test_without_a_folder_it_does_not_look():
    assert not Group([os.getpid()]).peek()


def test_a_family_is_a_process_and_what_it_started_without_the_one_that_watches():
    with sleeping_child() as pid:
        assert pid in family(os.getpid())
        assert family(os.getppid())[0] == os.getppid()
        assert pid in family(os.getppid())
        assert os.getpid() not in family(os.getppid())
    assert pid not in family(os.getpid())


def test_a_process_is_watched_once(pids):
    assert len(Group([pids[0], pids[0]]).members) == 1
