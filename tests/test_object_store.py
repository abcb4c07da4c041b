"""Objects on a real store: SeaweedFS behind its S3 endpoint, through NIXL's OBJ plugin."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import LEFT, TESTS, answer_of, run_python

from hicache_nixl.config import FILE_PER_PIECE
from hicache_nixl.lab.object_store import ObjectStore

pytestmark = pytest.mark.slow  # a server with an object store

PAGES, OBJECTS, GETS = 3, 6, 2  # in tests/scripts/object_store.py: per call, of a call, and calls that get


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    with ObjectStore() as store:
        plugin = json.dumps(store.endpoint.extra_config()["plugin"])
        return answer_of(run_python(str(TESTS / "scripts/object_store.py"), plugin, *FILE_PER_PIECE))


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
    calls, own = 1 + GETS, 0 if left.fails_together else 1  # the memory that the bytes pass through
    assert found["registrations_left"] == own + calls * OBJECTS * (
        left.file_registrations + left.buffer_registrations
    )
