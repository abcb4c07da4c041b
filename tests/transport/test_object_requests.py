"""Requests to an object store whose agent answers when a test says so: late ones, errors at the end, and causes."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from hicache_nixl.errors import AwayError, MissingError, RegistrationError, StoreError
from hicache_nixl.transport import bucket, lane, objects
from hicache_nixl.transport.agent import NixlBackend
from hicache_nixl.transport.registration import NixlRegistration

PATIENCE = 0.05  # seconds


class Agent:
    """As much of NIXL's agent as requests need; every request has one state, ``"PROC"`` at first."""

    def __init__(self):
        self.state, self.registered, self.refuses = "PROC", 0, False

    def get_reg_descs(self, items, mem_type):
        return items

    def register_memory(self, descs):
        self.registered += 1
        return descs

    def deregister_memory(self, registration):
        if self.refuses:
            raise RuntimeError("refused")
        self.registered -= 1

    def get_xfer_descs(self, items, mem_type):
        return items

    def initialize_xfer(self, direction, host, stored, name):
        return stored[0][2]

    def transfer(self, handle):
        return "PROC"

    def check_xfer_state(self, handle):
        return self.state(handle) if callable(self.state) else self.state

    def release_xfer_handle(self, handle):
        pass


@pytest.fixture
def agent():
    return Agent()


def made(agent):
    config = SimpleNamespace(object_params=lambda: {"bucket": "b", "region": "r"}, object_timeout=PATIENCE)
    return objects.ObjectRequests(NixlRegistration(NixlBackend(agent, "agent", "OBJ", "OBJ", False)), config)


@pytest.fixture
def requests(agent, monkeypatch):
    monkeypatch.setattr(objects, "CLOSING", PATIENCE)
    yield made(agent)
    agent.state, agent.refuses = "DONE", False
    for thread in waiting():
        thread.join(5)


def waiting():
    return [thread for thread in threading.enumerate() if thread.name == "hicache-nixl-late"]


def until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_memory_that_nixl_still_writes_into_stays_when_its_owner_is_dropped(agent):
    requests = made(agent)
    assert isinstance(requests.write("name", b"content"), AwayError)
    (late,) = map(weakref.ref, requests._lanes._late)
    del requests
    gc.collect()
    assert late() is not None
    assert agent.registered == 2, "the lane, and the name of the object"
    agent.state = "DONE"
    until(lambda: late() is None)
    assert agent.registered == 0


def test_an_owner_that_is_dropped_without_late_requests_ends_its_registrations(agent):
    requests = made(agent)
    agent.state = "DONE"
    assert requests.write("name", b"content") is None
    del requests
    gc.collect()
    assert agent.registered == 0
    assert waiting() == []


def test_a_second_close_waits_for_nothing(agent, requests):
    assert isinstance(requests.write("name", b"content"), AwayError)
    for _ in range(2):
        requests.close()
        assert len(waiting()) == 1
    agent.state = "DONE"
    until(lambda: not waiting())
    requests.close()
    assert agent.registered == 0


def test_a_registration_that_cannot_end_keeps_no_other_one_and_not_the_agent(agent, requests):
    agent.state = "DONE"
    with requests.lane(8), requests.lane(8):
        pass
    agent.refuses = True
    with pytest.raises(RegistrationError):
        requests.close()
    assert requests._lanes._free == []
    assert requests._registration.agent is None


def test_an_error_at_the_end_of_late_requests_does_not_keep_the_agent(agent, requests):
    assert isinstance(requests.write("name", b"content"), AwayError)
    requests.close()
    agent.refuses = True
    agent.state = "DONE"
    until(lambda: requests._registration.agent is None)


def test_memory_whose_registration_could_not_end_is_not_used_again(agent, requests):
    agent.state = "DONE"
    with requests.lane(8):
        pass
    agent.refuses = True
    with pytest.raises(RegistrationError), requests.lane(16):
        pass
    agent.refuses = False
    with requests.lane(8) as lane:
        assert lane.start
    assert agent.registered == 2, "the one that could not end, and the new one"


def moved(requests, direction, count):
    """Store or load small values; return the errors, and how many different ones there are."""
    memory = np.zeros(count, np.uint8)
    names, pieces = list(map(str, range(count))), [(memory.ctypes.data + at, 1) for at in range(count)]
    errors = (requests.put if direction == "WRITE" else requests.get)(names, pieces)
    return errors, len(set(map(id, errors)))


@pytest.fixture
def answers(requests, agent, monkeypatch):
    """A store that lists everything, and all late answers have come by the time that it is asked."""

    def asked(names):
        return [100] * len(names)

    monkeypatch.setattr(requests.bucket, "sizes", asked)
    monkeypatch.setattr(requests.bucket, "ask", lambda: None)
    check = requests._lanes.check

    def settled():
        if requests._lanes._late:
            agent.state = "DONE"
        check()

    monkeypatch.setattr(requests._lanes, "check", settled)


@pytest.mark.parametrize("direction", ["WRITE", "READ"])
def test_a_call_that_got_no_answer_says_so_even_if_the_answers_have_come_by_then(
    requests, answers, direction
):
    errors, different = moved(requests, direction, 3)
    assert "did not answer for 0.05 s" in str(errors[0])
    assert different == 1


@pytest.mark.parametrize("direction", ["WRITE", "READ"])
def test_requests_that_fail_beside_a_late_one_share_its_error(requests, agent, direction):
    agent.state = lambda number: "PROC" if number == 1 else "ERR"
    errors, different = moved(requests, direction, 5)
    assert isinstance(errors[0], AwayError)
    assert different == 1


@pytest.mark.parametrize("direction", ["WRITE", "READ"])
def test_requests_that_fail_while_those_of_another_call_are_late_share_an_error(
    requests, agent, monkeypatch, direction
):
    agent.state = "ERR"
    late = AwayError("late")
    monkeypatch.setattr(objects, "_late", lambda lanes: late)
    errors, different = moved(requests, direction, 5)
    assert errors[0] is late
    assert different == 1


def test_puts_that_fail_though_the_store_answers_may_be_refused(requests, agent, answers):
    agent.state = "ERR"
    errors, different = moved(requests, "WRITE", 3)
    assert "it may be full or refuse to be written to" in str(errors[0])
    assert not isinstance(errors[0], AwayError)
    assert different == 1


def test_gets_that_fail_though_the_store_answers_are_told_apart(requests, agent, answers, monkeypatch):
    monkeypatch.setattr(requests.bucket, "sizes", lambda names: [None, 0, 100])
    agent.state = "ERR"
    errors, _ = moved(requests, "READ", 3)
    assert list(map(type, errors)) == [MissingError, MissingError, StoreError]


def test_an_answer_through_nixl_ends_the_time_in_which_the_store_is_not_asked(requests, agent, monkeypatch):
    asked = []
    monkeypatch.setattr(bucket, "_told", lambda *args: asked.append(args))
    requests.bucket._until = time.monotonic() + 60
    with pytest.raises(AwayError):
        requests.bucket.ask()
    agent.state = "DONE"
    assert requests.write("name", b"content") is None
    requests.bucket.ask()
    assert len(asked) == 1


def test_indexes_that_cannot_be_read_have_the_error_that_says_why(requests, agent, answers, monkeypatch):
    monkeypatch.setattr(requests.bucket, "sizes", lambda names: [None, 100])
    agent.state = lambda number: "DONE" if number == 1 else "ERR"
    good, missing, lost = requests.read([("a", 8), ("b", 8), ("c", 8)])
    assert isinstance(good, bytes)
    assert isinstance(missing, MissingError)
    assert "lists objects that NIXL cannot load" in str(lost)


def test_indexes_that_were_read_before_the_store_went_away_are_kept(requests, agent, monkeypatch):
    monkeypatch.setattr(lane.windows, "__defaults__", (16,))
    agent.state = lambda number: "DONE" if number <= 2 else "PROC"
    first, second, *others = requests.read([(name, 8) for name in "abcdef"])
    assert len(first) == len(second) == 8
    assert all(isinstance(error, AwayError) for error in others)
    assert len(set(map(id, others))) == 1
