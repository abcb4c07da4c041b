"""No room for a page of ``pooled``: a full disk, a quota, the limit of file sizes."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
import torch
from faults import PAGES, get_pages, raising, set_pages
from pooled_store import Records
from support import (
    TESTS,
    answer_of,
    file_size_limit,
    keys_of,
    make_pool,
    page_files,
    run_python,
    scramble,
    unshare,
)

from hicache_nixl.config import QUEUES
from hicache_nixl.lifetimes.pooled import index, opening, transfers

NO_ROOM = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO]


@pytest.fixture
def pool():
    return make_pool(False, "page_first", 2 * PAGES)


@pytest.mark.parametrize("code", NO_ROOM, ids=errno.errorcode.get)
def test_a_first_segment_for_which_there_is_no_room_fails_the_call(
    make_store, pool, folder, monkeypatch, log, code
):
    store = make_store("pooled", pool=pool)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", lambda *args: raising(OSError(code, os.strerror(code)))(None))
        assert set_pages(store, pool) == [False] * PAGES
    assert f"[Errno {code}]" in log.line()
    assert Records(folder).names() == []
    assert (folder / "pooled" / "segment-0000").stat().st_size == 0, "no room is kept"
    assert all(set_pages(store, pool))
    assert all(get_pages(store, pool))
    assert Records(folder).handles() == []


def test_a_call_larger_than_the_store_fails_and_costs_no_page(make_store, pool, original, log):
    store = make_store("pooled", pool=pool, segment_mb=1, capacity_gb=2 / 1024, min_free_gb=0)
    assert all(set_pages(store, pool))
    values = [torch.zeros(512 << 10, dtype=torch.uint8) for _ in range(5)]
    assert not store.batch_set([f"value{number}" for number in range(5)], values)
    assert "5 pages of 524288 bytes in one call; the store has room for 4, see capacity_gb" in log.line()
    assert all(get_pages(store, pool))


@pytest.mark.parametrize("queue", QUEUES)
def test_a_write_that_the_kernel_refuses_leaves_the_older_pages(
    make_store, pool, original, log, request, queue
):
    """Beyond the limit of file sizes: EFBIG and SIGXFSZ."""
    if queue == "io_uring":
        request.getfixturevalue("needs_io_uring")
    store = make_store("pooled", pool=pool, posix={"queue": queue})
    assert all(set_pages(store, pool))
    filler = torch.zeros(600 << 10, dtype=torch.uint8)  # in the segments of both writers
    assert store.batch_set(["filler0", "filler1"], [filler, filler])
    scramble(pool)
    with file_size_limit(512 << 10):
        assert set_pages(store, pool) == [False] * PAGES
        failed = [f"WRITE of 1, first '{key}'" for key in keys_of(PAGES)]
        assert [line.split(":")[0] for line in log.lines()] == failed
        assert get_pages(store, pool) == [True] * PAGES
    assert [page_files(pool, False, page) for page in range(PAGES)] == original
    scramble(pool)
    assert all(set_pages(store, pool))
    assert all(get_pages(store, pool))
    assert log.lines() == []


def test_a_full_disk_drops_the_oldest_pages_and_stores_the_new_ones(make_store, pool, monkeypatch, log):
    store = make_store("pooled", pool=pool)
    half = torch.zeros(600 << 10, dtype=torch.uint8)
    assert all(store.set(key, half) for key in ("first", "second"))
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        patch.setattr(os, "posix_fallocate", lambda *args: raising(full)(None))
        assert store.set("third", half + 1)
    assert log.lines() == []
    loaded = [store.get(key, torch.zeros_like(half)) for key in ("first", "second", "third")]
    assert loaded[0] is None
    assert torch.equal(loaded[1], half)
    assert torch.equal(loaded[2], half + 1)


@pytest.mark.parametrize("queue", ["libaio", "posix_aio"])
def test_writes_that_fail_do_not_affect_the_loads_of_another_thread(
    make_store, pool, original, log, run_together, monkeypatch, queue
):
    """On posix_aio each of them replaces the agent, for which a running load is waited for."""
    monkeypatch.setattr(transfers, "LARGE", 1)
    store = make_store("pooled", pool=pool, posix={"queue": queue})
    assert all(set_pages(store, pool))
    filler = torch.zeros(600 << 10, dtype=torch.uint8)  # in the segments of both writers
    assert store.batch_set(["filler0", "filler1"], [filler, filler])
    elsewhere = pool.page_indices(PAGES, PAGES)

    def setting():
        for number in range(30):
            answers = store.batch_set_v1(keys_of(PAGES, f"{number}-"), pool.page_indices(0, PAGES))
            assert answers == [False] * PAGES

    def getting():
        for _ in range(100):
            assert store.batch_get_v1(keys_of(PAGES), elsewhere) == [True] * PAGES
            assert [page_files(pool, False, PAGES + page) for page in range(PAGES)] == original

    with file_size_limit(512 << 10):
        run_together(setting, getting)
    assert len(log.lines()) == 30 * PAGES
    assert all(set_pages(store, pool))
    assert all(get_pages(store, pool))
    assert log.lines() == []


@pytest.mark.parametrize("queue", QUEUES)
def test_on_a_full_file_system_the_oldest_pages_make_room_for_new_ones(tmp_path, request, queue):
    """Three segments of 1 MiB fit, and the index; the read-only file system is an error at construction."""
    if queue == "io_uring":
        request.getfixturevalue("needs_io_uring")
    script = TESTS / "scripts" / "full_file_system.py"
    answer = answer_of(run_python(str(script), str(tmp_path), queue, prefix=unshare()))
    assert "[Errno 30]" in answer.pop("construction")
    there = answer.pop("there")
    assert answer == {"wrong": [], "lines": []}
    dropped = there.count(0)
    assert there == [0] * dropped + [8] * (100 - dropped), "the oldest, and no page of a later batch"
    assert 10 <= len(there) - dropped <= 24


def test_a_quota_makes_the_oldest_pages_give_way_and_without_any_room_a_batch_fails(tmp_path):
    if os.geteuid() != 0 or not shutil.which("mkfs.btrfs"):
        # kernels without quotas of ext4 are common, and a quota needs a file system of its own, which has to be mounted
        pytest.skip("needs root and btrfs-progs, for a file system with a quota")
    script = str(TESTS / "scripts" / "pooled_quota.py")
    found = answer_of(run_python(script, str(tmp_path), prefix=unshare()))
    assert "Disk quota exceeded" in found["construction"]
    assert all(found["stored"])
    dropped = found["there"].count(0)
    assert found["there"] == [0] * dropped + [4] * (60 - dropped), "the oldest"
    assert 12 <= 60 - dropped <= 24
    of_room, of_btrfs, of_quota = found["warnings"]
    assert "more than the file system" in of_room
    assert "on btrfs" in of_btrfs
    assert "no new segment: [Errno 122] Disk quota exceeded" in of_quota
    assert found["without room"] == [False] * 4
    (line,) = found["lines"]
    assert "WRITE of 4, first 'page0'" in line
    assert "[Errno 122] Disk quota exceeded" in line
    assert found["with room"]


def test_where_there_is_room_for_one_segment_large_batches_go_to_it_alone(make_store, pool, monkeypatch, log):
    store = make_store("pooled", pool=pool, segment_mb=1, capacity_gb=8 / 1024, min_free_gb=0)
    real, made = os.posix_fallocate, []

    def one(fd, *args):
        made.append(fd)
        if len(made) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, *args)

    monkeypatch.setattr(os, "posix_fallocate", one)
    monkeypatch.setattr(transfers, "LARGE", 1)
    for batch in range(100):  # 4.8 MB
        keys = keys_of(PAGES, f"{batch}-")
        assert store.batch_set_v1(keys, pool.page_indices(0, PAGES)) == [True] * PAGES
        assert store.batch_get_v1(keys, pool.page_indices(0, PAGES)) == [True] * PAGES
    assert log.lines() == []


def test_the_index_grows_to_the_most_rows_that_words_can_tell_of(make_store, pool, monkeypatch):
    monkeypatch.setattr(opening, "LEAST_ROOM", 16)
    monkeypatch.setattr(index, "MOST_ROWS", 40)
    store = make_store("pooled", pool=pool)
    for batch in range(40 // PAGES):
        assert all(store.batch_set_v1(keys_of(PAGES, f"{batch}-"), pool.page_indices(0, PAGES)))
    assert store.lifetime._store.index.occupied() == (40, 40)


@pytest.mark.parametrize("code", NO_ROOM, ids=errno.errorcode.get)
def test_pages_for_which_the_index_cannot_grow_are_not_stored(make_store, pool, monkeypatch, log, code):
    monkeypatch.setattr(opening, "LEAST_ROOM", 16)
    store = make_store("pooled", pool=pool)
    pages = pool.page_indices(0, PAGES)
    assert all(set_pages(store, pool))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", lambda *args: raising(OSError(code, os.strerror(code)))(None))
        answers = [store.batch_set_v1(keys_of(PAGES, f"{number}-"), pages) for number in range(20)]
        assert [False] * PAGES in answers
        lines = log.lines()
        assert len(lines) == sum(not all(answer) for answer in answers)
        assert all(f"[Errno {code}]" in line and "'index.1'" in line for line in lines)
        assert all(get_pages(store, pool))
    assert all(all(store.batch_set_v1(keys_of(PAGES, f"{number}-"), pages)) for number in range(20))
    assert all(get_pages(store, pool))
