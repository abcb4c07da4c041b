"""Readers beside a writer, and writers that are killed: rows are whole, old, new or missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import answer_of, run_python

SCRIPT = str(Path(__file__).with_name("table_processes.py"))


@pytest.mark.parametrize("seconds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_readers_see_whole_rows_and_miss_none_while_a_writer_updates_them(tmp_path, seconds):
    answer = answer_of(run_python(SCRIPT, "concurrent", str(tmp_path), str(seconds)))
    assert answer["ends"] == [0, 0, 0]
    for reader in answer["readers"]:
        assert reader["found"] > 1000
        assert reader["versions"] > 2  # the writer did change rows meanwhile
        assert (reader["wrong"], reader["missing"]) == (0, 0)


@pytest.mark.parametrize("kills", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_writer_that_is_killed_leaves_rows_old_new_or_missing(tmp_path, kills):
    seen = answer_of(run_python(SCRIPT, "kills", str(tmp_path), str(kills)))
    assert (seen["wrong"], seen["live differs from found"]) == (0, 0)
    assert seen["new"] > 0
    assert seen["missing"] <= kills  # the row that was being written
