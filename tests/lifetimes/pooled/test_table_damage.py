"""A table whose file is damaged, cut, removed or replaced: rows are missing, never wrong, and only our errors."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_rows import SPACE, keys_of, make_rows, same_but_guard
from support import names_open

from hicache_nixl.errors import DamagedError, FileError, HiCacheNixlError, NewerFormatError
from hicache_nixl.lifetimes.pooled import table as table_module
from hicache_nixl.lifetimes.pooled.table import Table
from hicache_nixl.lifetimes.pooled.table_file import WORDS_START

GENERATIONS = np.ones(4, np.uint64)
ROWS, ROOM = 100, 256
ROWS_START = WORDS_START + 16 * ROOM
END = ROWS_START + 96 * ROOM


@pytest.fixture(autouse=True, scope="module")
def no_pauses():
    """Damaged rows stay damaged: do not wait for their writer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "PAUSES", (0,))
        yield


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def table(dir_fd):
    with Table.create(dir_fd, "index", ROOM) as table:
        assert table.put(make_rows(range(ROWS)), GENERATIONS).all()
        yield table


def flip(fd, bit):
    byte = os.pread(fd, 1, bit // 8)[0]
    os.pwrite(fd, bytes([byte ^ 1 << bit % 8]), bit // 8)


# Bits of words, of rows, of the header, and anywhere; most pages of memory hold rows.
BYTES = st.one_of(
    st.integers(WORDS_START, ROWS_START - 1),
    st.integers(ROWS_START, END - 1),
    st.integers(0, 39),
    st.integers(0, END - 1),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.builds(lambda byte, bit: 8 * byte + bit, BYTES, st.integers(0, 7)), min_size=1, max_size=300)
)
def test_flipped_bits_never_make_a_wrong_row(bits):
    rows, keys = make_rows(range(ROWS)), keys_of(range(ROWS))
    with contextlib.ExitStack() as stack:
        dir_fd = os.open(stack.enter_context(tempfile.TemporaryDirectory()), os.O_RDONLY)
        stack.callback(os.close, dir_fd)
        table = stack.enter_context(Table.create(dir_fd, "index", ROOM))
        table.put(rows, GENERATIONS)
        fd = os.open("index", os.O_RDWR, dir_fd=dir_fd)
        stack.callback(os.close, fd)
        for bit in bits:
            flip(fd, bit)
        found, slots = table.find(keys, SPACE)
        assert same_but_guard(found, rows)[slots >= 0].all()
        assert not found[slots < 0].view(np.uint64).any()
        live = table.live(GENERATIONS)
        assert same_but_guard(live, rows[live_numbers(live)]).all()
        with contextlib.suppress(HiCacheNixlError), Table.open(dir_fd, "index") as reopened:
            assert reopened.room == ROOM
        newer = make_rows(range(ROWS), 2)
        assert table.put(newer, GENERATIONS).all()
        assert same_but_guard(table.find(keys, SPACE)[0], newer).all()
        with table.grown(dir_fd, "grown", ROOM, GENERATIONS) as grown:
            assert same_but_guard(grown.find(keys, SPACE)[0], newer).all()
            assert grown.count() == ROWS


def live_numbers(live):
    """Return which number each row's key was made from."""
    numbers = {key.tobytes(): number for number, key in enumerate(keys_of(range(ROWS)))}
    return [numbers[row["key"].tobytes()] for row in live]


def test_a_file_of_random_bytes_holds_no_row(table, path):
    rng = np.random.default_rng(0)
    with path.open("r+b") as file:
        file.seek(WORDS_START)
        file.write(rng.bytes(112 * ROOM))
    assert (table.find(keys_of(range(ROWS)), SPACE)[1] == -1).all()
    assert len(table.live(GENERATIONS)) == table.clear([SPACE]) == 0
    assert table.put(make_rows(range(ROWS)), GENERATIONS).all()


CALLS = {
    "find": lambda table: table.find(keys_of([1]), SPACE),
    "put": lambda table: table.put(make_rows([1]), GENERATIONS),
    "remove": lambda table: table.remove(make_rows([1])),
    "clear": lambda table: table.clear([SPACE]),
    "live": lambda table: table.live(GENERATIONS),
    "count": lambda table: table.count(),
    "check": lambda table: table.check(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("size", [0, 100, WORDS_START, ROWS_START + 96, 10**6])
def test_a_table_cut_or_extended_while_it_is_open(table, path, call, size):
    os.truncate(path, size)
    with pytest.raises(DamagedError, match=f"index has {size} bytes instead of"):
        call(table)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_table_removed_while_it_is_open(table, path, call):
    path.unlink()
    with pytest.raises(DamagedError, match="index was removed"):
        call(table)


def test_a_table_removed_while_it_grows(table, path, dir_fd, tmp_path, monkeypatch):
    monkeypatch.setattr(Table, "put", lambda *_: (path.unlink(), table.check()))
    with pytest.raises(DamagedError, match="index was removed"):
        table.grown(dir_fd, "other", ROOM, GENERATIONS)
    assert not list(tmp_path.iterdir())
    table.close()
    assert names_open(tmp_path) == []


def refused(dir_fd, tmp_path, error, match):
    before = names_open(tmp_path)
    with pytest.raises(error, match=match):
        Table.open(dir_fd, "index")
    assert names_open(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda path: None, FileError, "No such file"),
        (lambda path: path.symlink_to("elsewhere"), FileError, "symbolic links"),
        (lambda path: path.mkdir(), FileError, "directory"),
        (os.mkfifo, DamagedError, "not a regular file"),
        (lambda path: path.write_bytes(b""), DamagedError, "not an index"),
        (lambda path: path.write_bytes(b"x" * 10**5), DamagedError, "not an index"),
    ],
    ids=["missing", "symbolic_link", "folder", "fifo", "empty", "other_contents"],
)
def test_what_is_no_table_is_refused(dir_fd, tmp_path, path, make, error, match):
    with Table.create(dir_fd, "elsewhere", ROOM):
        pass
    make(path)
    refused(dir_fd, tmp_path, error, match)


@pytest.mark.parametrize(
    ("version", "slots", "error", "match"),
    [
        (3, 2 * ROOM, NewerFormatError, "format 3, and this version reads up to 2"),
        (1, 2 * ROOM, DamagedError, "damaged: format 1"),
        (2, 4 * ROOM, DamagedError, "damaged: format 2, 1024 slots, 32768 bytes"),
        (2, 0, DamagedError, "0 slots"),
        (2, 2**63, DamagedError, "slots"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(table, path, dir_fd, tmp_path, version, slots, error, match):
    with path.open("r+b") as file:
        file.seek(16)
        file.write(struct.pack("<QQ", version, slots))
    refused(dir_fd, tmp_path, error, match)


@pytest.mark.parametrize("size", [0, 10, WORDS_START, ROWS_START + 96, 10**6])
def test_a_file_that_was_cut_or_extended_is_refused(table, path, dir_fd, tmp_path, size):
    os.truncate(path, size)
    refused(dir_fd, tmp_path, DamagedError, "damaged|not an index")


def test_a_file_of_another_user_is_refused(table, dir_fd, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    refused(dir_fd, tmp_path, DamagedError, f"belongs to user {os.getuid()}")


def test_a_folder_that_is_gone(dir_fd, tmp_path):
    tmp_path.rmdir()
    with pytest.raises(FileError, match="No such file"):
        Table.create(dir_fd, "index", 16)
