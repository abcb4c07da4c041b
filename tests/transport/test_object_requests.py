"""Requests to an object store whose agent answers when a test says so: late ones, errors at the end, and causes."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from hicache_nixl.errors import AwayError, RegistrationError
from hicache_nixl.transport import objects
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
