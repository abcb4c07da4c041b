"""The text of the fix, and the table of what faults leave, summed up."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pandas as pd
import pytest

from hicache_nixl.config import FILE_PER_PIECE, ConfigError
from hicache_nixl.lab.experiments import fault_matrix
from hicache_nixl.lab.experiments.fault_matrix import every_fault, fault_summary, patch
from hicache_nixl.lifetimes import leaky, try_finally


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
    @pytest.mark.parametrize(("before", "after"), [("leaky", "try_finally"), ("try_finally", "scoped")])
    def test_it_is_a_diff_of_the_two_modules(self, before, after):
        first, second, *_ = patch(before, after).splitlines()
        assert first == f"--- hicache_nixl/lifetimes/{before}.py"
        assert second == f"+++ hicache_nixl/lifetimes/{after}.py"

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

    @pytest.mark.parametrize("lifetime", FILE_PER_PIECE)
    def test_a_module_has_no_difference_to_itself(self, lifetime):
        assert patch(lifetime, lifetime) == ""


class TestFaultSummary:
    @pytest.fixture
    def summary(self) -> pd.DataFrame:
        columns = [
            "operation",
            "step",
            "nth",
            "kind",
            "fds_left",
            "registrations_left",
            "handles_left",
            "most_closes",
            "next_call_works",
            "logged",
        ]
        rows = [
            ("set", "register", 1, "error", 0, 0, 0, 1, True, "first"),
            ("set", "register", 2, "error", 4, 2, 0, 1, False, "second"),
            ("get", "register", 1, "error", 3, 8, 1, 2, True, "third"),
            ("set", "open", 1, "interrupt", 0, 0, 0, 0, True, ""),
        ]
        table = fault_summary(pd.DataFrame(rows, columns=columns))
        return table.set_index(["step", "kind"])

    def test_a_row_per_step_and_kind_in_the_order_of_the_steps(self, summary):
        assert summary.index.tolist() == [("register", "error"), ("open", "interrupt")]
        assert summary.faults.tolist() == [3, 1]

    def test_it_counts_the_faults_that_left_something_and_keeps_the_most_of_it(self, summary):
        row = summary.loc[("register", "error")]
        assert (row.left_files_open, row.most_fds, row.most_registrations) == (2, 4, 8)
        assert (row.most_handles, row.most_closes, row.next_call_fails, row.logged) == (1, 2, 1, "third")

    def test_where_nothing_was_left_it_says_zero(self, summary):
        row = summary.loc[("open", "interrupt")]
        assert (row.left_files_open, row.most_fds, row.most_registrations, row.next_call_fails) == (
            0,
            0,
            0,
            0,
        )


def test_an_unknown_connector_is_refused_before_any_process(monkeypatch):
    monkeypatch.setattr(fault_matrix, "Worker", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(ConfigError, match="'leeky' is unknown; expected one of leaky, try_finally, scoped"):
        every_fault("leeky")
