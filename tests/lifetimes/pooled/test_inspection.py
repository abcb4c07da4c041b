"""Looking at a store: what is counted, what is read, and that nothing is changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from small_store import MIB, PAGE, SmallStore, damage, everything_in, keys_of

from hicache_nixl.errors import ConfigError
from hicache_nixl.lifetimes.pooled.facts import Damaged, Facts
from hicache_nixl.lifetimes.pooled.inspection import Inspection


def facts_of(folder: Path) -> Facts:
    with Inspection(folder) as inspection:
        return inspection.facts()


def damaged_in(folder: Path) -> list[Damaged]:
    with Inspection(folder) as inspection:
        return inspection.verify(inspection.rows())[0]


class TestFacts:
    def test_they_are_those_of_a_store_with_pages_stored_twice(self, folder):
        started = int(time.time())
        with SmallStore(folder) as store:
            store.set(range(128))
            store.set(range(28))
        facts = facts_of(folder)
        assert (facts.pages, facts.stored, facts.capacity) == (128, 128 * PAGE, 8 * MIB)
        first = facts.segments[0]
        assert facts.dead == sum(segment.dead for segment in facts.segments) >= 28 * PAGE
        assert sum(segment.pages for segment in facts.segments) == 128
        assert first.live + first.dead == first.used
        assert started <= first.taken <= time.time()
        assert list(facts.spaces.values()) == [128]
        assert facts.index["occupied"] == 128
        assert facts.index["load"] == 128 / facts.index["slots"]
        assert not facts.in_use

    def test_each_model_is_a_space(self, folder):
        with SmallStore(folder) as store, SmallStore(folder, mla=True) as other:
            store.set(range(5))
            other.set(range(3))
            assert sorted(facts_of(folder).spaces.values()) == [3, 5]

    def test_cleared_pages_are_dead(self, folder):
        with SmallStore(folder) as store:
            store.set(range(10))
            store.connector.clear()
        facts = facts_of(folder)
        assert (facts.pages, facts.stored, facts.spaces) == (0, 0, {})
        assert facts.dead == 10 * PAGE

    def test_segments_are_named_with_those_who_use_them(self, folder):
        with SmallStore(folder) as store:
            store.set(range(3))
            facts = facts_of(folder)
            assert facts.in_use
            assert [(one.is_written, one.is_read) for one in facts.segments] == [(True, False)]
            with store.connector.lifetime._store.locks.reading([0]):
                assert facts_of(folder).segments[0].is_read
        assert [(one.is_written, one.is_read) for one in facts_of(folder).segments] == [(False, False)]

    def test_the_oldest_segment_is_the_first(self, folder):
        with SmallStore(folder) as store:
            for call in range(12):
                store.set(range(call * 128, call * 128 + 128))
        generations = [segment.generation for segment in facts_of(folder).segments]
        assert generations == sorted(generations)
        assert len(generations) == 8


class TestVerify:
    @pytest.mark.parametrize("mla", [False, True], ids=["multi_head", "mla"])
    @pytest.mark.parametrize("layout", ["layer_first", "page_first"])
    def test_pages_in_one_and_two_pieces_are_right(self, folder, mla, layout):
        with SmallStore(folder, mla, layout) as store:
            store.set(range(128))
            store.set(range(100, 140))
        assert damaged_in(folder) == []

    def test_progress_reaches_the_bytes_of_all_pages(self, folder):
        with SmallStore(folder) as store:
            for call in range(4):
                store.set(range(call * 128, call * 128 + 128))
        read: list[int] = []
        with Inspection(folder) as inspection:
            inspection.verify(inspection.rows(), read.append)
        assert sum(read) == 4 * 128 * PAGE

    def test_damaged_pages_are_named(self, folder):
        with SmallStore(folder) as store:
            store.set(range(20))
        keys = damage(folder, 3)
        damaged = damaged_in(folder)
        assert [page.key for page in damaged] == keys
        assert set(keys) <= set(keys_of(range(20)))
        assert {(page.segment, page.size, page.problem) for page in damaged} == {
            (0, PAGE, "other bytes than were stored")
        }
        assert [page.offset for page in damaged] == [0, PAGE // 2, PAGE]

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (os.unlink, "segment-0000: No such file or directory"),
            (lambda path: os.truncate(path, 0), "other bytes than were stored"),
            (lambda path: (os.rename(path, f"{path}x"), path.write_bytes(b"x")), "segment-0000: is another file"),
        ],
        ids=["removed", "truncated", "replaced"],
    )  # fmt: skip
    def test_all_pages_of_a_segment_that_is_lost_are_damaged(self, folder, change, problem):
        with SmallStore(folder) as store:
            store.set(range(4))
        change(folder / "pooled" / "segment-0000")
        assert [page.problem for page in damaged_in(folder)] == [problem] * 4

    def test_a_page_that_was_replaced_or_dropped_meanwhile_is_not_damaged(self, folder):
        with SmallStore(folder) as store, Inspection(folder) as inspection:
            store.set(range(128))
            rows = inspection.rows()
            damage(folder, 128)
            store.set(range(64))  # in another place
            for call in range(1, 12):  # recycles the segment
                store.set(range(call * 1000, call * 1000 + 128))
            assert inspection.verify(rows)[0] == []

    def test_repair_removes_what_is_damaged_and_nothing_else(self, folder):
        with SmallStore(folder) as store:
            store.set(range(20))
            bad = damage(folder, 3)
            with Inspection(folder) as inspection:
                inspection.repair(inspection.verify(inspection.rows())[1])
            assert store.get(range(20)) == [key not in bad for key in keys_of(range(20))]
        assert damaged_in(folder) == []
        assert facts_of(folder).pages == 17


class TestNothingIsChanged:
    def test_by_looking_and_verifying(self, folder):
        with SmallStore(folder) as store:
            store.set(range(20))
        damage(folder, 2)
        before = everything_in(folder)
        facts_of(folder)
        assert len(damaged_in(folder)) == 2
        assert everything_in(folder) == before

    def test_where_there_is_no_store(self, tmp_path):
        with pytest.raises(ConfigError):
            Inspection(tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestWhatIsNoStore:
    @pytest.fixture
    def store_folder(self, folder):
        with SmallStore(folder) as store:
            store.set(range(2))
        return folder / "pooled"

    def test_both_folders_name_it(self, store_folder):
        assert facts_of(store_folder).path == facts_of(store_folder.parent).path == str(store_folder)

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(ConfigError, match=r"^there is no folder"):
            Inspection(tmp_path / "missing")

    def test_another_folder(self, tmp_path):
        with pytest.raises(ConfigError, match="has no store of lifetime pooled"):
            Inspection(tmp_path)

    def test_a_newer_format(self, store_folder):
        with (store_folder / "state").open("r+b") as file:
            file.seek(8)
            file.write((2).to_bytes(8, "little"))
        os.truncate(store_folder / "state", 10_000)  # a later version may have a state of another size
        with pytest.raises(
            ConfigError, match=r"the store has format 2, and this version .* up to 1: upgrade it"
        ):
            Inspection(store_folder)

    @pytest.mark.parametrize("content", [b"", b"x" * 8192], ids=["empty", "other"])
    def test_a_state_that_is_none(self, store_folder, content):
        (store_folder / "state").write_bytes(content)
        with pytest.raises(ConfigError, match=r"cannot be read: state has \d+ bytes instead of"):
            Inspection(store_folder)

    def test_another_user(self, store_folder, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: 4321)
        with pytest.raises(
            ConfigError, match=r"belongs to user \d+, and this process is user 4321; run it as"
        ):
            Inspection(store_folder)

    def test_a_symbolic_link(self, store_folder):
        os.rename(store_folder / "state", store_folder / "other")
        os.symlink("other", store_folder / "state")
        with pytest.raises(ConfigError, match="state: Too many levels of symbolic links"):
            Inspection(store_folder)


def test_it_leaves_no_descriptor(folder):
    with SmallStore(folder) as store:
        store.set(range(20))
    before = os.listdir("/proc/self/fd")
    facts_of(folder)
    damaged_in(folder)
    assert os.listdir("/proc/self/fd") == before
