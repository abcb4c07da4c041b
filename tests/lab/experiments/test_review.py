"""What is measured where SGLang's releases differ, and the remarks in the review of PR #24671."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from hicache_nixl.config import FILE_PER_PIECE, LIFETIMES
from hicache_nixl.lab.experiments import review
from hicache_nixl.lab.experiments.review import (
    imports_inside_functions,
    owner_of_descriptors,
    register_files_left,
    release_facts,
)
from hicache_nixl.lab.worker.client import RefusedError, Worker
from hicache_nixl.lab.worker.setup import Setup

RELEASES = ("sglang==0.5.11", "sglang==0.5.12", "sglang==0.5.13.post1", "sglang==0.5.23")
STANDS_FOR = {"leaky": "sglang==0.5.11", "try_finally": "sglang==0.5.12"}


@pytest.fixture(scope="module")
def facts(released: Callable[[str], str]) -> pd.DataFrame:
    """A row per connector, all out of a single worker."""
    return release_facts([*FILE_PER_PIECE, *map(released, RELEASES)]).set_index("connector")


class TestReleaseFacts:
    """Per call 8 pages, keys and values apart: 16 files and 16 buffers."""

    @pytest.mark.parametrize(
        ("connector", "fds", "registrations", "besides", "half_written"),
        [
            ("leaky", 16, 32, 0, True),
            ("try_finally", 0, 32, 0, True),
            ("scoped", 0, 0, 7, False),
            ("sglang==0.5.13.post1", 0, 0, 0, True),
            ("sglang==0.5.23", 0, 0, 0, True),
        ],
    )
    def test_each_is_measured(self, facts, connector, fds, registrations, besides, half_written):
        row = facts.loc[connector]
        assert (row.fds_per_call, row.registrations_per_call) == (fds, registrations)
        assert (row.exists_of_8, row.pages_besides_a_bad_one) == (8, besides)
        assert bool(row.half_written_seen) is half_written

    @pytest.mark.parametrize(("ours", "theirs"), STANDS_FOR.items())
    def test_ours_differ_from_the_release_only_in_how_many_exist(self, facts, ours, theirs):
        assert facts.loc[theirs].drop("exists_of_8").equals(facts.loc[ours].drop("exists_of_8"))
        assert facts.loc[theirs, "exists_of_8"] == 16

    def test_the_rows_are_in_the_order_that_was_asked_for(self, facts):
        assert facts.index.tolist() == [*FILE_PER_PIECE, *RELEASES]


@pytest.fixture(scope="module")
def left(released: Callable[[str], str]) -> pd.DataFrame:
    connectors = [*FILE_PER_PIECE, *map(released, ("sglang==0.5.12", "sglang==0.5.23"))]
    return register_files_left(connectors).set_index("connector")


class TestRegisterFiles:
    def test_it_keeps_a_file_per_call_where_nothing_owns_it(self, left):
        for connector in ("leaky", "try_finally", "sglang==0.5.12"):
            assert left.loc[connector].to_dict() == {"after 1": 1, "after 10": 10, "after 100": 100}

    def test_pooled_opens_its_files_itself_so_it_has_no_number(self):
        assert register_files_left(["pooled"]).set_index("connector").loc["pooled"].isna().all()

    def test_an_owner_that_is_closed_keeps_none(self, left):
        assert left.loc["scoped"].to_dict() == {"after 1": 0, "after 10": 0, "after 100": 0}

    def test_a_release_that_has_no_such_call_has_no_number(self, left):
        assert left.loc["sglang==0.5.23"].isna().all()

    def test_a_call_that_fails_is_no_call_that_keeps_nothing(self):
        with Worker(Setup("leaky", pages=1)) as worker:
            limit = worker.call("exists", 1).open_fds + 10
            worker.request("limits", baseline_fds=None, nofile_limit=limit)
            with pytest.raises(RefusedError, match=r"register_files failed: .*\[Errno 24\]"):
                worker.request("register_files", calls=20)


class TestImportsInsideFunctions:
    def test_a_release_imports_traceback_inside_a_function(self, released):
        (place,) = imports_inside_functions(released("sglang==0.5.12"))
        assert place == "hicache_nixl.py:212"

    @pytest.mark.parametrize("lifetime", LIFETIMES)
    def test_ours_do_not(self, lifetime):
        assert imports_inside_functions(lifetime) == []

    def test_every_form_of_import_is_found_and_only_inside_functions(self, monkeypatch):
        source = """
import traceback
def one():
    import os, traceback
    def two():
        from traceback import format_exc
async def three():
    import traceback as tb
def four():
    import os
    from os import path
class Five:
    import traceback
"""
        monkeypatch.setattr(review, "_sources", lambda connector: iter([("module.py", source)]))
        assert imports_inside_functions("scoped") == ["module.py:4", "module.py:6", "module.py:8"]


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change the source that is read of a connector: what is replaced must be there."""
    original = review._sources

    def edit(*replacements: tuple[str, str]) -> None:
        def sources(connector: str) -> list[tuple[str, str]]:
            texts = dict(original(connector))
            for before, after in replacements:
                assert any(before in text for text in texts.values()), before
                texts = {name: text.replace(before, after) for name, text in texts.items()}
            return list(texts.items())

        monkeypatch.setattr(review, "_sources", sources)

    return edit


class TestOwnerOfDescriptors:
    @pytest.mark.parametrize(
        ("connector", "closed_by", "objects"),
        [
            ("try_finally", "finally", "inside"),
            ("scoped", "with", "outside"),
            ("sglang==0.5.12", "finally", "inside"),
            ("sglang==0.5.13.post1", "with", "outside"),
            ("sglang==0.5.23", "with", "outside"),
        ],
    )
    def test_what_closes_them_and_whether_objects_are_inside(self, released, connector, closed_by, objects):
        owner = owner_of_descriptors(connector if connector in FILE_PER_PIECE else released(connector))
        assert owner.pop("connector") == connector
        assert owner.pop("statements") > 0
        assert owner == {"closed_by": closed_by, "objects": objects}

    @pytest.mark.parametrize("connector", ["leaky", "sglang==0.5.11"])
    def test_where_nothing_closes_them_nothing_is_said_about_objects(self, released, connector):
        owner = owner_of_descriptors(connector if connector in FILE_PER_PIECE else released(connector))
        assert (owner["closed_by"], owner["statements"]) == ("nothing", 0)
        assert owner["objects"] == "not in a block"

    def test_the_with_contains_fewer_statements_than_the_finally(self, released):
        width = {
            name: owner_of_descriptors(released(name))["statements"]
            for name in ("try_finally", "scoped", "sglang==0.5.12", "sglang==0.5.23")
        }
        assert width["scoped"] < width["try_finally"]
        assert width["sglang==0.5.23"] < width["sglang==0.5.12"]

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("with self.file_manager.opened(", "with nullcontext("),
            ("deque(closing, maxlen=0)", "pass"),
            ("map(os.close, ", "map(str, "),
            (
                "        finally:\n            while True:",
                "        except ValueError:\n            while True:",
            ),
        ],
        ids=["no owner", "nothing is run", "nothing is closed", "no finally"],
    )
    def test_a_scoped_that_closes_nothing_is_not_said_to_close(self, edited, before, after):
        edited((before, after))
        assert owner_of_descriptors("scoped")["closed_by"] == "nothing"

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("self.file_manager.close_file(fd)", "pass"),
            ("            os.close(fd)\n            return True", "return"),
        ],
        ids=["the finally", "the function that it calls"],
    )
    def test_neither_is_a_finally(self, edited, before, after):
        edited((before, after.rjust(len(after) + 12) if after == "return" else after))
        assert owner_of_descriptors("try_finally")["closed_by"] == "nothing"
