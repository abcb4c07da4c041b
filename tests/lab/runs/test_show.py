"""Tables as readers see them: numbers right, words left, no row numbers, nothing of pandas."""

from __future__ import annotations

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from hicache_nixl.lab.runs.show import MOST, as_html


def rows(frame: pd.DataFrame) -> list[list[str]]:
    page = BeautifulSoup(as_html(frame), "html.parser")
    return [[cell.get_text() for cell in row(["th", "td"])] for row in page("tr")]


def sides(frame: pd.DataFrame) -> list[str]:
    page = BeautifulSoup(as_html(frame), "html.parser")
    return [cell["style"].removeprefix("text-align:") for cell in page.select("tbody tr")[0]("td")]


def test_the_number_of_a_row_is_left_out_and_a_real_index_is_a_column():
    table = pd.DataFrame({"call": [1, 2], "open_fds": [167, 199]})
    assert rows(table) == [["call", "open fds"], ["1", "167"], ["2", "199"]]
    assert rows(table[1:]) == [["call", "open fds"], ["2", "199"]]
    assert rows(table.set_index("call")) == rows(table)


def test_a_pivoted_table_names_both_directions():
    table = pd.DataFrame({"call": [1, 2], "connector": "leaky", "open_fds": [167, 199]})
    wide = table.pivot(index="call", columns="connector", values="open_fds").T
    assert rows(wide) == [["connector / call", "1", "2"], ["leaky", "167", "199"]]


def test_several_levels_are_joined():
    table = pd.DataFrame({"arm": ["a", "a"], "keys": [1, 2], "ms": [1.5, 2.5]}).set_index(["arm", "keys"])
    assert rows(table)[0] == ["arm", "keys", "ms"]
    assert rows(table.unstack())[0] == ["arm / keys", "ms 1", "ms 2"]


@pytest.mark.parametrize("missing", [None, pd.NA, float("nan")])
def test_what_is_missing_is_a_dash(missing):
    assert rows(pd.DataFrame({"name": ["a"], "left": [missing]}))[1] == ["a", "-"]
    assert "NA" not in as_html(pd.DataFrame({"left": pd.array([1, None], "Int64")}))


def test_numbers_and_intervals_are_right_words_and_answers_left():
    table = pd.DataFrame(
        {"what": ["a sentence"], "count": [1], "some": pd.array([1], "Int64"), "time": ["1.0 [0.9, 1.1]"]}
        | {"seen": [True], "mixed": [pd.Series([1, None], dtype=object)[0]]}
    )
    assert sides(table) == ["left", "right", "right", "right", "left", "right"]
    assert rows(table)[1][-2] == "yes"


def test_an_empty_table_says_so_and_a_long_one_is_cut():
    assert as_html(pd.DataFrame(columns=["a"])) == "<p>No rows.</p>"
    long = pd.DataFrame({"a": range(MOST + 1)})
    assert len(rows(long)) == MOST + 1
    assert as_html(long).endswith(f"<p>The first {MOST} of {MOST + 1} rows.</p>")


def test_text_is_text():
    assert "<b>" not in as_html(pd.DataFrame({"<b>a": ["<b>"]}))
