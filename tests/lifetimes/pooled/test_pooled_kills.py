"""Writers of ``pooled`` that are killed at any moment: the next process finds whole pages, and room."""

from __future__ import annotations

import pytest
from support import TESTS, answer_of, run_python

from hicache_nixl.config import QUEUES

# Descriptors of an open store: its folder, its locks, and each mapped file twice.
FILES = {"pooled": 1, "pooled/locks": 1, "pooled/state": 2, "pooled/index.0": 2}
SEGMENTS = 6


def kill(folder, queue: str, kills: int, seconds: int) -> dict:
    script = str(TESTS / "scripts" / "pooled_kills.py")
    return answer_of(run_python(script, str(folder), queue, str(kills), str(seconds)))


def check(found: dict, kills: int) -> None:
    wrong = ("lost", "other bytes", "older", "never stored", "died", "refused at the end", "blocked segments")
    assert {name: found.get(name, 0) for name in wrong} == dict.fromkeys(wrong, 0)
    assert found["kills"] >= kills
    assert found["processes"] == found["kills"] + 1
    assert found["present"] > 50 * found["kills"]
    assert found["missing"] > 0  # so segments were recycled
    assert found["files"] == FILES | {f"pooled/segment-{number:04}": 1 for number in range(SEGMENTS)}


def test_after_a_kill_every_page_is_whole_and_none_that_was_stored_last_is_missing(folder):
    check(kill(folder, "libaio", kills=10, seconds=30), kills=10)


@pytest.mark.slow
@pytest.mark.parametrize("queue", QUEUES)
def test_hundreds_of_kills_lose_nothing(folder, queue, request):
    if queue == "io_uring":
        request.getfixturevalue("needs_io_uring")
    check(kill(folder, queue, kills=1000, seconds=30), kills=50)
