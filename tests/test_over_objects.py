"""The contract suite and the tests of failures over objects: SeaweedFS, through NIXL's OBJ plugin.

In a process of its own, because a process loads only one build of NIXL, and OBJ needs the one for CUDA 12.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support import STORE_VARIABLE, TESTS

from hicache_nixl.lab.object_store import ObjectStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def variables() -> Iterator[dict[str, str]]:
    with ObjectStore() as store:
        endpoint = json.dumps(dataclasses.asdict(store.endpoint))
        yield {**os.environ, STORE_VARIABLE: endpoint, "NIXL_LOG_LEVEL": "FATAL"}


@pytest.mark.parametrize(
    ("tests", "chosen", "least"),
    [("contract", "objects", 500), ("objects", "", 75)],
    ids=["contract", "failures"],
)
def test_the_tests_pass_over_objects(variables, tests, chosen, least):
    command = [
        sys.executable,
        "-m",
        "pytest",
        TESTS / tests,
        "-q",
        "-k",
        chosen,
        "--tb=short",
        "-m",
        "not server",
    ]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed
    assert int(passed[1]) >= least, "tests were left out"
