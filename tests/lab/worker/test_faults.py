"""A step that is made to fail: which one, how, and what is seen of the call; no process, no NIXL."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hicache_nixl.errors import HiCacheNixlError
from hicache_nixl.lab.worker.faults import KINDS, STEPS, Fault, watched


class Agent:
    """The methods of NIXL's agent that make up the steps, answering what it would."""

    def __init__(self, states: Iterator[str] | None = None):
        self.states = states

    def register_memory(self, regions: Any) -> Any:
        return regions

    def get_reg_descs(self, regions: Any) -> Any:
        return regions

    def get_xfer_descs(self, regions: Any) -> Any:
        return regions

    def initialize_xfer(self) -> str:
        return "handle"

    def transfer(self, handle: str) -> str:
        return "PROC"

    def check_xfer_state(self, handle: str) -> str:
        return next(self.states)

    def release_xfer_handle(self, handle: str) -> None: ...


class TestFault:
    def test_an_unknown_step_names_the_known_ones(self):
        with pytest.raises(HiCacheNixlError) as caught:
            Fault("flood", 1, "error")
        assert str(caught.value) == f"step 'flood' is unknown; expected one of {', '.join(STEPS)}"

    def test_an_unknown_kind_names_the_known_ones(self):
        with pytest.raises(HiCacheNixlError) as caught:
            Fault("open", 1, "fire")
        assert str(caught.value) == f"kind 'fire' is unknown; expected one of {', '.join(KINDS)}"

    def test_it_strikes_its_own_step_at_its_own_time(self):
        fault = Fault("register", 2, "error")
        assert [fault.strikes("register", count) for count in (1, 2, 3)] == [False, True, False]
        assert not fault.strikes("post", 2)

    def test_initialize_fails_again_since_sglang_tries_again(self):
        fault = Fault("initialize", 2, "error")
        assert [fault.strikes("initialize", count) for count in (1, 2, 3)] == [False, True, True]


class TestWatched:
    @pytest.mark.parametrize(
        ("step", "call"),
        [
            ("register", lambda agent: agent.register_memory([1])),
            ("initialize", lambda agent: agent.initialize_xfer()),
            ("post", lambda agent: agent.transfer("handle")),
        ],
    )
    def test_an_error_is_nixls_exception_and_comes_in_place_of_the_call(self, tmp_path, step, call):
        with watched(Agent, str(tmp_path), Fault(step, 2, "error")) as seen:
            call(Agent())
            with pytest.raises(RuntimeError, match="in place of NIXL's answer"):
                call(Agent())
        assert seen.fired
        assert seen.steps[step] == 2

    def test_a_refused_descriptor_list_is_none_whichever_method_makes_it(self, tmp_path):
        with watched(Agent, str(tmp_path), Fault("descriptor list", 2, "error")) as seen:
            assert Agent().get_reg_descs([1]) == [1]
            assert Agent().get_xfer_descs([1]) is None
            assert Agent().get_xfer_descs([1]) == [1]
        assert seen.steps["descriptor list"] == 3

    def test_a_poll_answers_err_only_when_nothing_is_in_flight(self, tmp_path):
        states = iter(["PROC", "PROC", "DONE"])
        with watched(Agent, str(tmp_path), Fault("poll", 1, "error")):
            assert Agent(states).check_xfer_state("handle") == "ERR"
        assert list(states) == []

    def test_an_open_fails_with_emfile_and_only_below_the_folder(self, tmp_path):
        with watched(Agent, str(tmp_path), Fault("open", 1, "error")) as seen:
            os.close(os.open(os.devnull, os.O_RDONLY))
            assert not seen.fired
            with pytest.raises(OSError, match="Too many open files") as caught:
                os.open(tmp_path / "page", os.O_CREAT)
        assert caught.value.errno == errno.EMFILE
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("inside", "opens"), [(True, 1), (False, 0)], ids=["inside", "elsewhere"])
    def test_an_open_relative_to_the_folder_is_below_it(self, tmp_path, inside, opens):
        directory = os.open(tmp_path if inside else tmp_path.parent, os.O_RDONLY)
        with watched(Agent, str(tmp_path)) as seen:
            os.close(os.open(".", os.O_RDONLY, dir_fd=directory))
        os.close(directory)
        assert seen.steps["open"] == sum(seen.closes.values()) == opens

    @pytest.mark.parametrize(
        ("kind", "error"), [("exception", ZeroDivisionError), ("interrupt", KeyboardInterrupt)]
    )
    @pytest.mark.parametrize("step", ["register", "post"])
    def test_the_other_kinds_are_raised_at_any_step(self, tmp_path, step, kind, error):
        call = {"register": lambda: Agent().register_memory([1]), "post": lambda: Agent().transfer("handle")}
        with watched(Agent, str(tmp_path), Fault(step, 1, kind)), pytest.raises(error):
            call[step]()

    def test_handles_that_were_made_and_not_released_are_counted(self, tmp_path):
        with watched(Agent, str(tmp_path)) as seen:
            handles = [Agent().initialize_xfer() for _ in range(3)]
            Agent().release_xfer_handle(handles[0])
        assert seen.as_columns()["handles_left"] == 2

    def test_a_handle_that_could_not_be_made_is_none(self, tmp_path):
        fault = Fault("initialize", 1, "exception")
        with watched(Agent, str(tmp_path), fault) as seen, pytest.raises(ZeroDivisionError):
            Agent().initialize_xfer()
        assert seen.as_columns()["handles_left"] == 0

    def test_a_call_without_a_fault_is_counted_step_by_step(self, tmp_path):
        with watched(Agent, str(tmp_path)) as seen:
            Agent().register_memory(Agent().get_reg_descs([1]))
            os.close(os.open(tmp_path / "page", os.O_CREAT))
        assert seen.as_columns() == {
            "steps": {"descriptor list": 1, "register": 1, "open": 1},
            "handles_left": 0,
            "most_closes": 1,
            "fired": False,
        }

    def test_afterwards_everything_is_as_it_was(self, tmp_path):
        before = dict(vars(Agent)), os.open, os.close
        with watched(Agent, str(tmp_path), Fault("open", 1, "error")):
            assert os.open is not before[1]
        assert (dict(vars(Agent)), os.open, os.close) == before


class TestCloses:
    """How often one descriptor below the folder is closed; its number alone says nothing."""

    def opened(self, folder: Path) -> int:
        return os.open(folder / "page", os.O_CREAT)

    def test_a_second_close_of_the_same_descriptor_is_seen(self, tmp_path):
        with watched(Agent, str(tmp_path)) as seen:
            fd = self.opened(tmp_path)
            os.close(fd)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.close(fd)
        assert seen.as_columns()["most_closes"] == 2

    def test_a_number_that_is_taken_again_is_another_descriptor(self, tmp_path):
        with watched(Agent, str(tmp_path)) as seen:
            for _ in range(3):
                os.close(self.opened(tmp_path))
        assert seen.closes == {1: 3}

    def test_a_number_that_something_else_takes_is_not_closed_twice(self, tmp_path):
        with watched(Agent, str(tmp_path)) as seen:
            fd = self.opened(tmp_path)
            os.close(fd)
            other = os.open(os.devnull, os.O_RDONLY)
            os.close(other)
        assert other == fd
        assert seen.closes == {1: 1}

    def test_one_that_stays_open_is_closed_zero_times(self, tmp_path):
        with watched(Agent, str(tmp_path)) as seen:
            fd = self.opened(tmp_path)
        os.close(fd)
        assert seen.closes == {0: 1}
