"""hicache-nixl bench --object-store on a real store: one that it starts, and the user's own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import have_ended, wait_until
from test_cli import run as run_in_this_process
from test_cli import runs as runs_in_tmp

from hicache_nixl.lab.bench.object_plan import ARMS, SEAWEEDFS
from hicache_nixl.lab.object_store import ObjectStore
from hicache_nixl.resources import runs_folder

run, runs = run_in_this_process, runs_in_tmp  # fixtures
PATIENCE = 60
STRANGER = "somebody-elses-object"


def files_with(folder: Path, secret: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_small_run_measures_every_arm_and_leaves_nothing(run, runs, tmp_path, monkeypatch):
    secret = secrets.token_hex(30)
    monkeypatch.setattr("hicache_nixl.lab.object_store.store.secrets.token_urlsafe", lambda size: secret)
    (tmp_path / "disk").mkdir()
    answer = run(f"bench --object-store --quick --page-kib 4 --storage-dir {tmp_path}/disk --run mine --json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    requests = {(row["arm"], row["operation"]): row["requests"] for row in found["results"]}
    left_out = {line.split()[0] for line in found["left_out"]}
    assert left_out <= {SEAWEEDFS, "sglang==0.5.23"}
    assert {arm for arm, _ in requests} == set(ARMS) - left_out
    assert sum(requests["pooled", operation] for operation in ("set", "exists", "get")) < 0.1
    assert requests["scoped", "set"] + requests["scoped", "get"] >= 4
    assert requests["scoped-file", "set"] is None
    assert list((tmp_path / "disk").iterdir()) == []
    assert files_with(runs, secret) == []
    assert secret not in answer.out + answer.err


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store as a user has it, with an object of somebody else, and the variables that lead to it."""
    with ObjectStore() as store:
        for name, value in store.endpoint.variables().items():
            if name not in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_OVERRIDE"):
                monkeypatch.setenv(name, value)
        store.endpoint.client().put(STRANGER, b"x")
        yield store


def bytes_in(folder: Path) -> int:
    """Return the bytes of the pages of a store that keeps them in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.dat"))


def objects_in(store: ObjectStore) -> list[str]:
    return [found["path"] for page in store.endpoint.client().list() for found in page]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_was_stored_in_the_users_own_store_is_removed(run, runs, own):
    arms = "--arm pooled --arm scoped --arm sglang-seaweedfs --arm sglang==0.5.23"
    url, secret = own.endpoint.url, own.endpoint.secret_key
    answer = run(f"bench --object-store --quick --page-kib 4 --run mine --endpoint {url} {arms} --json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert all(row["requests"] is None for row in found["results"])
    assert objects_in(own) == [STRANGER]
    assert files_with(runs, secret) == []
    assert secret not in answer.out + answer.err


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_BUCKET"])
def test_a_wrong_key_or_bucket_is_one_line(run, runs, own, monkeypatch, wrong):
    monkeypatch.setenv(wrong, "wrong")
    answer = run(f"bench --object-store --quick --endpoint {own.endpoint.url}")
    assert answer.code == 2
    assert f"--endpoint {own.endpoint.url}" in answer.error()
    assert not runs.exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("in_own_store", [False, True], ids=["started", "own"])
def test_ctrl_c_ends_it_and_leaves_no_process_and_no_object(own, tmp_path, in_own_store):
    name = f"bench-interrupted-{os.getpid()}"
    line = [
        sys.executable,
        "-m",
        "hicache_nixl.cli",
        "bench",
        "--object-store",
        "--quick",
        "--page-kib",
        "64",
    ]
    line += ["--arm", "pooled", "--arm", "scoped", "--storage-dir", str(tmp_path), "--run", name]
    line += ["--endpoint", own.endpoint.url] if in_own_store else []
    with subprocess.Popen(
        line,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have it ignored
    ) as started:
        # Into the turns.
        if in_own_store:
            wait_until(lambda: objects_in(own) != [STRANGER], PATIENCE)
        else:
            wait_until(lambda: bytes_in(tmp_path) > 8 << 20, PATIENCE)
        family = psutil.Process(started.pid).children(recursive=True)
        started.send_signal(signal.SIGINT)
        _, told = started.communicate(timeout=PATIENCE)
    assert started.returncode == 130, told
    removing = "interrupted, removing what was stored ...\n" if in_own_store else ""
    assert told.endswith(f"{removing}interrupted\n")
    wait_until(lambda: have_ended(family))
    assert list(tmp_path.iterdir()) == []
    assert not (runs_folder() / name).exists()
    assert objects_in(own) == [STRANGER]
