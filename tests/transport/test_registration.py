"""What is said to the NIXL agent, without the connector around it."""

from __future__ import annotations

import os
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import make_pool, storage_config

from hicache_nixl.config import RELEASED, NixlBackendConfig
from hicache_nixl.errors import RegistrationError, TransferError
from hicache_nixl.transport import registration as module
from hicache_nixl.transport.agent import make_backend
from hicache_nixl.transport.registration import (
    EAGER_SECONDS,
    POLL_SECONDS,
    NixlRegistration,
    buffer_addresses,
    buffer_sizes,
    growing_pause,
)


@pytest.fixture
def registration():
    made = NixlRegistration(make_backend(NixlBackendConfig(storage_config().extra_config)))
    yield made
    made.close()


@pytest.fixture
def page(tmp_path):
    """An open page file of 64 bytes, as NIXL registers it."""
    path = tmp_path / "page"
    path.write_bytes(bytes(range(64)))
    fd = os.open(path, os.O_RDWR)
    yield (0, 0, fd, str(path))
    os.close(fd)


def transfer(registration, direction, buffers, page):
    """Register both sides, move bytes, end both registrations."""
    registered = registration.register([page], "FILE"), registration.register_buffers(buffers)
    try:
        registration.run(registration.initialize(direction, *registration.xfer_descs(buffers, [page])))
    finally:
        for each in registered:
            registration.deregister(each)


@pytest.mark.parametrize("form", ["tensor", "address"])
def test_bytes_move_both_ways_between_registered_regions(registration, page, form):
    tensor = torch.zeros(64, dtype=torch.uint8)
    buffers = [tensor] if form == "tensor" else [(tensor.data_ptr(), tensor.nbytes)]
    transfer(registration, "READ", buffers, page)
    assert tensor.tolist() == list(range(64))
    tensor += 100
    transfer(registration, "WRITE", buffers, page)
    assert os.pread(page[2], 64, 0) == bytes(range(100, 164))


def test_the_length_of_a_transfer_is_the_buffer_s(registration, page):
    tensor = torch.zeros(10, dtype=torch.uint8)
    transfer(registration, "READ", [tensor], page)
    assert tensor.tolist() == list(range(10))


def test_a_region_that_was_deregistered_takes_no_transfer(registration, page):
    tensor = torch.zeros(64, dtype=torch.uint8)
    host, stored = registration.register_buffers([tensor]), registration.register([page], "FILE")
    descs = registration.xfer_descs([tensor], [page])
    registration.deregister(host)
    with pytest.raises(RegistrationError, match="refused the transfer request"):
        registration.initialize("READ", *descs)
    registration.deregister(stored)


def test_a_read_beyond_the_end_of_the_file_is_a_transfer_error(registration, page):
    with pytest.raises(TransferError):
        transfer(registration, "READ", [torch.zeros(65, dtype=torch.uint8)], page)
    tensor = torch.zeros(64, dtype=torch.uint8)
    transfer(registration, "READ", [tensor], page)
    assert tensor.tolist() == list(range(64)), "the next transfer is as good as before"


@pytest.mark.parametrize(
    "items",
    [[], torch.zeros(4, 4).t(), [torch.zeros(4, 4).t()], [5]],
    ids=["nothing", "not contiguous", "one not contiguous", "no buffer"],
)
def test_what_nixl_cannot_register_is_a_registration_error(registration, items):
    with pytest.raises(RegistrationError, match="NIXL"):
        registration.register_buffers(items)


def test_buffers_that_are_not_contiguous_make_no_descriptor_list(registration, page):
    with pytest.raises(RegistrationError, match="descriptor list"):
        registration.xfer_descs([torch.zeros(4, 4).t()], [page])


def test_a_query_answers_for_each_name_in_order(registration, tmp_path, page):
    missing = str(tmp_path / "missing")
    answers = registration.query([missing, page[3], missing])
    assert [answer is None for answer in answers] == [True, False, True]
    assert registration.query([]) == []


def test_a_query_opens_nothing_that_stays_open(registration, tmp_path, page):
    before = os.listdir("/proc/self/fd")
    for _ in range(10):
        registration.query([page[3]] * 20)
    assert os.listdir("/proc/self/fd") == before


def test_every_object_gets_a_number_of_its_own(registration):
    first = registration.objects_to_nixl_tuples(["a", "b"], [10, 20])
    second = registration.objects_to_nixl_tuples(["a"], [10])
    assert [(item[0], item[1], item[3]) for item in first + second] == [
        (0, 10, "a"),
        (0, 20, "b"),
        (0, 10, "a"),
    ]
    assert len({item[2] for item in first + second}) == 3


def test_buffer_sizes_are_bytes():
    tensors = [torch.zeros(3, dtype=torch.bfloat16), torch.zeros(2, 5), torch.zeros(0)]
    assert buffer_sizes([*tensors, (1234, 56)]) == [6, 40, 0, 56]


def test_buffer_addresses_are_where_the_first_number_is():
    tensor = torch.zeros(3)
    assert buffer_addresses([tensor, tensor[1:], (1234, 56)]) == [
        tensor.data_ptr(),
        tensor.data_ptr() + 4,
        1234,
    ]


# -- regions that are held ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [None, ValueError(), KeyboardInterrupt()], ids=["success", "error", "interrupt"]
)
def test_held_regions_end_with_the_block(registration, regions_alive, page, error):
    alive = regions_alive(SimpleNamespace(registration=registration))
    with (
        suppress(ValueError, KeyboardInterrupt),
        registration.registered([page], "FILE"),
        registration.registered_buffers([torch.zeros(4), torch.zeros(4)]),
    ):
        assert alive == {"FILE_SEG": 1, "DRAM_SEG": 2}
        if error:
            raise error
    assert alive == {"FILE_SEG": 0, "DRAM_SEG": 0}


def test_held_regions_end_with_the_agent_that_they_began_with(registration, regions_alive):
    first = regions_alive(SimpleNamespace(registration=registration))
    with registration.registered_buffers([torch.zeros(4)]):
        registration.attach(make_backend(NixlBackendConfig(storage_config().extra_config)))
        second = regions_alive(SimpleNamespace(registration=registration))
    assert first == {"DRAM_SEG": 0}
    assert second == {}


# -- the wait ----------------------------------------------------------------------------------------------


@pytest.fixture
def slept(monkeypatch):
    """What was slept, in place of sleeping."""
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    return pauses


def pause_of(running):
    """How long growing_pause sleeps."""
    pauses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "sleep", pauses.append)
        growing_pause(running)
    return sum(pauses)


@given(st.floats(0, EAGER_SECONDS, exclude_max=True))
def test_a_transfer_that_may_be_short_is_polled_without_a_pause(running):
    assert pause_of(running) == 0


@given(st.floats(EAGER_SECONDS, 3600), st.floats(0, 3600))
def test_pauses_grow_with_the_time_that_a_transfer_runs_up_to_sglang_s(running, longer):
    assert 0 < pause_of(running) <= pause_of(running + longer) <= POLL_SECONDS == 100e-6


def test_a_long_transfer_is_polled_as_often_as_in_sglang():
    assert pause_of(1) == POLL_SECONDS


def test_run_tells_the_pause_how_long_the_transfer_has_been_running(registration, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    states, told = ["PROC"] * 4 + ["DONE"], []
    registration.agent = SimpleNamespace(
        transfer=lambda handle: states.pop(0),
        check_xfer_state=lambda handle: states.pop(0),
        release_xfer_handle=told.append,
    )
    registration.run("handle", told.append)
    assert told == [1.0, 2.0, 3.0, 4.0, "handle"]


def test_run_releases_a_transfer_that_is_done_at_once_and_does_not_wait(registration, slept):
    released = []
    registration.agent = SimpleNamespace(transfer=lambda handle: "DONE", release_xfer_handle=released.append)
    registration.run("handle")
    assert released == ["handle"]
    assert slept == []


def test_a_release_pauses_as_sglang_does_and_scoped_not_at_first(
    make_store, lifetime, replace_method, slept, monkeypatch
):
    pool = make_pool(False, "page_first")
    store = make_store(lifetime, pool=pool)
    agent, polls = store.lifetime.registration.agent, []
    poll = agent.check_xfer_state

    def poll_until_done(handle):
        polls.append(handle)
        if len(polls) <= 5:
            return "PROC"
        while poll(handle) == "PROC":
            continue
        return "DONE"

    replace_method(agent, "check_xfer_state", poll_until_done)
    monkeypatch.setattr(module.time, "perf_counter", lambda: 0.0)  # no time passes, however busy the machine
    assert all(store.batch_set_v1(["page"], pool.page_indices(0, 1)))
    assert len(polls) == 6
    assert slept == ([POLL_SECONDS] * 6 if lifetime in RELEASED else [])


def test_close_drops_the_agent_and_may_be_called_twice(registration):
    registration.close()
    registration.close()
    assert registration.agent is None
