"""Naming descriptors, and the line that opened them."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
from processes import sleeping_child

from hicache_nixl.lab.worker.descriptors import (
    ProcessGoneError,
    count_fds,
    count_storage_fds,
    fd_table,
    opened_by,
    trace_opens,
)

Owned = Callable[[int], int]


@pytest.fixture
def owned() -> Iterator[Owned]:
    """Close a descriptor when the test ends."""
    with ExitStack() as stack:

        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        yield own


def row_of(fd: int, table: pd.DataFrame | None = None) -> pd.Series:
    """Return the one row of a descriptor; of this process, now, when no table is given."""
    table = fd_table() if table is None else table
    (position,) = table.index[table.fd == fd]
    return table.loc[position]


class TestKinds:
    def test_a_regular_file_has_its_path_its_position_and_its_flags(self, tmp_path, owned):
        path = tmp_path / "page"
        fd = owned(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC))
        os.write(fd, bytes(100))
        os.lseek(fd, 42, os.SEEK_SET)
        row = row_of(fd)
        assert (row.kind, row.target, row.position) == ("regular", str(path), 42)
        assert set(row["flags"].split("|")) == {"O_RDWR", "O_APPEND", "O_CLOEXEC"}

    @pytest.mark.parametrize("access", ["O_RDONLY", "O_WRONLY", "O_RDWR"])
    def test_the_access_comes_first_in_the_flags(self, tmp_path, owned, access):
        (tmp_path / "page").touch()
        fd = owned(os.open(tmp_path / "page", getattr(os, access) | os.O_DSYNC))
        assert row_of(fd)["flags"].split("|")[0] == access
        assert "O_DSYNC" in row_of(fd)["flags"]

    def test_a_removed_file_is_still_there_and_says_so(self, tmp_path, owned):
        fd = owned(os.open(tmp_path / "page", os.O_CREAT | os.O_RDWR))
        (tmp_path / "page").unlink()
        row = row_of(fd)
        assert (row.kind, row.target, row.position) == ("regular", f"{tmp_path}/page (deleted)", 0)

    @pytest.mark.parametrize("end", [0, 1])
    def test_a_pipe(self, owned, end):
        ends = [owned(fd) for fd in os.pipe()]
        row = row_of(ends[end])
        assert row.kind == "pipe"
        assert row.target.startswith("pipe:[")

    def test_a_socket(self):
        with socket.socket() as one:
            assert row_of(one.fileno()).kind == "socket"

    def test_an_eventfd(self, owned):
        assert row_of(owned(os.eventfd(0))).kind == "eventfd"

    def test_an_epoll(self):
        with select.epoll() as epoll:
            assert row_of(epoll.fileno()).kind == "epoll"

    def test_an_io_uring(self, io_uring_fd):
        kinds = fd_table().kind.tolist()
        assert kinds.count("io_uring") == (0 if io_uring_fd is None else 1)

    def test_a_device(self, owned):
        row = row_of(owned(os.open(os.devnull, os.O_RDONLY)))
        assert (row.kind, row.target) == ("device", "/dev/null")

    def test_a_folder(self, tmp_path, owned):
        row = row_of(owned(os.open(tmp_path, os.O_RDONLY)))
        assert (row.kind, row.target) == ("folder", str(tmp_path))

    def test_what_is_no_file_has_no_position_and_no_flags(self, owned):
        row = row_of(owned(os.eventfd(0)))
        assert pd.isna(row.position)
        assert row["flags"] is None or pd.isna(row["flags"])

    def test_rows_are_in_the_order_of_the_descriptors_and_none_is_of_the_listing(self):
        table = fd_table()
        assert table.fd.is_monotonic_increasing
        assert not table.target.str.contains(r"/proc/\d+/fd").any()


class TestStorageFiles:
    def test_files_below_the_folder_are_storage_files_removed_ones_too(self, tmp_path, owned):
        folder = tmp_path / "pages"
        (folder / "bucket").mkdir(parents=True)
        kept = owned(os.open(folder / "bucket" / "kept", os.O_CREAT | os.O_RDWR))
        removed = owned(os.open(folder / "removed", os.O_CREAT | os.O_RDWR))
        (folder / "removed").unlink()
        os.write(kept, b"12345")
        table = fd_table(storage_dir=folder)
        assert set(table[table.kind == "storage file"].fd) == {kept, removed}
        assert row_of(kept, table).position == 5
        assert count_storage_fds(os.getpid(), folder) == 2

    def test_a_folder_whose_name_begins_the_same_is_another(self, tmp_path, owned):
        for name in ("pages", "pages2"):
            (tmp_path / name).mkdir()
        fd = owned(os.open(tmp_path / "pages2" / "file", os.O_CREAT | os.O_RDWR))
        assert row_of(fd, fd_table(storage_dir=tmp_path / "pages")).kind == "regular"
        assert count_storage_fds(os.getpid(), tmp_path / "pages") == 0

    def test_a_symbolic_link_to_the_folder_stands_for_it(self, tmp_path, owned):
        (tmp_path / "pages").mkdir()
        (tmp_path / "link").symlink_to("pages")
        fd = owned(os.open(tmp_path / "pages" / "file", os.O_CREAT | os.O_RDWR))
        assert row_of(fd, fd_table(storage_dir=tmp_path / "link")).kind == "storage file"
        assert count_storage_fds(os.getpid(), tmp_path / "link") == 1


class TestAnotherProcess:
    def test_the_count_goes_up_with_an_open_and_down_with_the_close(self, tmp_path):
        before = count_fds(os.getpid())
        fd = os.open(tmp_path / "page", os.O_CREAT | os.O_RDWR)
        assert count_fds(os.getpid()) == before + 1
        os.close(fd)
        assert count_fds(os.getpid()) == before

    def test_its_descriptors_are_counted_and_named(self, tmp_path, owned):
        fd = owned(os.open(tmp_path / "page", os.O_CREAT | os.O_RDWR))
        with sleeping_child(fd) as pid:
            assert count_fds(pid) == 4
            assert count_storage_fds(pid, tmp_path) == 1
            table = fd_table(pid, tmp_path)
        assert table.kind.tolist() == ["device", "pipe", "device", "storage file"]
        assert row_of(fd, table).target == str(tmp_path / "page")

    @pytest.mark.parametrize("look", [fd_table, count_fds, lambda pid: count_storage_fds(pid, ".")])
    def test_one_that_does_not_exist_is_an_error(self, look):
        with subprocess.Popen(["true"]) as child:
            child.wait()
        with pytest.raises(ProcessGoneError, match=f"process {child.pid} has ended"):
            look(child.pid)

    def test_one_that_ended_is_an_error_before_its_parent_has_waited_for_it(self):
        """Its descriptors are closed, and 0 would be taken for a count."""
        with subprocess.Popen(["true"]) as child:
            deadline = time.monotonic() + 10
            while " Z " not in Path(f"/proc/{child.pid}/stat").read_text() and time.monotonic() < deadline:
                time.sleep(0.01)
            with pytest.raises(ProcessGoneError, match=f"process {child.pid} has ended"):
                count_fds(child.pid)


def open_page(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR)


OPEN_LINE = open_page.__code__.co_firstlineno + 1


class TestOpenedBy:
    def test_a_leaked_descriptor_has_the_line_that_opened_it_and_its_callers(self, tmp_path, owned):
        with trace_opens() as opened:
            fd = owned(open_page(tmp_path / "leaked"))
            (row,) = opened_by(opened, tmp_path)
        assert (row["fd"], row["target"]) == (fd, str(tmp_path / "leaked"))
        innermost, caller, *_ = row["opened_by"].split(" < ")
        assert innermost == f"worker/test_descriptors.py:{OPEN_LINE} open_page"
        assert caller.startswith("worker/test_descriptors.py:")
        assert caller.endswith("test_a_leaked_descriptor_has_the_line_that_opened_it_and_its_callers")

    def test_one_that_was_closed_is_forgotten(self, tmp_path, owned):
        with trace_opens() as opened:
            os.close(open_page(tmp_path / "closed"))
            leaked = owned(open_page(tmp_path / "leaked"))
            rows = opened_by(opened, tmp_path)
        assert [row["fd"] for row in rows] == [leaked]

    def test_one_from_before_the_trace_is_not_blamed_on_a_line(self, tmp_path, owned):
        owned(open_page(tmp_path / "earlier"))
        with trace_opens() as opened:
            (row,) = opened_by(opened, tmp_path)
        assert row["opened_by"] == "not opened by os.open"

    def test_a_number_that_something_else_took_again_is_not_blamed_on_the_first_line(self, tmp_path):
        """What opens without ``os.open`` (C code, ``open``) reuses the numbers of closed descriptors."""
        with trace_opens() as opened:
            fd = open_page(tmp_path / "traced")
            os.close(fd)
            with open(tmp_path / "other", "wb") as other:
                assert other.fileno() == fd
                (row,) = opened_by(opened, tmp_path)
        assert row["opened_by"] == "not opened by os.open"

    def test_files_outside_the_folder_are_left_out(self, tmp_path, owned):
        (tmp_path / "pages").mkdir()
        with trace_opens() as opened:
            owned(open_page(tmp_path / "elsewhere"))
            assert opened_by(opened, tmp_path / "pages") == []

    def test_os_open_is_what_it_was_afterwards(self):
        original = os.open
        with trace_opens():
            assert os.open is not original
        assert os.open is original

    def test_os_open_is_what_it_was_after_an_exception(self, tmp_path):
        original = os.open
        with pytest.raises(FileNotFoundError), trace_opens():
            os.open(tmp_path / "missing" / "file", os.O_RDONLY)
        assert os.open is original
