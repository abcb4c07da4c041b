"""The CSV of a watch, there and back."""

from __future__ import annotations

import errno
from pathlib import Path

import pandas as pd
import pytest
from support import file_size_limit
from test_verdict import FLAT, LEAKING, sample, watched

from hicache_nixl.errors import ConfigError, FileError
from hicache_nixl.watch import wording
from hicache_nixl.watch.recording import WatchFile, WatchFileError, read_watch
from hicache_nixl.watch.sample import COLUMNS
from hicache_nixl.watch.verdict import Watch


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
        assert (again.answer(), wording.limit(again)) == (live.answer(), wording.limit(live))
        pd.testing.assert_frame_equal(again.table(), live.table())

    def test_every_sample_is_in_it_at_once(self, tmp_path):
        with WatchFile(tmp_path / "w.csv") as file:
            assert (tmp_path / "w.csv").read_text().count("\n") == 1
            file.write(sample(0))
            assert (tmp_path / "w.csv").read_text().count("\n") == 2

    def test_a_file_that_exists_is_not_written_into(self, tmp_path):
        (tmp_path / "w.csv").write_text("precious")
        with pytest.raises(WatchFileError, match=r"w\.csv exists already; name a new file"):
            WatchFile(tmp_path / "w.csv")
        assert (tmp_path / "w.csv").read_text() == "precious"

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("folder", "is a folder"),
            ("link", "is a symbolic link to nowhere"),
            ("/dev/full", "is a device or a pipe"),
        ],
    )
    def test_what_is_no_file_is_named_as_what_it_is(self, tmp_path, name, what):
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(WatchFileError, match=f"{name} {what}; name a new file"):
            WatchFile(tmp_path / name)

    def test_one_without_a_sample_is_removed_at_the_end(self, tmp_path):
        with WatchFile(tmp_path / "w.csv") as file:
            pass
        (tmp_path / "w.csv").touch()
        file.close()
        assert (tmp_path / "w.csv").exists()  # a second close leaves alone what came since

    def test_one_whose_first_line_does_not_fit_is_refused_and_leaves_nothing(self, tmp_path):
        with file_size_limit(10), pytest.raises(WatchFileError, match=r"w\.csv: File too large; expected"):
            WatchFile(tmp_path / "w.csv")
        assert list(tmp_path.iterdir()) == []

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
            (GOOD.splitlines()[0] + "\n", "the file has no samples"),
            (GOOD.replace(",45,5,", ",,5,"), "line 2: open_fds is missing, not a whole number"),
            (GOOD.replace(",47,7,", ",many,7,"), "line 3: open_fds is 'many', not a whole number"),
            (GOOD.replace(",47,7,", ",47,7.5,"), "line 3: storage_fds is '7.5', not a whole number"),
            (GOOD.replace(",47,7,", ",47,-7,"), "line 3: storage_fds is '-7', not a whole number"),
            (GOOD.replace("1.000000,", "soon,"), "line 3: seconds is 'soon', not a number"),
            (GOOD.replace("2026-01-02T03:04:06", "yesterday"), "line 3: time is not a time"),
            (GOOD.replace("1.000000,", "0.000000,"), "seconds do not increase"),
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
        with pytest.raises(ConfigError, match=r"none\.csv: No such file or directory; expected a CSV of"):
            read_watch(tmp_path / "none.csv")

    def test_a_folder_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match="Is a directory"):
            read_watch(tmp_path)

    def test_bytes_that_are_no_text_are_refused(self, tmp_path):
        (tmp_path / "w.csv").write_bytes(Path("/bin/sh").read_bytes()[:5000])
        with pytest.raises(WatchFileError, match="expected a CSV of hicache-nixl watch"):
            read_watch(tmp_path / "w.csv")
