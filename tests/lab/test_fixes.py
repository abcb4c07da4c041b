"""The text of the fix, and what every way out of a transfer leaves before and after it."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pandas as pd
import pytest

from hicache_nixl.errors import HiCacheNixlError
from hicache_nixl.lab.faults import FAULTS, arm
from hicache_nixl.lab.fixes import patch, ways_out
from hicache_nixl.lifetimes import leaky, try_finally

KEYS = 3
FILES = 2 * KEYS


@pytest.fixture(scope="module")
def before() -> pd.DataFrame:
    return ways_out("leaky", keys=KEYS).set_index("way out")


@pytest.fixture(scope="module")
def after() -> pd.DataFrame:
    return ways_out("try_finally", keys=KEYS).set_index("way out")


@pytest.fixture(params=["before", "after"])
def ways(request: pytest.FixtureRequest) -> pd.DataFrame:
    return request.getfixturevalue(request.param)


def changed(sign: str) -> list[str]:
    """Return the added or removed lines of the patch, without their indentation."""
    lines = patch("leaky", "try_finally").splitlines()[2:]
    return [line[1:].strip() for line in lines if line.startswith(sign)]


def docstring_lines(module: ModuleType) -> set[str]:
    source = inspect.getsource(module)
    strings = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    lines = source.splitlines()
    return {line.strip() for text in strings for line in lines[text.lineno - 1 : text.end_lineno]}


class TestPatch:
    def test_it_is_a_diff_of_the_two_modules(self):
        first, second, *_ = patch("leaky", "try_finally").splitlines()
        assert first == "--- hicache_nixl/lifetimes/leaky.py"
        assert second == "+++ hicache_nixl/lifetimes/try_finally.py"

    def test_it_adds_what_the_pr_adds_in_its_order(self):
        added = changed("+")
        wanted = (
            "file_fds: list[int] = []",
            "tuples = self.file_manager.files_to_nixl_tuples(keys)",
            "file_fds = [fd for _, _, fd, _ in tuples]",
            "finally:",
            "for fd in file_fds:",
            "self.file_manager.close_file(fd)",
        )
        places = [added.index(line) for line in wanted]
        assert places == sorted(places)

    def test_it_removes_nothing_but_indents_it(self):
        removed = [line for line in changed("-") if line not in docstring_lines(leaky)]
        assert removed
        assert [line for line in removed if line not in changed("+")] == []

    def test_it_adds_no_more_than_the_owner_of_the_descriptors(self):
        added = [line for line in changed("+") if line not in docstring_lines(try_finally)]
        for line in changed("-"):
            if line in added:
                added.remove(line)
        assert added == [
            "file_fds: list[int] = []",
            "file_fds = [fd for _, _, fd, _ in tuples]",
            "try:",
            "finally:",
            "for fd in file_fds:",
            "self.file_manager.close_file(fd)",
        ]

    def test_a_module_has_no_difference_to_itself(self):
        assert patch("leaky", "leaky") == ""


class TestWaysOut:
    def test_both_tables_have_success_and_every_fault(self, ways):
        assert ways.index.tolist() == ["success", *(fault.title for fault in FAULTS.values())]
        assert ways.files.unique().tolist() == [FILES]

    def test_before_all_but_an_open_that_fails_leave_every_file_open(self, before):
        expected = [0 if way == "an open fails half way" else FILES for way in before.index]
        assert before.fds_left.tolist() == expected

    def test_after_no_way_out_leaves_a_descriptor(self, after):
        assert after.fds_left.tolist() == [0] * len(after)

    def test_registrations_are_left_by_both_alike(self, before, after):
        """Of files, then of buffers, then of the buffers again when initialization failed."""
        expected = {
            "an open fails half way": 0,
            "registering the files fails": 0,
            "registering the buffers fails": FILES,
            "initialization fails, and again": 3 * FILES,
        }
        for ways in (before, after):
            assert ways.registrations_left.to_dict() == {
                way: expected.get(way, 2 * FILES) for way in ways.index
            }

    def test_a_fault_answers_false_and_only_the_interrupt_is_raised(self, ways):
        expected = {"success": "True", "KeyboardInterrupt": "KeyboardInterrupt"}
        assert ways.answer.to_dict() == {way: expected.get(way, "False") for way in ways.index}

    def test_the_next_call_works_after_each(self, ways):
        assert ways.next_call_works.all()

    def test_every_false_has_logged_its_reason(self, ways):
        assert (ways.logged[ways.answer == "False"].str.len() > 0).all()

    def test_success_logs_nothing(self, ways):
        assert ways.logged["success"] == ""

    def test_the_log_of_a_failed_open_has_its_errno(self, ways):
        assert "[Errno 24] Too many open files" in ways.logged["an open fails half way"]

    def test_no_line_of_the_log_names_the_folder_of_this_run(self, ways):
        assert not ways.logged.str.contains("hicache-nixl-").any()


def test_an_unknown_fault_is_refused_with_those_that_are_known():
    with pytest.raises(HiCacheNixlError, match="fault 'flood' is unknown; it takes one of open, register"):
        arm(object(), "flood")


def test_an_unknown_connector_is_refused():
    with pytest.raises(HiCacheNixlError, match="'leeky' is unknown; it takes one of leaky, try_finally"):
        ways_out("leeky")
