"""Schedules, and what they must cost in descriptors."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hicache_nixl.errors import HiCacheNixlError
from hicache_nixl.lab.worker.schedule import (
    OPERATIONS,
    RECORDED_BASELINE,
    RECORDED_CALLS,
    Call,
    Schedule,
    ScheduleError,
    files_per_key,
    predicted_fds,
    recorded_log,
    splits,
)

# Every schedule begins with a set; what follows is free.
CALLS = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(1, 300)), max_size=30)
SCHEDULES = CALLS.map(lambda rest: Schedule.of([("set", 1), *rest]))
PER_KEY = st.sampled_from([1, 2])


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "server.csv"
    path.write_text(text)
    return path


class TestReadySchedules:
    def test_pr24671_begins_with_16_keys(self):
        assert Schedule.pr24671().calls[0] == Call("set", 16)

    def test_pr24671_goes_on_with_592_keys_in_calls_of_16_and_128_the_last_of_128(self):
        middle = Schedule.pr24671().calls[1:10]
        assert sum(call.keys for call in middle) == 592
        assert {call.keys for call in middle} == {16, 128}
        assert {call.operation for call in middle} == {"set"}
        assert middle[-1].keys == 128

    def test_pr24671_ends_with_11_calls_of_128_the_last_a_get(self):
        last = Schedule.pr24671().calls[10:]
        assert [call.keys for call in last] == [128] * 11
        assert [call.operation for call in last] == ["set"] * 10 + ["get"]

    def test_single_call_is_16_keys_and_then_592_in_one_set(self):
        assert Schedule.single_call().calls == (Call("set", 16), Call("set", 592))

    def test_steady_takes_set_and_get_in_turn(self):
        assert list(Schedule.steady(3, 8)) == [Call("set", 8), Call("get", 8), Call("set", 8)]

    def test_steady_takes_the_operations_that_it_is_given(self):
        wanted = ("set", "exists", "get")
        assert [call.operation for call in Schedule.steady(5, 1, wanted)] == [*wanted, "set", "exists"]


class TestCalls:
    def test_a_sum_of_schedules_is_the_calls_of_both(self):
        both = Schedule.single_call() + Schedule.steady(2, 4)
        assert both.calls == Schedule.single_call().calls + Schedule.steady(2, 4).calls
        assert both.name == "single_call + steady"

    def test_length_total_and_largest_count_calls_and_keys(self):
        schedule = Schedule.of([("set", 5), ("get", 9), ("set", 2)])
        assert (len(schedule), schedule.total("set"), schedule.total("get"), schedule.largest) == (3, 7, 9, 9)

    def test_a_schedule_without_calls_has_no_largest(self):
        assert Schedule(()).largest == 0

    @pytest.mark.parametrize(
        ("calls", "before"),
        [
            ([("get", 4), ("set", 4)], 4),
            ([("exists", 9), ("get", 4), ("get", 7), ("set", 1), ("get", 50)], 7),
            ([("set", 4), ("get", 8)], 0),
            ([("exists", 4)], 0),
        ],
    )
    def test_what_gets_before_any_set_ask_for_is_stored_before(self, calls, before):
        assert Schedule.of(calls).stored_before == before

    def test_more_calls_than_any_server_makes_are_refused(self):
        with pytest.raises(ScheduleError, match="1000001 calls; expected at most 1000000"):
            Schedule((Call("set", 1),) * 1_000_001)

    def test_a_lookup_may_come_first_and_needs_no_room_in_the_pool(self):
        assert Schedule.of([("exists", 305), ("set", 4)]).largest == 4

    def test_an_unknown_operation_is_refused_with_those_that_are_known(self):
        with pytest.raises(ScheduleError, match=r"call 2: operation 'delete' .* set, get, exists"):
            Schedule.of([("set", 4), ("delete", 4)])

    @pytest.mark.parametrize("keys", [0, -3])
    def test_fewer_keys_than_one_are_refused(self, keys):
        with pytest.raises(ScheduleError, match=f"call 2: {keys} keys"):
            Schedule.of([("set", 4), ("set", keys)])

    def test_the_error_is_one_of_the_package_and_a_value_error(self):
        assert issubclass(ScheduleError, HiCacheNixlError)
        assert issubclass(ScheduleError, ValueError)


class TestFromCsv:
    def test_reads_operation_and_keys_and_ignores_other_columns(self, tmp_path):
        path = csv_file(tmp_path, "time,keys,open_fds,operation\n08:46,16,167,set\n08:47,128,1351,get\n")
        schedule = Schedule.from_csv(path)
        assert schedule.calls == (Call("set", 16), Call("get", 128))
        assert schedule.name == "server"

    def test_takes_the_names_that_a_server_logs(self, tmp_path):
        lines = "batch_set_v1,16\nbatch_exists,3\nbatch_get_v1,8\n set ,2\n"
        schedule = Schedule.from_csv(csv_file(tmp_path, f"operation,keys\n{lines}"))
        assert [call.operation for call in schedule] == ["set", "exists", "get", "set"]

    def test_reads_the_log_of_the_pr(self):
        from hicache_nixl.lab.worker.schedule import RECORDED_LOG
        from hicache_nixl.resources import resource

        calls = Schedule.from_csv(resource(RECORDED_LOG)).calls
        assert calls == (Call("set", 16), Call("set", 128), Call("get", 128))

    @pytest.mark.parametrize("bad", ["many", "1.5", "", "inf", "nan", "0", "-3", "1e30"])
    def test_a_row_without_a_whole_number_is_named_by_its_line(self, tmp_path, bad):
        path = csv_file(tmp_path, f"operation,keys\nset,16\nget,{bad}\nset,1\n")
        with pytest.raises(
            ScheduleError, match=r"server\.csv, line 3: keys is .*; expected a whole number from 1"
        ):
            Schedule.from_csv(path)

    def test_blank_lines_count_as_lines(self, tmp_path):
        path = csv_file(tmp_path, "operation,keys\nset,16\n\n\nget,many\n")
        with pytest.raises(ScheduleError, match="line 5: keys is 'many'"):
            Schedule.from_csv(path)

    def test_an_operation_that_cannot_be_replayed_is_named_by_its_line(self, tmp_path):
        reason = "line 3: operation 'delete' is unknown; expected one of set, get, exists, or SGLang's batch_set_v1"
        with pytest.raises(ScheduleError, match=reason):
            Schedule.from_csv(csv_file(tmp_path, "operation,keys\nset,16\ndelete,4\nset,none\n"))

    def test_a_missing_column_is_named_with_those_that_are_there(self, tmp_path):
        path = csv_file(tmp_path, "time,keys\n08:46,16\n")
        with pytest.raises(
            ScheduleError,
            match="no column operation in the first line, which has time, keys; expected operation,keys separated by",
        ):
            Schedule.from_csv(path)

    @pytest.mark.parametrize(
        ("text", "reason"), [("", "the file is empty"), ("operation,keys\n", "it has no calls")]
    )
    def test_a_log_without_calls_is_refused(self, tmp_path, text, reason):
        with pytest.raises(ScheduleError, match=rf"server\.csv: {reason}"):
            Schedule.from_csv(csv_file(tmp_path, text))

    def test_a_file_that_is_missing_is_named(self, tmp_path):
        with pytest.raises(ScheduleError, match=r"missing\.csv.*No such file"):
            Schedule.from_csv(tmp_path / "missing.csv")

    def test_a_folder_is_no_log(self, tmp_path):
        with pytest.raises(ScheduleError, match=str(tmp_path)):
            Schedule.from_csv(tmp_path)

    def test_bytes_that_are_no_text_are_no_log(self, tmp_path):
        (tmp_path / "server.csv").write_bytes(b"\xff\xfe\x00\x81\n\x00")
        with pytest.raises(ScheduleError, match=r"server\.csv: not a text file in UTF-8"):
            Schedule.from_csv(tmp_path / "server.csv")


class TestRecordedLog:
    def test_the_differences_are_1184_and_2816(self):
        assert recorded_log().open_fds.diff().tolist()[1:] == [1184, 2816]

    def test_the_three_lines_follow_calls_of_their_kind_and_size(self):
        log, calls = recorded_log(), Schedule.pr24671().calls
        assert tuple(log.call) == RECORDED_CALLS
        for row in log.itertuples():
            assert row.operation == f"batch_{calls[row.call - 1].operation}_v1"
            assert row.keys == calls[row.call - 1].keys

    def test_two_per_key_on_135_meet_all_three_lines(self):
        open_fds, _ = predicted_fds(Schedule.pr24671(), 2, RECORDED_BASELINE)
        assert [open_fds[call - 1] for call in RECORDED_CALLS] == recorded_log().open_fds.tolist()
        assert [open_fds[call - 1] for call in RECORDED_CALLS] == [167, 1351, 4167]


class TestPrediction:
    @pytest.mark.parametrize(
        ("layout", "mla", "files"),
        [
            ("page_first", False, 2),
            ("page_first_direct", False, 2),
            ("layer_first", False, 1),
            ("page_first", True, 1),
            ("page_first_direct", True, 1),
            ("layer_first", True, 1),
        ],
    )
    def test_only_a_zero_copy_multi_head_page_is_two_files(self, layout, mla, files):
        assert files_per_key(layout, mla) == files

    def test_an_exists_keeps_nothing(self):
        schedule = Schedule.of([("set", 4), ("exists", 100), ("get", 4)])
        assert predicted_fds(schedule, 2, 10) == ([18, 18, 26], None)

    def test_a_call_that_just_fits_succeeds(self):
        assert predicted_fds(Schedule.of([("set", 4)]), 2, 10, limit=18) == ([18], None)

    def test_a_call_that_is_one_too_large_fails_and_leaves_nothing(self):
        assert predicted_fds(Schedule.of([("set", 4)]), 2, 10, limit=17) == ([10], 1)

    def test_a_smaller_call_may_still_fit_after_one_that_failed(self):
        schedule = Schedule.of([("set", 4), ("set", 8), ("set", 1), ("set", 8)])
        assert predicted_fds(schedule, 2, 0, limit=12) == ([8, 8, 10, 10], 2)

    def test_an_exists_at_the_limit_does_not_fail(self):
        schedule = Schedule.of([("set", 4), ("exists", 4), ("get", 1)])
        assert predicted_fds(schedule, 2, 0, limit=8) == ([8, 8, 8], 3)

    @given(SCHEDULES, PER_KEY, st.integers(0, 200))
    def test_without_a_limit_it_is_the_baseline_and_the_sum(self, schedule, per_key, baseline):
        open_fds, first_failure = predicted_fds(schedule, per_key, baseline)
        kept = [0 if call.operation == "exists" else per_key * call.keys for call in schedule]
        assert open_fds == list(accumulate(kept, initial=baseline))[1:]
        assert first_failure is None

    @given(SCHEDULES, PER_KEY, st.integers(0, 200), st.integers(0, 3000))
    def test_it_never_passes_the_limit_and_never_falls(self, schedule, per_key, baseline, room):
        open_fds, _ = predicted_fds(schedule, per_key, baseline, baseline + room)
        assert len(open_fds) == len(schedule)
        assert all(before <= after for before, after in pairwise([baseline, *open_fds]))
        assert max(open_fds) <= baseline + room

    @given(SCHEDULES, PER_KEY, st.integers(0, 3000))
    def test_the_first_failure_is_where_the_limit_first_shows(self, schedule, per_key, room):
        free, _ = predicted_fds(schedule, per_key)
        limited, first_failure = predicted_fds(schedule, per_key, limit=room)
        differing = [
            number for number, pair in enumerate(zip(free, limited, strict=True), 1) if len({*pair}) > 1
        ]
        assert first_failure == (differing[0] if differing else None)


class TestSplits:
    def test_592_keys_have_five_ways(self):
        ways = splits(592, (16, 128))
        assert ways[["calls of 16", "calls of 128"]].values.tolist() == [
            [37, 0],
            [29, 1],
            [21, 2],
            [13, 3],
            [5, 4],
        ]

    def test_the_way_of_the_schedule_is_one_of_them(self):
        middle = Schedule.pr24671().calls[1:10]
        counts = [sum(call.keys == size for call in middle) for size in (16, 128)]
        assert [*counts, len(middle)] in splits(592, (16, 128)).values.tolist()

    @given(st.integers(1, 400), st.lists(st.integers(1, 130), min_size=1, max_size=2, unique=True))
    def test_every_row_adds_up(self, total, sizes):
        ways = splits(total, sizes)
        for row in ways.itertuples(index=False):
            assert sum(count * size for count, size in zip(row[:-1], sizes, strict=True)) == total
            assert row[-1] == sum(row[:-1])

    def test_a_number_that_cannot_be_made_has_no_way(self):
        assert len(splits(15, (16, 128))) == 0


class TestFromLog:
    """The lines are those of a real server, 0.5.11."""

    LINE = (
        "[2026-11-26 01:57:04{rank}] HiCacheNixl batch_{operation}_v1 transferred: {keys} keys (pages), 2048 "
        "host_indices, 2097152 bytes, total time: 31.198 ms, effective bandwidth: 64.11 MB/s\n"
    )

    def log(self, folder: Path, *calls: tuple[str, str, int]) -> Path:
        lines = [
            self.LINE.format(rank=rank, operation=operation, keys=keys) for rank, operation, keys in calls
        ]
        path = folder / "server.log"
        path.write_text("[2026-01-02 03:04:05] server_args=ServerArgs(a=1, operation=2)\n" + "".join(lines))
        return path

    def test_the_debug_lines_of_the_backend_are_its_calls(self, tmp_path):
        schedule = Schedule.from_file(self.log(tmp_path, ("", "get", 16), ("", "set", 128)))
        assert schedule.calls == (Call("get", 16), Call("set", 128))
        assert schedule.name == "server"

    def test_of_several_ranks_it_is_one_since_each_is_a_process(self, tmp_path):
        calls = [(f" DP0 TP{rank}", "set", keys) for keys in (16, 32) for rank in (1, 0)]
        assert Schedule.from_file(self.log(tmp_path, *calls)).calls == (Call("set", 16), Call("set", 32))

    def test_bytes_that_are_no_text_do_not_end_it(self, tmp_path):
        path = self.log(tmp_path, ("", "set", 16))
        path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
        assert len(Schedule.from_file(path)) == 1

    def test_a_log_without_calls_says_how_to_get_them(self, tmp_path):
        with pytest.raises(ScheduleError, match=r"server\.log: no line has a call, .* --log-level debug"):
            Schedule.from_file(self.log(tmp_path))

    def test_a_csv_file_is_known_by_its_first_line_or_its_name(self, tmp_path):
        (tmp_path / "calls.txt").write_text("time,operation,keys\n1,set,3\n")
        assert Schedule.from_file(tmp_path / "calls.txt").calls == (Call("set", 3),)
        with pytest.raises(ScheduleError, match="no column keys"):
            Schedule.from_file(csv_file(tmp_path, "operation,pages\nset,3\n"))
