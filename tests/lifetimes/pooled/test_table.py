"""The index of `pooled` against a dict, and each of its rules by itself."""

from __future__ import annotations

import os
import tempfile
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from page_rows import SPACE, keys_of, make_rows, same_but_guard
from support import names_open

from hicache_nixl.errors import ClosedError, FileError
from hicache_nixl.lifetimes.pooled.row import ROW, rows_of, words_of
from hicache_nixl.lifetimes.pooled.table import Table
from hicache_nixl.lifetimes.pooled.words import FACTORS, guard_of, hash_of

GENERATIONS = np.array([1, 2, 3, 4], np.uint64)
KEYS, SPACES = 60, (1, 2)


@pytest.fixture
def table(dir_fd):
    with Table.create(dir_fd, "index", 1 << 11) as table:
        yield table


class TableAndDict(RuleBasedStateMachine):
    """The same calls to a small table, which is often full, and to a dict."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.dir_fd = os.open(self.folder.name, os.O_RDONLY)
        self.files, self.version = 0, 0
        self.table = Table.create(self.dir_fd, "index.0", 1)
        self.generations = np.array([1, 2], np.uint64)
        self.rows = {}

    def teardown(self):
        self.table.close()
        os.close(self.dir_fd)
        self.folder.cleanup()

    def is_live(self, row):
        return self.generations[row["segment"]] == row["generation"]

    @rule(
        numbers=st.lists(st.integers(0, KEYS - 1), max_size=70),
        space=st.sampled_from(SPACES),
        segment=st.integers(0, 1),
    )
    def put(self, numbers, space, segment):
        self.version += 1
        rows = make_rows(
            numbers, self.version, space=space, segment=segment, generation=self.generations[segment]
        )
        rows["offset"] = np.arange(len(rows))  # the last of equal keys differs from the others
        placed = self.table.put(rows, self.generations)
        for number, row, done in zip(numbers, rows, placed, strict=True):
            if done:
                self.rows[number, space] = row
        if not placed.all():
            assert len(self.table.live(self.generations)) + len(numbers) > self.table.room

    @rule(numbers=st.lists(st.integers(0, KEYS - 1), max_size=9), space=st.sampled_from(SPACES))
    def remove(self, numbers, space):
        found, slots = self.table.find(keys_of(numbers), space)
        self.table.remove(found[slots >= 0])
        for number in numbers:
            self.rows.pop((number, space), None)

    @rule(number=st.integers(0, KEYS - 1), space=st.sampled_from(SPACES))
    def remove_a_row_of_another_version(self, number, space):
        self.table.remove(make_rows([number], 10**9, space=space))

    @rule(space=st.sampled_from(SPACES))
    def clear(self, space):
        inside = [key for key in self.rows if key[1] == space]
        live = sum(self.is_live(self.rows[key]) for key in inside)
        assert live <= self.table.clear([space]) <= len(inside)
        for key in inside:
            del self.rows[key]

    @rule(segment=st.integers(0, 1))
    def recycle(self, segment):
        self.generations[segment] = self.generations.max() + 1

    @rule(room=st.sampled_from((1, 32, 256)))
    def grow(self, room):
        self.files += 1
        grown = self.table.grown(self.dir_fd, f"index.{self.files}", room, self.generations)
        self.table.close()
        self.table = grown
        assert grown.room >= room
        self.rows = {key: row for key, row in self.rows.items() if self.is_live(row)}
        assert grown.count() == len(self.rows)

    @rule()
    def reopen(self):
        self.table.close()
        self.table = Table.open(self.dir_fd, f"index.{self.files}")

    @invariant()
    def finds_what_the_dict_has(self):
        for space in SPACES:
            rows, slots = self.table.find(keys_of(range(KEYS)), space)
            for number in range(KEYS):
                expected = self.rows.get((number, space))
                if slots[number] >= 0:
                    assert expected is not None
                    assert same_but_guard(rows[number : number + 1], expected[None]).all()
                else:
                    assert expected is None or not self.is_live(expected)
        live = self.table.live(self.generations)
        assert len(live) == sum(map(self.is_live, self.rows.values()))


TableAndDict.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestTableAndDict = TableAndDict.TestCase


def test_rows_are_found_as_they_were_put(table):
    rows = make_rows(range(1000))
    assert table.put(rows, GENERATIONS).all()
    found, slots = table.find(keys_of(range(1000)), SPACE)
    assert same_but_guard(found, rows).all()
    assert len(set(slots)) == 1000
    assert table.count() == 1000


def test_a_missing_key_has_no_slot_and_a_row_of_zeros(table):
    table.put(make_rows([1]), GENERATIONS)
    rows, slots = table.find(keys_of([2, 1, 2]), SPACE)
    assert (slots >= 0).tolist() == [False, True, False]
    assert rows[0] == rows[2] == np.zeros((), ROW)


def test_the_same_key_in_another_space_is_another_page(table):
    table.put(make_rows([1], 5), GENERATIONS)
    assert table.find(keys_of([1]), SPACE + 1)[1] == -1
    table.put(make_rows([1], 6, space=SPACE + 1), GENERATIONS)
    assert table.find(keys_of([1]), SPACE)[0]["size"] == 5


def test_an_empty_batch(table):
    rows, slots = table.find(keys_of([]), SPACE)
    assert (rows.shape, slots.shape, rows.dtype) == ((0,), (0,), ROW)
    assert table.put(rows, GENERATIONS).shape == (0,)
    table.remove(rows)
    assert table.clear([]) == table.count() == len(table.live(GENERATIONS)) == 0


def test_the_rows_of_a_find_are_copies(table):
    table.put(make_rows([1]), GENERATIONS)
    table.find(keys_of([1]), SPACE)[0]["size"] = 99
    assert table.find(keys_of([1]), SPACE)[0]["size"] == 1


def test_put_leaves_the_callers_rows_alone(table):
    rows = make_rows(range(10))
    before = rows.copy()
    table.put(rows[::2], GENERATIONS)
    assert (rows == before).all()
    assert table.count() == 5


def test_of_equal_keys_in_a_batch_the_last_one_stays(table):
    versions = [make_rows([number], version) for version in (1, 2, 3) for number in (4, 5)]
    assert table.put(np.concatenate(versions), GENERATIONS).all()
    assert table.find(keys_of([4, 5]), SPACE)[0]["size"].tolist() == [3, 3]
    assert table.count() == 2


def same_hash(name, count):
    """Return names, shape (count, 5), whose words have the same sum before it is finished."""
    half, twist = np.uint64(32), np.arange(count, dtype=np.uint64)
    mixed = np.repeat((name ^ (name >> half))[None], count, axis=0)
    mixed[:, 0] += FACTORS[1] * twist
    mixed[:, 1] -= FACTORS[0] * twist
    return mixed ^ (mixed >> half)


def test_keys_with_the_same_hash_are_told_apart(table):
    rows = np.repeat(make_rows([1]), 40)
    names = same_hash(words_of(rows)[0, :5], 40)
    rows["key"], rows["size"] = names[:, :4], np.arange(40)
    assert len({hash_of(name[:4], name[4]) for name in names}) == 1
    assert table.put(rows, GENERATIONS).sum() == 32  # all that two buckets have room for
    found, slots = table.find(rows["key"], SPACE)
    assert same_but_guard(found[slots >= 0], rows[slots >= 0]).all()
    assert (slots >= 0).sum() == 32


@pytest.mark.parametrize("segments", [4, 1])
def test_stale_rows_make_room_when_buckets_are_full(dir_fd, segments):
    with Table.create(dir_fd, "index", 16) as table:
        assert table.put(make_rows(range(16), segment=2, generation=3), GENERATIONS).all()
        assert not table.put(make_rows(range(16, 32)), GENERATIONS).any()
        recycled = np.array([1, 2, 5, 4], np.uint64)[:segments]
        assert table.put(make_rows(range(16, 32)), recycled).all()
        assert (table.find(keys_of(range(16, 32)), SPACE)[1] >= 0).all()
        assert (table.find(keys_of(range(16)), SPACE)[1] == -1).all()


def test_a_damaged_row_is_replaced_by_the_next_of_its_key(table):
    rows = make_rows(range(100))
    table.put(rows, GENERATIONS)
    table._file.rows[:, 8] += 1
    table.put(rows, GENERATIONS)
    assert table.count() == 100
    assert same_but_guard(table.find(keys_of(range(100)), SPACE)[0], rows).all()


def test_remove_forgets_only_the_very_same_rows(table):
    table.put(make_rows([1, 2]), GENERATIONS)
    table.remove(np.concatenate([make_rows([1]), make_rows([2], 2), make_rows([3])]))
    assert (table.find(keys_of([1, 2]), SPACE)[1] >= 0).tolist() == [False, True]


def test_clear_forgets_whole_spaces(table):
    for space in (1, 2, 3):
        table.put(make_rows(range(100), space=space), GENERATIONS)
    assert table.clear([1, 3, 9]) == 200
    assert set(table.live(GENERATIONS)["space"].tolist()) == {2}
    assert table.count() == 100


def test_no_put_fails_while_there_is_room(dir_fd):
    with Table.create(dir_fd, "index", 1 << 17) as table:
        numbers = np.arange(table.room)
        for part in np.array_split(numbers, len(numbers) // 128):
            assert table.put(make_rows(part), GENERATIONS).all()
        assert (table.find(keys_of(numbers), SPACE)[1] >= 0).all()
        assert not table.put(make_rows([len(numbers)]), GENERATIONS).any()
        with table.grown(dir_fd, "larger", 2 * table.room, GENERATIONS) as larger:
            assert larger.count() == len(numbers)


def test_no_put_fails_while_segments_are_recycled(dir_fd):
    segments, batch = 64, 192
    generations = np.arange(segments, dtype=np.uint64)
    with Table.create(dir_fd, "index", segments * batch) as table:
        for turn in range(20 * segments):
            segment = turn % segments
            generations[segment] = segments + turn
            numbers = np.arange(batch) + turn * batch
            rows = make_rows(numbers, segment=segment, generation=generations[segment])
            assert table.put(rows, generations).all()
        assert len(table.live(generations)) == segments * batch


def test_the_rows_of_a_batch_lie_next_to_each_other(table):
    for batch in range(8):
        numbers = np.arange(100) + 100 * batch
        table.put(make_rows(numbers), GENERATIONS)
        places = table.find(keys_of(numbers), SPACE)[1]
        assert (np.diff(places) == 1).all()


def test_a_page_that_is_stored_again_where_its_stale_row_was_is_listed(dir_fd):
    with Table.create(dir_fd, "index", 8) as table:
        assert table.put(make_rows(range(8)), GENERATIONS).all()
        generations = np.array([9, 2, 3, 4], np.uint64)
        for _ in range(3):
            assert table.put(make_rows(range(8), generation=9), generations).all()
            assert (table.find(keys_of(range(8)), SPACE)[1] >= 0).all()
            generations = generations + np.uint64(9)
            assert table.put(make_rows(range(8), generation=generations[0]), generations).all()
            assert (table.find(keys_of(range(8)), SPACE)[1] >= 0).all()
            generations = np.array([9, 2, 3, 4], np.uint64)


def test_rows_that_are_not_listed_any_more_make_room(dir_fd):
    with Table.create(dir_fd, "index", 64) as table:
        for version in range(20):
            assert table.put(make_rows(range(32), version), GENERATIONS).all()
        table.remove(make_rows(range(16), 19))
        assert table.clear([SPACE]) == 16
        assert table.put(make_rows(range(100, 164)), GENERATIONS).all()


def test_a_batch_that_has_too_little_room_is_stored_in_part(dir_fd):
    with Table.create(dir_fd, "index", 64) as table:
        assert table.put(make_rows(range(60)), GENERATIONS).all()
        placed = table.put(make_rows(range(100, 110)), GENERATIONS)
        assert placed.sum() == 4
        assert (table.find(keys_of(range(100, 110)), SPACE)[1] >= 0).tolist() == placed.tolist()


def test_grown_takes_as_many_slots_as_the_rows_need(table, dir_fd):
    table.put(make_rows(range(500)), GENERATIONS)
    table.put(make_rows(range(500, 600), segment=1, generation=1), GENERATIONS)  # stale
    with table.grown(dir_fd, "other", 1, GENERATIONS) as other:
        assert other.count() == 500
        assert 512 <= other.room <= 1024


def test_a_torn_row_is_read_again_until_its_writer_has_gone_on(table, monkeypatch):
    old, new = (words_of(make_rows([1], version)) for version in (1, 2))
    table.put(rows_of(old), GENERATIONS)
    place = table.find(keys_of([1]), SPACE)[1]
    new[:, 11] = guard_of(new[0])
    table._file.rows[place, :9] = new[:, :9]
    pauses = []

    def go_on(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            table._file.rows[place] = new

    monkeypatch.setattr(time, "sleep", go_on)
    assert table.find(keys_of([2, 1, 1]), SPACE)[0]["size"].tolist() == [0, 2, 2]
    assert len(pauses) == 2


def test_a_row_that_stays_torn_is_missing_after_some_milliseconds(table):
    table.put(make_rows([1, 2]), GENERATIONS)
    place = table.find(keys_of([1]), SPACE)[1]
    table._file.rows[place, 6] ^= np.uint64(1)
    started = time.perf_counter()
    rows, slots = table.find(keys_of([1, 2, 1]), SPACE)
    assert time.perf_counter() - started < 1
    assert ((slots >= 0).tolist(), rows["size"].tolist()) == ([False, True, False], [0, 1, 0])


@pytest.mark.parametrize("call", ["find", "put", "remove", "clear", "live"])
def test_a_call_while_another_thread_closes_the_table_reads_nothing(dir_fd, monkeypatch, call):
    table = Table.create(dir_fd, "index", 1)
    rows = make_rows([1])
    check = table._file.check
    monkeypatch.setattr(table._file, "check", lambda: (check(), table.close()))
    calls = {
        "find": lambda: table.find(keys_of([1]), SPACE),
        "put": lambda: table.put(rows, GENERATIONS),
        "remove": lambda: table.remove(rows),
        "clear": lambda: table.clear([SPACE]),
        "live": lambda: table.live(GENERATIONS),
    }
    with pytest.raises(ClosedError):
        calls[call]()


def test_close_twice_then_every_call_says_that_it_is_closed(dir_fd, tmp_path):
    table = Table.create(dir_fd, "index", 1)
    assert names_open(tmp_path) == ["index", "index"]  # one of them is the mapping's own
    table.close()
    table.close()
    assert names_open(tmp_path) == []
    for call in (
        lambda: table.find(keys_of([1]), SPACE),
        lambda: table.put(make_rows([1]), GENERATIONS),
        lambda: table.live(GENERATIONS),
        table.count,
        table.check,
    ):
        with pytest.raises(ClosedError):
            call()


def test_a_table_that_is_created_replaces_what_is_there(dir_fd, tmp_path):
    (tmp_path / "index").write_bytes(b"left by a process that was killed")
    with Table.create(dir_fd, "index", 17) as table:
        assert (table.room, table.count()) == (24, 0)
        assert (tmp_path / "index").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_no_file_and_no_descriptor(dir_fd, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileError, match="No space left"):
        Table.create(dir_fd, "index", 16)
    assert list(tmp_path.iterdir()) == []
    assert names_open(tmp_path) == []
