"""Page files that are held open for a transfer: which are opened, which are refused, and that all are closed."""

from __future__ import annotations

import errno
import os
import signal
import stat

import pytest
from support import names_open

from hicache_nixl.transport.files import READ, WRITE
from hicache_nixl.transport.folder import NOT_OPEN


def test_opened_files_are_closed_at_the_end_of_the_block(manager, paths, tmp_path):
    with manager.opened(paths, READ) as (fds, faults):
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == paths
        assert not any(map(os.get_inheritable, fds)), "a child of the server must not hold pages open"
        assert faults == {}
    assert names_open(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_opened_files_are_closed_when_the_block_is_left_early(manager, paths, tmp_path, error):
    with pytest.raises(type(error)), manager.opened(paths, os.O_RDWR):
        raise error
    assert names_open(tmp_path) == []


@pytest.fixture
def interrupts():
    """Run a function and raise KeyboardInterrupt in it after some time; return whether it was raised."""
    running = False

    def interrupt(*_):
        nonlocal running
        if running:
            running = False
            raise KeyboardInterrupt

    def run(function):
        nonlocal running
        try:
            running = True
            function()
            running = False
        except KeyboardInterrupt:
            return True
        return False

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, 1e-3, 1e-3)
    yield run
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("flags", [READ, WRITE])
def test_an_interrupt_at_any_moment_leaves_no_file_open(manager, paths, tmp_path, interrupts, flags):
    count = 0

    def open_many():
        with manager.opened(paths * 20, flags, [0] * 60):
            pass

    while count < 100:
        count += interrupts(open_many)
        assert names_open(tmp_path) == []


def test_files_opened_to_be_written_are_made_or_emptied(manager, paths, tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with manager.opened([paths[0], manager.get_file_path("new")], WRITE) as (fds, faults):
        assert faults == {}
        assert os.write(fds[1], b"bytes") == 5
    assert (tmp_path / "a").read_bytes() == b""
    assert (tmp_path / "new").read_bytes() == b"bytes"


@pytest.mark.parametrize("positions", [[0], [1], [3], [0, 1, 2, 3, 4, 5]], ids=str)
def test_a_file_that_cannot_be_opened_is_a_fault_at_its_position(manager, paths, tmp_path, positions):
    wanted = [paths[0], paths[1], paths[2], *paths]
    for position in positions:
        wanted[position] = manager.get_file_path(f"missing{position}")
    with manager.opened(wanted, READ) as (fds, faults):
        assert [position for position, fd in enumerate(fds) if fd == NOT_OPEN] == positions
        assert {position: fault.filename for position, fault in faults.items()} == {
            position: wanted[position] for position in positions
        }
        assert all(fault.errno == errno.ENOENT for fault in faults.values())
        assert len(names_open(tmp_path)) == len(wanted) - len(positions)
    assert names_open(tmp_path) == []


def test_a_file_of_another_size_is_a_fault_and_closed_with_the_others(manager, paths, tmp_path):
    for path, size in zip(paths, (10, 9, 11), strict=True):
        os.truncate(path, size)
    with manager.opened(paths, READ, [10, 10, 10]) as (fds, faults):
        assert [fd == NOT_OPEN for fd in fds] == [False, True, True]
        assert [str(fault) for fault in faults.values()] == [
            f"[Errno 5] holds 9 of 10 bytes: '{paths[1]}'",
            f"[Errno 5] holds 11 of 10 bytes: '{paths[2]}'",
        ]
    assert names_open(tmp_path) == []


@pytest.mark.parametrize("flags", [READ, WRITE])
@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (os.mkdir, "Is a directory"),
        (os.mkfifo, "not a regular file"),
        (lambda path: os.symlink(os.devnull, path), "a symbolic link, which is not followed"),
        (lambda path: os.symlink(f"{path}_gone", path), "a symbolic link, which is not followed"),
    ],
    ids=["folder", "fifo", "link", "dangling link"],
)
def test_what_is_not_a_regular_file_is_a_fault_of_its_own(manager, paths, tmp_path, flags, put, reason):
    """Opening a FIFO does not wait, and a link is not followed out of the folder."""
    os.unlink(paths[1])
    put(paths[1])
    with manager.opened(paths, flags, [0, 0, 0] if flags == READ else None) as (fds, faults):
        assert [fd == NOT_OPEN for fd in fds] == [False, True, False]
        assert reason in str(faults[1])
    assert not manager.is_whole(paths[1], 1)
    assert not os.path.exists(f"{paths[1]}_gone")
    assert names_open(tmp_path) == []


def test_a_device_is_a_fault(manager, paths, tmp_path):
    os.unlink(paths[1])
    try:
        os.mknod(paths[1], stat.S_IFCHR | 0o600, os.makedev(1, 3))  # as /dev/null
    except PermissionError:
        pytest.skip("only root can create a device")  # and so nobody else can put one there
    for flags in (READ, WRITE):
        with manager.opened(paths, flags, [0, 1, 0]) as (fds, faults):
            assert [fd == NOT_OPEN for fd in fds] == [False, True, False]
            assert "not a regular file" in str(faults[1])


def test_a_file_with_another_name_is_not_written_and_keeps_its_bytes(manager, paths, tmp_path):
    (tmp_path / "other").write_bytes(b"bytes of another")
    os.unlink(paths[1])
    os.link(tmp_path / "other", paths[1])
    with manager.opened(paths, WRITE) as (fds, faults):
        assert [fd == NOT_OPEN for fd in fds] == [False, True, False]
        assert "has other names" in str(faults[1])
    assert (tmp_path / "other").read_bytes() == b"bytes of another"


def test_a_descriptor_that_cannot_be_closed_keeps_no_other_one_open(manager, paths, tmp_path, log):
    with manager.opened(paths * 2, READ) as (fds, _):
        os.close(fds[0])
        os.close(fds[2])
    assert names_open(tmp_path) == []
    assert ["[Errno 9]" in line for line in log.lines()] == [True, True]
