"""Samples and what they say: the answer, the time left, and the CSV, there and back."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from support import file_size_limit

from hicache_nixl.errors import ConfigError, FileError
from hicache_nixl.lab import read_watch
from hicache_nixl.lab.statistics import Estimate
from hicache_nixl.lab.watching import (
    COLUMNS,
    COUNTS,
    KINDS,
    NAMES,
    NEEDED,
    Sample,
    Watch,
    WatchFile,
    WatchFileError,
    rate,
)

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def sample(second: float, storage: int | None = 0, limit: int | None = 1000, **kinds: int) -> Sample:
    counts = {**dict.fromkeys(KINDS, 0), "socket": 40, **kinds}
    return Sample(START + timedelta(seconds=second), float(second), storage, counts, limit)


def watched(samples: Iterable[Sample]) -> Watch:
    watch = Watch()
    for one in samples:
        watch.add(one)
    return watch


LEAKING = [sample(second, 2 * second) for second in range(60)]
FLAT = [sample(second, 64 * (second % 2)) for second in range(60)]


class TestSample:
    def test_all_descriptors_are_the_storage_files_and_every_other_kind(self):
        assert sample(0, 10, regular=3, pipe=2).counts["open_fds"] == 55
        assert sample(0, None, regular=3).counts["open_fds"] == 43

    def test_every_count_has_a_name(self):
        assert tuple(NAMES) == COUNTS


class TestJudged:
    def test_with_a_storage_folder_it_is_the_storage_files(self):
        assert watched(LEAKING).judged == "storage_fds"
        assert watched(LEAKING).found
        others_grow = watched(sample(second, 5, regular=second) for second in range(60))
        assert not others_grow.found

    def test_without_one_it_is_the_regular_files(self):
        watch = watched(sample(second, None, regular=second) for second in range(60))
        assert watch.judged == "regular"
        assert watch.found

    def test_other_kinds_that_grow_are_named_and_do_not_decide(self):
        watch = watched(sample(second, 5, socket=second, pipe=2 * second) for second in range(60))
        assert not watch.found
        assert watch.others() == "sockets by 60 per minute [60, 60]; pipes by 120 per minute [120, 120]"
        assert watched(LEAKING).others() == ""


class TestAnswer:
    def test_a_leak_has_its_rate_and_when_it_was_found(self):
        told = "leak: storage files grow by 120 per minute [120, 120], found after 11 s"
        assert watched(LEAKING).answer() == told

    def test_none_has_what_was_seen(self):
        assert watched(FLAT).answer() == "no leak: no growth of storage files that stays (now 64, at most 64)"

    @pytest.mark.parametrize("count", [0, 1, NEEDED - 1])
    def test_too_few_samples_are_not_judged(self, count):
        told = "1 sample" if count == 1 else f"{count} samples"
        assert watched(LEAKING[:count]).answer() == f"not judged: {told}, and it takes {NEEDED}"

    def test_at_the_limit_nothing_is_claimed(self):
        watch = watched(sample(second, 950, limit=1000) for second in range(60))
        assert watch.answer().startswith("not judged: at the limit no growth can be seen")

    def test_a_leak_that_was_found_on_the_way_to_the_limit_is_told(self):
        watch = watched(sample(second, min(20 * second, 960)) for second in range(90))
        assert watch.at_limit()
        assert watch.answer().startswith("leak: storage files grow by 1,200 per minute")

    def test_what_was_closed_again_is_said_to_be(self):
        watch = watched([*LEAKING, *(sample(second, 0) for second in range(60, 70))])
        assert watch.answer() == "no leak: storage files grew, and were closed again after 60 s"


class TestTimeLeft:
    def test_it_is_what_is_free_at_the_growth_of_all_descriptors(self):
        watch = watched(sample(second, second, pipe=second) for second in range(60))
        left = watch.seconds_left()
        free = 1000 - (40 + 59 + 59)
        assert (left.low, left.median, left.high) == pytest.approx((free / 2,) * 3)
        assert watch.limit_told() == "158 of 1000 (its soft RLIMIT_NOFILE); 7.0 min left [7.0 min, 7.0 min]"

    def test_its_interval_is_that_of_the_growth_turned_round(self):
        watch = watched(sample(second, 32 * (second // 7)) for second in range(70))
        grown, left = watch.growth(), watch.seconds_left()
        free = 60 * (1000 - watch.last.counts["open_fds"])
        assert (left.low, left.high) == (free / grown.high, free / grown.low)
        assert left.low < left.median < left.high

    def test_there_is_none_without_growth(self):
        assert watched(FLAT).seconds_left() is None
        assert watched(FLAT).limit_told() == "104 of 1000 (its soft RLIMIT_NOFILE)"

    def test_there_is_none_without_a_limit(self):
        watch = watched(dataclasses.replace(one, limit=None) for one in LEAKING)
        assert (watch.seconds_left(), watch.limit_told(), watch.at_limit()) == (None, "no limit", False)

    def test_at_the_limit_it_is_said(self):
        watch = watched(sample(second, min(20 * second, 960)) for second in range(90))
        assert watch.limit_told().endswith(": at the limit, where nothing more can be opened")

    def test_a_limit_that_is_raised_meanwhile_counts(self):
        watch = watched([*LEAKING[:-1], dataclasses.replace(LEAKING[-1], limit=5000)])
        assert "of 5000" in watch.limit_told()


class TestTable:
    def test_it_has_a_row_per_kind_that_was_there_all_of_them_last(self):
        table = watched(LEAKING).table()
        assert table.descriptors.tolist() == ["storage files", "sockets", "all descriptors"]
        assert table.now.tolist() == [118, 40, 158]
        assert table.per_minute.tolist() == pytest.approx([120, 0, 120])
        assert table.grows.tolist() == [True, False, True]

    def test_what_is_judged_has_a_row_even_when_there_is_none(self):
        assert watched([sample(0, 0)]).table().descriptors.tolist()[0] == "storage files"

    def test_growth_is_missing_before_there_are_enough_samples(self):
        assert watched(LEAKING[:9]).table().per_minute.isna().all()


class TestFile:
    def test_what_was_written_is_read_again(self, tmp_path):
        samples = [sample(0, 5, regular=1), sample(1.25, 7, 900, other=3)]
        with WatchFile(tmp_path / "w.csv") as file:
            for one in samples:
                file.write(one)
        table = read_watch(tmp_path / "w.csv")
        assert tuple(table.columns) == COLUMNS
        assert table.time.tolist() == [one.time for one in samples]
        assert table.seconds.tolist() == [0, 1.25]
        assert table.storage_fds.tolist() == [5, 7]
        assert table.open_fds.tolist() == [46, 50]
        assert table.limit.tolist() == [1000, 900]

    def test_no_folder_and_no_limit_are_empty_and_missing(self, tmp_path):
        with WatchFile(tmp_path / "w.csv") as file:
            file.write(sample(0, None, None))
        assert (tmp_path / "w.csv").read_text().splitlines()[1].endswith(",")
        table = read_watch(tmp_path / "w.csv")
        assert table[["storage_fds", "limit"]].isna().all(axis=None)
        assert Watch.of(table).judged == "regular"

    @pytest.mark.parametrize("samples", [LEAKING, FLAT, FLAT[:3]], ids=["leak", "none", "few"])
    def test_it_is_judged_as_it_was_live(self, tmp_path, samples):
        with WatchFile(tmp_path / "w.csv") as file:
            for one in samples:
                file.write(one)
        again, live = Watch.of(read_watch(tmp_path / "w.csv")), watched(samples)
        assert (again.answer(), again.limit_told()) == (live.answer(), live.limit_told())
        pd.testing.assert_frame_equal(again.table(), live.table())

    def test_every_sample_is_in_it_at_once(self, tmp_path):
        with WatchFile(tmp_path / "w.csv") as file:
            assert (tmp_path / "w.csv").read_text().count("\n") == 1
            file.write(sample(0))
            assert (tmp_path / "w.csv").read_text().count("\n") == 2

    def test_a_record_that_exists_is_not_written_into(self, tmp_path):
        (tmp_path / "w.csv").write_text("precious")
        with pytest.raises(WatchFileError, match=r"w\.csv exists already and is a record; name another file"):
            WatchFile(tmp_path / "w.csv")
        assert (tmp_path / "w.csv").read_text() == "precious"

    def test_a_folder_that_is_missing_is_named(self, tmp_path):
        with pytest.raises(WatchFileError, match=r"missing/w\.csv: No such file or directory"):
            WatchFile(tmp_path / "missing" / "w.csv")

    @pytest.mark.parametrize("room", [0, 1, 20])
    def test_on_a_full_disk_it_keeps_whole_samples_and_says_so(self, tmp_path, room):
        path = tmp_path / "w.csv"
        with WatchFile(path) as file:
            file.write(sample(0))
            whole = path.read_text()
            with file_size_limit(len(whole) + room), pytest.raises(FileError) as full:
                file.write(sample(1))
            assert full.value.errno == errno.EFBIG
            assert path.read_text() == whole
            file.write(sample(2))
        assert read_watch(path).seconds.tolist() == [0, 2]


GOOD = ",".join(COLUMNS) + "\n" + sample(0, 5).line() + sample(1, 7).line()
FIRST, SECOND = GOOD.splitlines()[1:]


class TestReadingWhatIsNone:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "No columns to parse"),
            ("operation,keys\nset,16\n", "no column time, seconds, open_fds"),
            (GOOD.replace("limit", "limits"), "no column limit"),
            (GOOD.splitlines()[0] + "\n", "it has no samples"),
            (GOOD.replace(",45,5,", ",,5,"), "line 2: open_fds is missing, not a whole number"),
            (GOOD.replace(",47,7,", ",many,7,"), "line 3: open_fds is 'many', not a whole number"),
            (GOOD.replace(",47,7,", ",47,7.5,"), "line 3: storage_fds is '7.5', not a whole number"),
            (GOOD.replace(",47,7,", ",47,-7,"), "line 3: storage_fds is '-7', not a whole number"),
            (GOOD.replace("1.000000,", "soon,"), "line 3: seconds is 'soon', not a number"),
            (GOOD.replace("2026-01-02T03:04:06", "yesterday"), "line 3: time is not a time"),
            (GOOD.replace("1.000000,", "0.000000,"), "seconds do not rise"),
            ("\x00\x01", "no column time"),
        ],
    )
    def test_it_is_one_line_that_names_the_file_and_what_is_wrong(self, tmp_path, text, says):
        path = tmp_path / "w.csv"
        path.write_text(text)
        with pytest.raises(WatchFileError) as refused:
            read_watch(path)
        message = str(refused.value)
        assert message.startswith(f"{path}: ")
        assert says in message
        assert len(message.splitlines()) == 1

    def test_one_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"none\.csv: No such file or directory; it takes a CSV of"):
            read_watch(tmp_path / "none.csv")

    def test_a_folder_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match="Is a directory"):
            read_watch(tmp_path)

    def test_bytes_that_are_no_text_are_refused(self, tmp_path):
        (tmp_path / "w.csv").write_bytes(Path("/bin/sh").read_bytes()[:5000])
        with pytest.raises(WatchFileError, match="it takes a CSV of hicache-nixl watch"):
            read_watch(tmp_path / "w.csv")


def test_rates_are_written_in_whole_descriptors_or_two_digits():
    assert rate(Estimate(0.034, -1.26, 12.6, 5)) == "0.034 per minute [-1.3, 13]"
