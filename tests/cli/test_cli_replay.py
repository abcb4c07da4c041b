"""hicache-nixl replay: the summary, every call, files, JSON, exit codes, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
from test_cli import run as run_in_this_process
from test_cli import shown

from hicache_nixl.lab.experiments.replay import COLUMNS
from hicache_nixl.lab.worker.client import Worker

run = run_in_this_process  # the fixture that runs a command line
SMALL = "--page-bytes 4096 --baseline-fds 135"


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a worker is started."""
    monkeypatch.setattr(Worker, "_start", lambda self: pytest.fail("a process was started"))


def cells(out: str) -> dict[str, list[str]]:
    """Return the cells of the summary's rows, by heading."""
    headings = ("descriptors", "registrations", "failed", "first", "median")
    lines = out.splitlines()
    connectors = len(next(line for line in lines if line.startswith("  ") and line.strip()).split())
    rows = [words for line in lines if (words := line.split()) and words[0] in headings]
    return {" ".join(words[:-connectors]): words[-connectors:] for words in rows}


class TestSummary:
    def test_one_connector(self, run, tmp_path):
        """592 keys in one call lead to the count of the PR's log."""
        (tmp_path / "disk").mkdir()
        answer = run(f"replay single_call {SMALL} --queue posix_aio --storage-dir {tmp_path}/disk")
        assert (answer.code, answer.err) == (0, "")
        assert answer.out.startswith(
            "single_call: 2 calls, 608 keys, pages of 4096 bytes, page_first on posix_aio; "
            "135 descriptors are open before call 1\n"
        )
        found = cells(answer.out)
        assert found["descriptors before"] == ["135"]
        assert found["descriptors at end"] == ["1351"]
        assert found["descriptors per key"] == ["2"]
        assert found["failed calls"] == ["0"]
        assert float(found["median set, ms"][0]) > 0
        assert found["median get, ms"] == ["-"]
        assert list((tmp_path / "disk").iterdir()) == []

    def test_several_connectors_stand_side_by_side(self, run, tmp_path):
        answer = run(
            f"replay steady --calls 2 --keys 4 {SMALL} --connector leaky --connector scoped --connector leaky "
            f"--connector pooled --csv {tmp_path}/table.csv"
        )
        assert answer.code == 0
        found = cells(answer.out)
        assert found["descriptors at end"] == ["151", "135", "135"]
        assert found["registrations at end"][:2] == ["32", "1"]
        table = pd.read_csv(tmp_path / "table.csv")
        assert table.connector.tolist() == ["leaky"] * 2 + ["scoped"] * 2 + ["pooled"] * 2
        assert list(table.columns) == ["connector", *COLUMNS]

    def test_all_shows_every_call_too(self, run):
        answer = run(f"replay single_call {SMALL} --all")
        rows = [words for line in answer.out.splitlines() if (words := line.split()) and words[0].isdigit()]
        assert [words[:4] for words in rows] == [["1", "set", "16", "32"], ["2", "set", "592", "1184"]]

    def test_without_all_no_call_is_shown(self, run):
        answer = run(f"replay steady --calls 2 --keys 1 {SMALL}")
        assert [line for line in answer.out.splitlines() if line.split()[:1] == ["1"]] == []

    def test_one_that_cannot_be_replayed_does_not_hide_the_others(self, run):
        answer = run(f"replay steady --calls 2 --keys 1 {SMALL} --connector scoped --connector sglang==0.0.1")
        assert answer.code == 1
        assert cells(answer.out)["descriptors at end"] == ["135"]
        assert "sglang==0.0.1 was not replayed: " in answer.err


class TestFailedCalls:
    def test_they_end_with_3_and_the_first_one_is_named(self, run, tmp_path):
        (tmp_path / "server.csv").write_text(
            "time,operation,keys,open_fds\n"
            "08:46,batch_set_v1,16,167\n08:47,batch_get_v1,16,199\n08:49,batch_set_v1,128,455\n"
        )
        answer = run(
            f"replay {tmp_path}/server.csv --model qwen2.5-32b --layers 1 --page-size 4 "
            f"--baseline-fds 135 --nofile-limit 300 --csv {tmp_path}/table.csv"
        )
        assert answer.code == 3
        assert "server: 3 calls, 160 keys, pages of 16384 bytes" in answer.prose
        table = pd.read_csv(tmp_path / "table.csv")
        assert table.bytes.tolist() == [16 * 16384, 16 * 16384, 0]
        assert table.open_fds.tolist() == [167, 199, 199]
        first = (
            "leaky: call 3, a set, is the first that failed: Too many open files; 0 of 128 pages are right"
        )
        assert first in answer.prose
        assert cells(answer.out)["descriptors per key"] == ["2"]


class TestLogThatBeginsWithAGet:
    @pytest.mark.parametrize(("connector", "counts"), [("leaky", [167, 183]), ("scoped", [135, 135])])
    def test_its_pages_are_stored_beforehand_and_not_counted(self, run, tmp_path, connector, counts):
        (tmp_path / "rotated.csv").write_text("operation,keys\nget,16\nset,8\n")
        answer = run(f"replay {tmp_path}/rotated.csv {SMALL} --connector {connector} --csv {tmp_path}/t.csv")
        assert answer.code == 0
        assert "2 calls, 24 keys" in answer.prose
        assert "135 descriptors are open before call 1" in answer.prose
        table = pd.read_csv(tmp_path / "t.csv")
        assert table.open_fds.tolist() == counts
        assert table.pages_ok.tolist() == [16, 8]

    def test_also_where_the_pages_are_more_than_the_limit_of_descriptors(self, run, tmp_path):
        (tmp_path / "rotated.csv").write_text("operation,keys\nget,300\n")
        assert run(f"replay {tmp_path}/rotated.csv {SMALL} --connector leaky --nofile-limit 400").code == 3


class TestFiles:
    def test_the_figure_is_a_picture_that_says_what_it_shows(self, run, tmp_path):
        answer = run(f"replay steady --calls 2 --keys 4 {SMALL} --png {tmp_path}/fds.png")
        assert answer.code == 0
        assert matplotlib.image.imread(tmp_path / "fds.png").shape[1] > 800
        assert b"with leaky the count rises from 135 to 151" in (tmp_path / "fds.png").read_bytes()

    @pytest.mark.parametrize(("option", "suffix"), [("--csv", "csv"), ("--png", "png"), ("--html", "html")])
    def test_a_file_that_exists_is_not_overwritten(self, run, no_process, tmp_path, option, suffix):
        there = tmp_path / f"there.{suffix}"
        there.write_text("precious")
        answer = run(f"replay {option} {there}")
        assert answer.code == 2
        assert "exists already" in answer.error()
        assert there.read_text() == "precious"


class TestJson:
    def test_it_is_one_object_and_nothing_else(self, run):
        answer = run(f"replay steady --calls 2 --keys 4 {SMALL} --json --connector leaky --connector scoped")
        assert (answer.code, answer.err) == (0, "")
        result = json.loads(answer.out)
        about = {name: value for name, value in result.items() if name != "connectors"}
        assert about == {
            "schedule": "steady",
            "calls": 2,
            "keys": 8,
            "page_bytes": 4096,
            "queue": "libaio",
            "layout": "page_first",
            "mla": False,
            "direct": False,
        }
        leaky, scoped = result["connectors"]
        assert (leaky["connector"], leaky["fds_before"], leaky["fds_at_end"]) == ("leaky", 135, 151)
        assert leaky["fds_per_key"] == 2
        assert leaky["first_failure"] is None
        assert leaky["get"]["calls"] == 1
        assert scoped["fds_at_end"] == 135
        assert "rows" not in scoped

    def test_every_call_and_what_failed(self, run):
        answer = run(f"replay steady --calls 2 --keys 128 {SMALL} --json --all --nofile-limit 300")
        assert answer.code == 3
        (leaky,) = json.loads(answer.out)["connectors"]
        assert [row["pages_ok"] for row in leaky["rows"]] == [0, 0]
        assert leaky["first_failure"] | {"logged": ""} == {
            "call": 1,
            "operation": "set",
            "pages_ok": 0,
            "keys": 128,
            "errno": 24,
            "reason": "Too many open files",
            "logged": "",
        }
        assert leaky["fds_per_key"] is leaky["set"] is None

    def test_its_keys_are_those_that_the_help_names(self, run):
        told = run("replay --help").prose
        (found,) = json.loads(run(f"replay steady --calls 1 --keys 1 {SMALL} --json").out)["connectors"]
        assert [name for name in found if name not in told] == []


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ("nonsense", ["'nonsense' is unknown", "pr24671, single_call, steady", "CSV"]),
            ("{tmp}", ["Is a directory", "CSV file"]),
            ("{tmp}/no_keys.csv", ["no column keys", "which has operation, pages"]),
            ("{tmp}/bad_row.csv", ["line 3", "many"]),
            ("{tmp}/giant.csv", ["line 2", "1e30", "whole number from 1 to 1000000"]),
            ("steady --keys 0", ["keys is 0", "from 1"]),
            ("steady --calls 0", ["calls is 0", "from 1"]),
            ("steady --keys 1000000000000", ["keys is 1000000000000", "to 1000000"]),
            ("steady --calls 1000000000000", ["calls is 1000000000000", "to 1000000"]),
            ("steady --keys 1000000 --page-bytes 80000000", ["1000000 keys", "GB of memory", "available"]),
            ("--keys 4", ["--keys has no effect with pr24671", "steady"]),
            ("{tmp}/bad_row.csv --calls 4", ["--calls has no effect with", "steady"]),
            ("--timeout 0", ["--timeout 0", "more than 0"]),
            ("--timeout -1", ["--timeout -1", "more than 0"]),
            ("--timeout nan", ["--timeout nan", "more than 0"]),
            ("--layers 4", ["--layers 4", "--model"]),
            ("--page-bytes 4097", ["page_bytes", "4097", "multiple of 8"]),
            ("--model gpt-9", ["'gpt-9' is unknown", "Qwen2.5-32B", "DeepSeek-V3"]),
            ("--storage-dir {tmp}/missing", ["storage_dir", "missing", "existing, writable folder"]),
            ("--storage-dir {tmp}/bad_row.csv", ["storage_dir", "Not a directory"]),
            ("--csv {tmp}/missing/table.csv", ["no folder", "missing", "table.csv"]),
            ("--png {tmp}/figure.pdf", ["figure.pdf", "ends in .png"]),
            ("--html {tmp}/page.pdf", ["page.pdf", "ends in .html"]),
            ("--connector scoped --connector leeky", ["'leeky' is unknown"]),
        ],
        ids=shown,
    )
    def test_what_cannot_work_is_one_line_before_a_process_is_started(
        self, run, no_process, tmp_path, arguments, names
    ):
        (tmp_path / "no_keys.csv").write_text("operation,pages\nset,1\n")
        (tmp_path / "bad_row.csv").write_text("operation,keys\nset,16\nget,many\n")
        (tmp_path / "giant.csv").write_text("operation,keys\nset,1e30\n")
        answer = run(f"replay {arguments.format(tmp=tmp_path)}")
        message = answer.error()
        assert answer.err == f"error: {message}\n"
        assert [name for name in names if name not in message] == []
        assert (answer.code, answer.out) == (2, "")

    @pytest.mark.parametrize(
        ("option", "value", "allowed"),
        [
            ("--queue", "uring", ("libaio", "io_uring", "posix_aio")),
            ("--connector", "leeky", ("leaky", "try_finally", "scoped", "sglang==")),
            ("--layout", "page_last", ("layer_first", "page_first", "page_first_direct")),
        ],
    )
    def test_an_unknown_choice_names_those_that_there_are(self, run, no_process, option, value, allowed):
        answer = run(f"replay {option} {value}")
        assert answer.code == 2
        assert [word for word in (option.strip("-"), value, *allowed) if word not in answer.err] == []

    def test_a_worker_that_does_not_answer_is_one_line_without_a_traceback(self, run):
        answer = run("replay steady --page-bytes 4096 --timeout 0.001")
        assert answer.code == 1
        assert re.match(r"error: .*did not answer within 0", answer.err)  # the worker, or what forks it
        assert "Traceback" not in answer.err

    def test_where_nixl_is_missing_one_line_says_what_to_install(self, tmp_path: Path):
        for package in ("nixl", "nixl_cu12", "nixl_cu13"):
            (tmp_path / package).mkdir()
            (tmp_path / package / "__init__.py").write_text("raise ImportError('not for this platform')\n")
        command = "replay steady --calls 1 --keys 1 --page-bytes 4096"
        answer = subprocess.run(
            [sys.executable, "-c", "from hicache_nixl.cli import main; main()", *command.split()],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert answer.returncode in (1, 2)
        assert "pip install nixl" in answer.stderr.splitlines()[-1]


class TestEnds:
    def test_a_file_that_cannot_be_written_at_the_end_does_not_hide_the_summary(
        self, run, monkeypatch, tmp_path
    ):
        monkeypatch.setattr(
            "pandas.DataFrame.to_csv",
            lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        answer = run(f"replay steady --calls 1 --keys 1 {SMALL} --csv {tmp_path}/t.csv")
        assert answer.code == 1
        assert cells(answer.out)["descriptors at end"] == ["137"]
        assert answer.error() == f"{tmp_path}/t.csv was not written: No space left on device"

    def test_an_interrupt_keeps_the_connectors_that_are_done(self, run, monkeypatch, tmp_path):
        from hicache_nixl import lab

        replay = lab.replay

        def interrupted(plan, setup, **more):
            if setup.connector == "scoped":
                raise KeyboardInterrupt
            return replay(plan, setup, **more)

        monkeypatch.setattr(lab, "replay", interrupted)
        answer = run(
            f"replay steady --calls 1 --keys 1 {SMALL} --connector leaky --connector scoped --csv {tmp_path}/t.csv"
        )
        assert (answer.code, answer.err) == (130, "interrupted during scoped; leaky is done\n")
        assert cells(answer.out)["descriptors at end"] == ["137"]
        assert pd.read_csv(tmp_path / "t.csv").connector.tolist() == ["leaky"]
