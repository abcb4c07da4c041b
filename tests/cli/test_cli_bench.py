"""hicache-nixl bench: options, bad input, exit codes, and one small run of everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from measured import bench_times
from test_cli import run as run_in_this_process
from test_cli import runs as runs_in_tmp

from hicache_nixl.lab.bench import measure as measuring
from hicache_nixl.lab.bench.measure import Measured
from hicache_nixl.lab.bench.plan import PEER
from hicache_nixl.resources import runs_folder

run, runs = run_in_this_process, runs_in_tmp  # fixtures
OPENING = pd.DataFrame({"pages": [1000] * 6, "pair": range(6), "seconds": [0.008] * 6})
PATIENCE = 60


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """Replace the measuring by times that a test chooses."""

    def replace(times: pd.DataFrame) -> None:
        monkeypatch.setattr(
            measuring, "measure", lambda plan, *rest: Measured(plan, times, OPENING, ["x is left out"])
        )

    return replace


def test_help_teaches(run):
    answer = run("bench --help")
    taught = [
        "--quick",
        "--page-kib",
        "--queue",
        "--direct",
        "--arm",
        "--check",
        "Exit codes",
        "bench --quick",
    ]
    assert [word for word in taught if word not in answer.prose] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--page-kib 0", "--page-kib 0: expected 1 to 16384"),
        ("--queue uring", "--queue uring is unknown"),
        ("--arm fast", "--arm fast is unknown"),
        ("--storage-dir {tmp}/missing", "expected an existing, writable folder"),
        ("--storage-dir ''", "--storage-dir: the path is empty"),
        ("--run ../out", "run '../out'"),
        ("--png {tmp}/x.jpg", "ends in .png"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(run, runs, tmp_path, arguments, message):
    answer = run(f"bench --quick {arguments.format(tmp=tmp_path)}")
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.error()
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_was_measured_and_which_targets_are_met(run, runs, measured, tmp_path):
    measured(bench_times(**{PEER: 7.0}))
    answer = run(f"bench --quick --run mine --png {tmp_path}/mine.png")
    assert answer.code == 0
    assert "with 128 keys" in answer.prose
    assert "page cache, libaio: milliseconds of a call" in answer.prose
    assert "x is left out" in answer.prose
    assert "4 KiB set sglang==0.5.23 7.00 [7.00, 7.00] 8 missed" in answer.prose
    assert "64 KiB set sglang==0.5.23 7.00 [7.00, 7.00] 5 met" in answer.prose
    assert "targets: 5 met, 9 missed, 0 undecided" in answer.prose
    assert "GiB at a time" in answer.err
    assert (tmp_path / "mine.png").read_bytes() == (runs / "mine/figures/bench_throughput.png").read_bytes()


def test_without_pooled_there_are_times_and_no_ratios(run, runs, measured):
    times = bench_times()
    measured(times[times.arm == PEER])
    answer = run("bench --quick --run mine")
    assert answer.code == 0, answer.err
    assert "0 met, 0 missed, 0 undecided" in answer.prose
    assert "times as fast" not in answer.prose
    assert (runs / "mine/figures/bench_throughput.png").exists()


def test_the_folder_of_the_run_has_tables_claims_and_figure(run, runs, measured):
    measured(bench_times())
    run("bench --quick --run mine")
    tables = {path.stem for path in (runs / "mine/tables").iterdir()}
    assert tables == {
        f"bench_{name}" for name in ("times", "medians", "ratios", "opening", "openings", "descriptors")
    }
    claims = pd.read_csv(runs / "mine/claims.csv")
    assert set(claims.notebook) == {"bench"}
    assert set(claims.verdict) == {"holds", "fails"}
    assert json.loads((runs / "mine/provenance.json").read_text())["notebooks"]["bench"]["finished"]


@pytest.mark.parametrize(
    ("peer", "option", "code"),
    [(30.0, "--check", 0), (7.0, "--check", 3), (7.0, "", 0)],
    ids=["all-met", "missed", "not-asked"],
)
def test_a_missed_target_is_an_error_with_check_only(run, runs, measured, peer, option, code):
    measured(bench_times(**{PEER: peer, "ceiling": 1.0}))
    assert run(f"bench --quick {option}").code == code


def test_check_is_an_error_where_no_target_could_be_checked(run, runs, measured):
    times = bench_times()
    measured(times[times.arm == "sglang-file"])
    result = run("bench --quick --check")
    assert (result.code, "no target could be checked" in result.err) == (2, True)


def test_json_is_one_object_with_the_tables(run, runs, measured):
    measured(bench_times())
    found = json.loads(run("bench --quick --run mine --json").out)
    assert found["keys"] == 128
    assert found["run"] == str(runs / "mine")
    assert {"measured", "left_out", "medians", "ratios", "openings", "descriptors", "targets"} <= set(found)
    assert found["ratios"][0]["speed_ratio"] == pytest.approx(10)


@pytest.mark.slow
def test_a_small_run_measures_every_arm_and_leaves_nothing(run, runs, tmp_path):
    (tmp_path / "disk").mkdir()
    answer = run(
        f"bench --quick --page-kib 4 --storage-dir {tmp_path}/disk --run mine --arm try_finally --arm pooled "
        "--arm pooled-none --arm scoped --arm sglang==0.5.23 --arm sglang-file --arm ceiling --json"
    )
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    arms = {row["arm"] for row in found["medians"]}
    left_out = 2 if found["left_out"] else 0  # without a package registry
    assert len(arms) == 11 - left_out
    kept = {row["arm"]: row["storage_fds"] for row in found["descriptors"]}
    assert (kept["scoped"], kept["try_finally"]) == (0, 0)
    assert kept["pooled"] < 20
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_it_and_removes_what_was_stored(tmp_path):
    name = f"bench-interrupted-{os.getpid()}"
    line = [
        sys.executable,
        "-m",
        "hicache_nixl.cli",
        "bench",
        "--arm",
        "pooled",
        "--arm",
        "scoped",
        "--page-kib",
        "64",
    ]
    with subprocess.Popen(
        [*line, "--storage-dir", str(tmp_path), "--run", name],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have it ignored
    ) as started:
        wait_for_segment(tmp_path)
        started.send_signal(signal.SIGINT)
        _, told = started.communicate(timeout=PATIENCE)
    assert started.returncode == 130
    assert told.endswith("interrupted\n")
    assert list(tmp_path.iterdir()) == []
    assert not (runs_folder() / name).exists()


def wait_for_segment(folder: Path) -> None:
    """Wait until a store has been written to."""
    end = time.monotonic() + PATIENCE
    while not list(folder.rglob("segment-*")):
        assert time.monotonic() < end
        time.sleep(0.1)
