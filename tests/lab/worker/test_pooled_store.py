"""The store of `pooled` in a worker: how large it is, that its descriptors stay, and what is removed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from small_store import damage

from hicache_nixl.config import NixlBackendConfig
from hicache_nixl.lab import Schedule, Setup, connectors, replay
from hicache_nixl.lab.worker.client import Worker
from hicache_nixl.lifetimes.pooled.inspection import Inspection

PAGE, PAGES = 4096, 8
PR = Schedule.pr24671()


@pytest.fixture(scope="module")
def recorded() -> pd.DataFrame:
    """The calls of the PR."""
    return replay(PR, "pooled", page_bytes=PAGE)


class TestTheCallsOfThePr:
    def test_every_page_of_every_call_is_right(self, recorded):
        assert recorded.pages_ok.tolist() == [call.keys for call in PR]
        assert recorded.attrs["log"] == {}

    def test_descriptors_and_registrations_stay(self, recorded):
        assert recorded.open_fds.unique().tolist() == [recorded.attrs["fds_before"]]
        assert recorded.registrations.nunique() == 1
        assert connectors.expected().loc["pooled", ["fds_per_key", "registrations_per_key"]].tolist() == [
            0,
            0,
        ]


class TestCapacity:
    @pytest.mark.parametrize(
        ("room", "page_bytes", "segment_mb", "segments"),
        [
            (2016, 65536, 134, 3),
            (100, 4096, 1, 3),
            (0, 4096, 1, 3),
            (20_000, 65536, 256, 8),
            (1, 600 << 20, 600, 3),
            (50, 300 << 20, 300, 52),
        ],
    )
    def test_it_is_enough_for_the_pages_with_two_segments_to_spare(
        self, room, page_bytes, segment_mb, segments
    ):
        setup = Setup("pooled", page_bytes=page_bytes, pages=1, room=room)
        options = NixlBackendConfig(setup.extra_config).pooled
        assert (options.segment_mb, options.capacity_gb) == (segment_mb, segments * segment_mb / 1024)

    def test_the_rest_of_the_disk_is_left_alone(self):
        with Worker(Setup("pooled", page_bytes=PAGE, pages=PAGES)) as worker:
            worker.call("set", PAGES)
            taken = sum(path.stat().st_size for path in (worker.folder / "pooled").iterdir())
        assert taken < 3 << 20

    def test_other_lifetimes_have_no_such_option(self):
        assert "capacity_gb" not in Setup("scoped").extra_config


def test_a_bad_page_does_not_affect_the_others_of_its_batch():
    with Worker(Setup("pooled", page_bytes=PAGE, pages=PAGES)) as worker:
        worker.call("set", PAGES)
        assert worker.call("exists", PAGES).pages_ok == 8
        damage(worker.folder, 4)
        row = worker.call("get", PAGES)
    known = connectors.expected().loc["pooled"]
    assert (row.pages_ok, known.pages_besides_a_bad_one, known.exists_of_8) == (
        5,
        7,
        8,
    )  # one is no page of a set


def test_the_next_connector_finds_no_store(tmp_path: Path):
    with Worker(Setup("pooled", page_bytes=PAGE, pages=PAGES), storage_dir=tmp_path) as worker:
        worker.call("set", PAGES)
        worker.open(Setup("pooled", page_bytes=65536, pages=64))
        with Inspection(worker.folder) as inspection:
            assert inspection.facts().pages == 1
        assert worker.call("set", 64).pages_ok == 64
        worker.open(Setup("scoped", page_bytes=PAGE, pages=PAGES))
        assert list(worker.folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_pages_that_were_stored_before_are_found():
    schedule = Schedule.of([("get", 8), ("set", 4), ("get", 4)])
    assert replay(schedule, "pooled", page_bytes=PAGE).pages_ok.tolist() == [8, 4, 4]
