"""The worker's side of the benchmark: what is timed is what is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from hicache_nixl.errors import HiCacheNixlError
from hicache_nixl.lab.bench.arms import Arm, Asked
from hicache_nixl.lab.bench.stores import FileBackend
from hicache_nixl.lab.worker.observers import LogTail

KEYS, PAGE = 8, 4096
OPTIONS = {"lifetime": "pooled", "capacity_gb": 0.0625, "segment_mb": 8, "min_free_gb": 0}


class Pages(dict):
    """A backend as SGLang's ``HiCacheFile``, in memory."""

    def batch_set(self, keys: list[str], pages: list[torch.Tensor]) -> bool:
        self.update(zip(keys, pages, strict=True))
        return True

    def batch_get(self, keys: list[str], empty: list[torch.Tensor]) -> list[torch.Tensor | None]:
        return [self.get(key) for key in keys]

    def batch_exists(self, keys: list[str]) -> int:
        return sum(key in self for key in keys)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Arm]]:
    """Open arms, which are closed at the end."""
    arms = []
    asked = Asked(
        "ceiling", str(tmp_path), "posix_aio", PAGE, KEYS, 2, False, 0, 4 * KEYS * PAGE, {}, True, None
    )

    def open_arm(**changes: Any) -> Arm:
        arms.append(Arm(dataclasses.replace(asked, **changes), LogTail()))
        return arms[-1]

    yield open_arm
    for arm in arms:
        arm.close()


def test_plain_writes_and_reads_are_timed_and_have_no_lookup(opened):
    rows = opened().turn(2)
    assert [row["operation"] for row in rows] == ["set", "set", "get", "get"]
    assert {row["bytes"] for row in rows} == {KEYS * PAGE}
    assert min(row["seconds"] for row in rows) > 0


def test_plain_writes_go_next_to_each_other_first_all_keys_then_all_values(opened, tmp_path):
    arm = opened()
    batch = arm._pages.to_set(KEYS)
    expected = [arm._pages._content(page).view(2, -1) for page in batch.ids]
    assert all(arm._store.setting(batch)())
    found = torch.frombuffer(bytearray((tmp_path / "ceiling").read_bytes()), dtype=torch.bfloat16)
    in_order = torch.cat([page[plane] for plane in (0, 1) for page in expected])
    assert torch.equal(found[: len(in_order)].view(torch.int16), in_order.view(torch.int16))
    assert (tmp_path / "ceiling").stat().st_size == 4 * KEYS * PAGE


def test_ours_is_timed_at_all_three_and_opened_again(opened):
    arm = opened(kind="ours", options=OPTIONS)
    rows = arm.turn(1)
    assert [(row["operation"], row["bytes"]) for row in rows] == [
        ("set", KEYS * PAGE),
        ("exists", 0),
        ("get", KEYS * PAGE),
    ]
    arm.fill(1)
    assert arm.reopen() > 0
    assert len(arm.turn(1)) == 3


@pytest.mark.parametrize("scattered", [True, False])
def test_host_pages_are_scattered_or_next_to_each_other(opened, scattered):
    pages = opened(scattered=scattered)._pages
    batch = pages.to_set(KEYS)
    pages.was_set(batch, [True] * KEYS)
    for places in (batch.places, pages.to_get(KEYS).places):
        steps = {later - earlier for earlier, later in pairwise(places)}
        assert (steps == {1}) is not scattered
    assert batch.places != pages.to_get(KEYS).places


def test_sglangs_backend_file_is_called_with_whole_pages(opened):
    arm = opened()
    arm._store.close()
    arm._asked = dataclasses.replace(arm._asked, kind="file")
    backend = Pages()
    arm._store = FileBackend(backend, arm._pages.pool)
    assert [row["bytes"] for row in arm.turn(2)] == [KEYS * PAGE] * 2 + [0] * 2 + [KEYS * PAGE] * 2
    assert {page.nbytes for page in backend.values()} == {PAGE}


def test_a_page_that_is_lost_ends_the_benchmark_with_the_reason(opened):
    arm = opened()
    arm._store.close()
    backend = Pages()
    arm._store = FileBackend(backend, arm._pages.pool)
    arm._set(1)
    backend.popitem()
    with pytest.raises(HiCacheNixlError, match="get of 8 pages: 7 are right; nothing was logged"):
        arm._get(1)
