"""What is said to the NIXL agent, without the connector around it."""

from __future__ import annotations

import os

import pytest
import torch
from support import storage_config

from hicache_nixl.config import NixlBackendConfig
from hicache_nixl.errors import RegistrationError, TransferError
from hicache_nixl.plugins import make_backend
from hicache_nixl.registration import NixlRegistration, buffer_sizes


@pytest.fixture
def registration():
    made = NixlRegistration(make_backend(NixlBackendConfig(storage_config().extra_config)))
    yield made
    made.close()


@pytest.fixture
def page(tmp_path):
    """An open page file of 64 bytes, as NIXL registers it; whoever opens it closes it."""
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
    with pytest.raises(RegistrationError, match="refuses the transfer request"):
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


def test_close_drops_the_agent_and_may_be_called_twice(registration):
    registration.close()
    registration.close()
    assert registration.agent is None
