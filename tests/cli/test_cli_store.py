"""The command store: a table or JSON, damage by name, exit codes, and a bar in a terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pexpect
import pytest
from small_store import PAGE, SmallStore, damage, everything_in
from test_cli import Run
from test_cli import run as run_in_this_process

run = run_in_this_process  # the fixture that runs a command line
COMMAND = [sys.executable, "-c", "from hicache_nixl.cli import main; main()", "store"]


@pytest.fixture
def stored(folder: Path) -> Path:
    """The folder of a store with 20 pages, of which 12 were asked for, and 4 more that are not there."""
    with SmallStore(folder) as store:
        store.set(range(20))
        store.get(range(8, 24))
    return folder


class TestTable:
    def test_it_has_pages_hits_segments_and_spaces(self, run: Run, stored):
        answer = run(f"store {stored}")
        assert (answer.code, answer.err) == (0, "")
        assert answer.out.startswith(f"{stored}/pooled: format 1, no process has it open\n")
        for line in (
            "pages 20",
            "stored 120 KiB of 8.0 MiB",
            "segments 1 of 8, 1.0 MiB each",
            "gets 1, 12 hits (75 %) and 4 misses, 72.0 KiB",
            "sets 1, 20 pages, 120 KiB",
        ):
            assert line in answer.prose
        assert answer.out.rstrip().endswith("20  idle")

    def test_it_says_who_uses_the_store(self, run: Run, folder):
        with SmallStore(folder) as store:
            store.set(range(3))
            answer = run(f"store {folder}/pooled")
        assert ": format 1, in use\n" in answer.out
        assert answer.out.rstrip().endswith("3  being written")

    def test_an_empty_store_has_no_segments(self, run: Run, folder):
        with SmallStore(folder):
            pass
        answer = run(f"store {folder}")
        assert answer.code == 0
        assert "gets 0, 0 hits and 0 misses, 0 bytes" in answer.prose
        assert "generation" not in answer.out

    def test_json_has_the_same(self, run: Run, stored):
        found = json.loads(run(f"store {stored} --json").out)
        assert (found["pages"], found["stored"]) == (20, 20 * PAGE)
        assert found["counters"]["pages_found"] == 12
        assert found["segments"][0]["pages"] == 20
        assert "verified" not in found


class TestVerify:
    def test_pages_that_are_right_end_with_0(self, run: Run, stored):
        before = everything_in(stored)
        answer = run(f"store {stored} --verify")
        assert answer.code == 0
        assert answer.out.endswith("20 pages with 120 KiB were read, 0 are damaged\n")
        assert everything_in(stored) == before

    def test_damaged_pages_are_named_and_end_with_3(self, run: Run, stored):
        keys = damage(stored, 2)
        answer = run(f"store {stored} --verify")
        assert answer.code == 3
        for number, key in enumerate(keys):
            place = f"segment 0, offset {number * PAGE // 2}"
            assert f"damaged: {key}, {place}: {PAGE} bytes, other bytes than were stored\n" in answer.out
        assert answer.out.endswith("2 are damaged; they are not removed: --repair does that\n")

    def test_a_damaged_index_is_told_and_ends_with_3(self, run: Run, stored):
        (index,) = stored.glob("pooled/index.*")
        content = bytearray(index.read_bytes())
        rows = np.frombuffer(content, np.uint64)[512:]  # behind the header: words and rows
        for checksum in np.flatnonzero(rows == PAGE)[:3] + 1:  # the checksum follows the size
            rows[checksum] ^= np.uint64(1)
        index.write_bytes(content)
        answer = run(f"store {stored} --verify")
        assert answer.code == 3
        assert answer.out.endswith(
            "17 pages with 102 KiB were read, 0 are damaged\n"
            "3 rows of the index are damaged: their pages are missing until they are stored again\n"
        )
        assert json.loads(run(f"store {stored} --verify --json").out)["verified"]["damaged_rows"] == 3

    @pytest.mark.parametrize(
        ("lost", "says"),
        [
            ("locks", "makes it again, and keeps the pages"),
            ("state", "its pages are lost; a server that opens it starts empty"),
        ],
    )
    def test_a_store_without_one_of_its_files_says_what_a_server_does(self, run: Run, stored, lost, says):
        (stored / "pooled" / lost).unlink()
        answer = run(f"store {stored}")
        assert answer.code == 2
        assert says in answer.err

    def test_many_damaged_pages_are_named_in_json(self, run: Run, folder):
        with SmallStore(folder) as store:
            store.set(range(30))
        damage(folder, 25)
        assert "and 5 more, in --json\n" in run(f"store {folder} --verify").out
        answer = run(f"store {folder} --verify --json")
        assert answer.code == 3
        assert len(json.loads(answer.out)["verified"]["damaged"]) == 25

    def test_repair_removes_them(self, run: Run, stored):
        damage(stored, 2)
        answer = run(f"store {stored} --verify --repair")
        assert answer.code == 3
        assert answer.out.endswith("2 are damaged; they are removed from the index\n")
        assert "pages 18" in answer.prose
        assert run(f"store {stored} --verify").code == 0

    def test_a_bar_shows_the_time_left_in_a_terminal(self, stored):
        shown = pexpect.spawn(
            COMMAND[0], [*COMMAND[1:], str(stored), "--verify"], timeout=60, encoding="utf-8"
        )
        shown.expect(r"reading pages.*120 KiB of 120 KiB")
        shown.expect("left")
        shown.expect("0 are damaged")
        shown.expect(pexpect.EOF)


class TestWhatCannotWork:
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("store {tmp}/missing", "there is no folder {tmp}/missing; expected a storage folder of lifetime pooled"),
            ("store {tmp}/file", "{tmp}/file is not a folder; expected a storage folder of lifetime pooled"),
            ("store {tmp}", "{tmp} has no store of lifetime pooled; expected its storage folder"),
            ("store ''", "the folder is an empty path; give the storage folder"),
            ("store {tmp} --repair", "--repair has no effect without --verify; give both"),
        ],
    )  # fmt: skip
    def test_it_is_one_line_and_ends_with_2(self, run: Run, tmp_path, line, says):
        (tmp_path / "file").touch()
        answer = run(line.format(tmp=tmp_path))
        assert (answer.code, answer.out) == (2, "")
        assert answer.error() == says.format(tmp=tmp_path)

    def test_a_newer_format(self, run: Run, stored):
        with (stored / "pooled" / "state").open("r+b") as file:
            file.seek(8)
            file.write((7).to_bytes(8, "little"))
        answer = run(f"store {stored}")
        assert answer.code == 2
        assert "the store has format 7, and this version of hicache-nixl knows up to 1" in answer.error()

    def test_a_store_of_another_user(self, run: Run, stored, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: 4321)
        answer = run(f"store {stored}")
        assert answer.code == 2
        assert "and this process is user 4321; run it as that user" in answer.error()


class TestCompact:
    def test_it_says_what_was_freed_and_moved(self, run: Run, folder):
        with SmallStore(folder) as store:
            store.set(range(128))
            store.set(range(100))
            store.set(range(100))
        answer = run(f"store {folder} --compact --verify")
        assert (answer.code, answer.err) == (0, "")
        assert re.search(
            r"1 segments were freed, \d+ pages with .* moved, 0 damaged pages removed\n$", answer.out
        )
        assert "pages 128" in answer.prose

    def test_it_says_why_a_segment_is_kept(self, run: Run, folder):
        with SmallStore(folder) as store:
            for _ in range(3):
                store.set(range(50))
            answer = run(f"store {folder} --compact")
            kept = json.loads(run(f"store {folder} --compact --json").out)["compacted"]["kept"]
        assert answer.out.endswith("a segment that is mostly dead was kept: a server writes to it\n")
        assert kept == "a server writes to it"
