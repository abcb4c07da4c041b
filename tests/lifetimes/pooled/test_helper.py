"""The thread that moves the second half of a batch."""

from __future__ import annotations

import ctypes
import os
import threading

import pytest

from hicache_nixl.lifetimes.pooled import helper as helper_module
from hicache_nixl.lifetimes.pooled.helper import Helper


@pytest.fixture
def helper():
    helper = Helper()
    yield helper
    helper.close()


def look():
    """Return the processors that this thread may run on, and the one that it runs on."""
    return os.sched_getaffinity(0), ctypes.CDLL(None).sched_getcpu()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_it_keeps_off_the_processor_of_the_thread_that_starts_it(helper, monkeypatch):
    mine = os.sched_getaffinity(0)
    for processor in sorted(mine):
        monkeypatch.setattr(helper_module, "_current_processor", lambda here=processor: here)
        allowed, running = helper.start(look).result()
        assert running != processor
        assert allowed == mine, "what it starts itself may run anywhere"
    assert os.sched_getaffinity(0) == mine


def test_a_processor_is_not_taken_from_it_when_it_is_the_only_one(helper, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {helper_module._current_processor()})
    assert helper.start(threading.get_native_id).result() != threading.get_native_id()


def test_without_the_right_to_choose_a_processor_it_runs_anyway(helper, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert helper.start(threading.get_native_id).result() != threading.get_native_id()


def test_what_it_runs_ends_before_close_returns_and_its_thread_with_it():
    threads, helper, ended = threading.active_count(), Helper(), []
    asked = threading.Event()
    helper.start(lambda: (asked.wait(5), ended.append(True)))
    threading.Timer(0.05, asked.set).start()
    helper.close()
    helper.close()
    assert ended == [True]
    with pytest.raises(RuntimeError):
        helper.start(int)
    assert threading.active_count() == threads


def test_after_its_end_no_other_thread_of_its_number_is_moved(monkeypatch):
    helper, moved = Helper(), []
    helper.close()
    monkeypatch.setattr(os, "sched_setaffinity", lambda *told: moved.append(told))
    with pytest.raises(RuntimeError):
        helper.start(int)
    assert moved == []


def test_an_error_is_that_of_the_result(helper):
    with pytest.raises(ZeroDivisionError):
        helper.start(lambda: 1 / 0).result()
