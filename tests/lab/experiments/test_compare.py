"""Two connectors timed against each other, in alternation."""

from __future__ import annotations

import resource
from pathlib import Path

import pandas as pd
import pytest
from processes import workers_of

from hicache_nixl.config import QUEUES, ConfigError
from hicache_nixl.lab.experiments.compare import compare, left_per_key, usable_queues
from hicache_nixl.lab.worker.client import Worker
from hicache_nixl.lab.worker.releases import CACHE_VARIABLE, ReleaseError
from hicache_nixl.lab.worker.setup import Setup

ARMS = ("leaky", "try_finally")
SETUPS = [Setup(pages=2, page_bytes=4096), Setup(pages=3, page_bytes=4096, layout="layer_first")]
REPEATS = 2


@pytest.fixture(scope="module")
def storage_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def times(storage_dir: Path) -> pd.DataFrame:
    return compare(ARMS, SETUPS, repeats=REPEATS, storage_dir=storage_dir)


class TestCompare:
    def test_a_row_per_setup_pair_arm_and_operation(self, times):
        assert len(times) == len(SETUPS) * REPEATS * len(ARMS) * 2
        assert not times[["keys", "pair", "arm", "operation"]].duplicated().any()

    def test_the_arms_alternate(self, times):
        """A set and a get of A, then of B; in the next pair B goes first."""
        for _, rows in times.groupby("keys", sort=False):
            assert rows.arm.tolist() == [arm for arm in (*ARMS, *reversed(ARMS)) for _ in range(2)]
            assert rows.pair.tolist() == [0] * 4 + [1] * 4
            assert rows.operation.tolist() == ["set", "get"] * 4

    def test_the_columns_of_the_setup_are_in_every_row(self, times):
        for setup in SETUPS:
            rows = times[times["keys"] == setup.pages]
            for name, value in setup.as_columns().items():
                assert rows[name].unique().tolist() == [value]

    def test_every_call_moved_all_its_bytes_in_some_time(self, times):
        assert (times.bytes == times["keys"] * times.page_bytes).all()
        assert (times.seconds > 0).all()

    def test_only_the_leaky_arm_keeps_descriptors(self, times):
        left = times.groupby(["keys", "arm"]).open_fds.agg(lambda counts: counts.max() - counts.min())
        assert left[2, "leaky"] == 2 * 2 * 3  # from after the first of four measured calls to the last
        assert left[3, "leaky"] == 1 * 3 * 3  # a contiguous copy is one file
        assert left[:, "try_finally"].tolist() == [0, 0]

    def test_the_arms_store_into_one_folder_for_each_setup_and_delete_nothing_in_it(
        self, monkeypatch, tmp_path
    ):
        folders, files = [], []
        open_worker = Worker.open

        def noting(worker, setup, *, folder=None):
            if folder is not None:
                folders.append((setup.connector, Path(folder)))
                files.append({path.stat().st_size for path in worker.folder.rglob("*") if path.is_file()})
            open_worker(worker, setup, folder=folder)

        monkeypatch.setattr(Worker, "open", noting)
        compare(ARMS, SETUPS, repeats=REPEATS, storage_dir=tmp_path)
        assert [arm for arm, _ in folders] == [*ARMS, *ARMS]
        first, second = folders[0][1], folders[2][1]
        assert [folder for _, folder in folders] == [first, first, second, second]
        assert first != second
        assert files == [set(), set(), {0}, set()]  # the first arm's worker has both folders

    def test_nothing_is_left_in_the_storage_folder(self, times, storage_dir):
        assert list(storage_dir.iterdir()) == []


class TestReleaseAsAnArm:
    def test_it_is_timed_beside_the_lifetime_that_stands_for_it(self, released):
        arms = ("leaky", released("sglang==0.5.11"))
        times = compare(arms, SETUPS[:1], repeats=REPEATS)
        assert times.arm.tolist() == [arm for arm in (*arms, *reversed(arms)) for _ in range(2)]
        assert times.groupby("arm").open_fds.agg(lambda counts: counts.max() - counts.min()).tolist() == [
            12,
            12,
        ]

    def test_one_that_cannot_be_had_ends_the_workers_of_the_others(self, monkeypatch, tmp_path):
        """The other one is up by then, or comes up while pip is asked."""
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        (tmp_path / "storage").mkdir()
        with pytest.raises(ReleaseError, match=r"sglang==0\.0\.1 is not available: No matching distribution"):
            compare(("leaky", "sglang==0.0.1"), SETUPS, repeats=REPEATS, storage_dir=tmp_path / "storage")
        assert workers_of() == []
        assert list((tmp_path / "storage").iterdir()) == []
        assert list((tmp_path / "cache").iterdir()) == []


class TestRefused:
    def test_more_repeats_than_the_limit_has_room_for(self, monkeypatch):
        monkeypatch.setattr(Worker, "_start", lambda self: pytest.fail("a process was started"))
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        repeats = limit // 512
        kept = 2 * 2 * 128 * (repeats + 1)
        with pytest.raises(ConfigError) as caught:
            compare(ARMS, [Setup(pages=128)], repeats=repeats)
        for fact in (f"repeats={repeats}", "128 keys", f"keeps {kept} descriptors", f"limit is {limit}"):
            assert fact in str(caught.value)

    def test_more_pages_than_the_disk_has_room_for(self, monkeypatch, tmp_path):
        monkeypatch.setattr(Worker, "_start", lambda self: pytest.fail("a process was started"))
        with pytest.raises(ConfigError, match=r"stores .* GiB before anything is removed, and .* GiB free"):
            compare(("scoped",), [Setup("scoped", page_bytes=2**40)], repeats=20, storage_dir=tmp_path)

    def test_an_unknown_queue(self, monkeypatch):
        monkeypatch.setattr(Worker, "_start", lambda self: pytest.fail("a process was started"))
        with pytest.raises(ConfigError, match="'uring' is unknown; expected one of libaio"):
            compare(ARMS, [Setup(queue="uring")], repeats=2)


def test_usable_queues_says_of_each_whether_it_works_and_if_not_why(io_uring_fd):
    table = usable_queues()
    assert table.columns.tolist() == ["queue", "works", "reason"]
    assert table.queue.tolist() == list(QUEUES)
    assert table.works.tolist() == [True, io_uring_fd is not None, True]
    assert (table.works == (table.reason == "")).all()


def test_left_per_key_is_computed_for_each_setup_and_arm():
    point = Setup(pages=4, page_bytes=4096).as_columns()
    counts = {"leaky": [8, 16, 24], "try_finally": [6, 6, 6]}
    times = pd.DataFrame([{**point, "arm": arm, "open_fds": fds} for arm in counts for fds in counts[arm]])
    table = left_per_key(times).set_index("arm")
    assert table.loc["leaky", ["predicted", "least", "most"]].tolist() == [2, 2.0, 2.0]
    assert table.loc["try_finally", ["least", "most"]].tolist() == [0.0, 0.0]
