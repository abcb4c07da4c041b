"""Options, folders and limits of ``pooled`` that cannot work, or that change between two stores."""

from __future__ import annotations

import logging
import math
import os
import shutil
import stat

import pytest
from large_pages import KEYS, OPTIONS, PAGE_BYTES, PAGES, get_pages, set_pages
from support import (
    TESTS,
    answer_of,
    file_size_limit,
    keys_of,
    names_open,
    run_python,
    unshare,
    without_capabilities,
)

from hicache_nixl.config import NixlBackendConfig, PooledOptions
from hicache_nixl.errors import ConfigError, HiCacheNixlError, NewerFormatError
from hicache_nixl.host.pools import pool_for_page_bytes
from hicache_nixl.lifetimes.pooled.opening import geometry


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("verify", "sometimes"),
        ("capacity_gb", -1),
        ("capacity_gb", 0),
        ("capacity_gb", "a lot"),
        ("capacity_gb", float("inf")),
        ("capacity_gb", float("nan")),
        ("capacity_gb", 1e300),
        ("min_free_gb", -0.5),
        ("min_free_gb", float("inf")),
        ("segment_mb", 0),
        ("segment_mb", 1.5),
        ("segment_mb", 1 << 40),
    ],
    ids=str,
)
def test_a_wrong_value_is_an_error_that_names_the_option(option, value):
    with pytest.raises(ConfigError, match=rf"^extra_config\.{option}: "):
        NixlBackendConfig({"lifetime": "pooled", option: value})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("capacity", "capacity_gb"),
        ("lifetimes", "lifetime"),
        ("segment_mib", "segment_mb"),
        ("use_urin", "use_uring"),
    ],
)
@pytest.mark.parametrize("form", [{}, {"plugin": {"posix": {"active": True}}}], ids=["flat", "full"])
def test_a_misspelt_option_is_an_error_that_names_the_one_that_was_meant(key, meant, form):
    with pytest.raises(ConfigError, match=f"{key!r} is unknown; did you mean {meant}"):
        NixlBackendConfig({**form, key: 3})


@pytest.mark.parametrize("capacity_gb", [1, 1000, 10**6, None])
def test_a_segment_suits_the_room_and_not_the_capacity_that_is_wished(tmp_path, monkeypatch, capacity_gb):
    real = os.statvfs(tmp_path)
    small = os.statvfs_result([4096, 4096, *[100 << 8] * 3, *real[5:]])  # 100 MiB
    monkeypatch.setattr(os, "fstatvfs", lambda fd: small)
    size, count = geometry(PooledOptions(capacity_gb=capacity_gb, min_free_gb=0), -1)
    assert size <= 25 << 20
    assert 2 <= count <= 4096


@pytest.mark.parametrize("given", [{"min_free_gb": 10**6}, {"min_free_gb": 10**6, "capacity_gb": 1}])
def test_that_no_page_can_be_stored_is_said_at_once(make_store, log, given):
    make_store("pooled", **given)
    (line,) = log.lines(logging.WARNING)
    assert "no page can be stored" in line


@pytest.mark.parametrize("option", ["capacity_gb", "min_free_gb", "segment_mb"])
def test_a_flag_is_no_number(option):
    with pytest.raises(ConfigError, match=f"extra_config.{option}: .*expected a number"):
        NixlBackendConfig({"lifetime": "pooled", option: True})


@pytest.mark.parametrize("key", ["async", "fsync", "use_gds_direct_io", "prefetch_threshold"])
def test_what_others_read_is_not_taken_for_a_misspelt_option(key):
    assert NixlBackendConfig({"plugin": {"posix": {"active": True}}, key: 3}).plugin == "POSIX"


def test_a_capacity_that_the_disk_has_no_room_for_is_said_at_once(make_store, log, tmp_path):
    too_much = 2 * shutil.disk_usage(tmp_path).total
    make_store("pooled", capacity_gb=too_much / 2**30, segment_mb=math.ceil(too_much / 1000 / 2**20))
    (line,) = log.lines(logging.WARNING)
    assert "more than the file system" in line
    make_store("pooled", path=str(tmp_path / "other"), capacity_gb=1)
    assert log.lines(logging.WARNING) == []


@pytest.mark.parametrize("lifetime", ["leaky", "try_finally", "scoped"])
@pytest.mark.parametrize(
    "option", [{"capacity_gb": 1}, {"verify": "none"}, {"segment_mb": 1}, {"min_free_gb": 1}]
)
def test_the_options_are_refused_with_other_lifetimes(lifetime, option):
    with pytest.raises(ConfigError, match=f"^{next(iter(option))}: only lifetime pooled"):
        NixlBackendConfig({"lifetime": lifetime, **option})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"capacity_gb": 0.5 / 1024}, "capacity_gb: .* less than two segments of 1 MiB"),
        ({"capacity_gb": 1.9 / 1024}, "use at least 0.002, or a smaller segment_mb"),
        ({"capacity_gb": 5}, "segment_mb: 5120 segments, and there may be 4096; use at least 2"),
    ],
    ids=["less than a segment", "less than two", "too many"],
)
def test_a_capacity_that_does_not_fit_the_segments_is_an_error_that_says_what_does(
    open_store, options, problem
):
    with pytest.raises(ConfigError, match=problem):
        open_store(**options)


def test_a_page_larger_than_a_segment_is_an_error_when_the_pool_is_registered(make_store, folder):
    store = make_store("pooled", **OPTIONS)
    with pytest.raises(
        ConfigError, match=r"a page has 3 MiB.*segments .* 1; .*segment_mb of at least 3"
    ) as error:
        store.register_mem_pool_host(pool_for_page_bytes(3 << 20, pages=2))
    assert "capacity_gb of at least 0.0059" in str(error.value)
    pool = pool_for_page_bytes(3 << 20, pages=2)
    other = make_store("pooled", path=folder / "other", segment_mb=3, capacity_gb=0.0059, min_free_gb=0)
    other.register_mem_pool_host(pool)
    assert all(set_pages(other, pool, 2))


def test_a_call_larger_than_the_store_is_an_error_when_the_pool_is_registered(make_store, folder, log):
    """A call of 128 pages; with the capacity that the error names, every such call works."""
    pool = pool_for_page_bytes(PAGE_BYTES, pages=130)
    store = make_store("pooled", **OPTIONS)
    with pytest.raises(
        ConfigError, match=r"^capacity_gb: a call of 128 pages of 0.25 MiB may need 33 segments.* has 4; "
    ) as error:
        store.register_mem_pool_host(pool)
    least = float(str(error.value).split()[-1])
    assert 33 <= least * 1024 < 34
    other = make_store("pooled", pool=pool, **OPTIONS | {"capacity_gb": least})
    indices = pool.page_indices(0, 128)
    for number in range(5):
        assert other.batch_set_v1(["one"], pool.page_indices(128, 1)) == [True]  # to begin within a segment
        keys = keys_of(128, f"{number}-")
        assert all(other.batch_set_v1(keys, indices))
        assert all(other.batch_get_v1(keys, indices))
    assert log.lines() == []


def test_a_smaller_capacity_drops_pages_and_says_how_many_segments(open_store, folder, pool, log):
    with open_store(capacity_gb=5 / 1024) as store:
        for _ in range(3):
            assert all(set_pages(store, pool))
    with open_store(capacity_gb=3 / 1024) as store:
        (line,) = log.lines(level=30)
        assert "2 segments of 1 MiB, with the pages in them, are given up" in line
        sizes = [path.stat().st_size >> 20 for path in sorted((folder / "pooled").glob("segment-*"))]
        assert sizes == [1, 1, 1, 0, 0]
        assert sum(get_pages(store, pool)) <= PAGES
        assert all(set_pages(store, pool))
    with open_store(capacity_gb=4 / 1024) as store:
        for _ in range(3):
            assert all(set_pages(store, pool))
        assert all(get_pages(store, pool))


def test_a_smaller_capacity_is_refused_while_another_store_uses_what_is_given_up_and_nothing_is_lost(
    open_store, pool
):
    store = open_store()
    for _ in range(2):
        assert all(set_pages(store, pool))  # the last segment is its own now
    with pytest.raises(ConfigError, match=r"^capacity_gb: less than what another process uses"):
        open_store(capacity_gb=2 / 1024)
    assert all(get_pages(store, pool))


def test_the_capacity_that_was_given_last_holds_for_all(open_store, folder, pool):
    first = open_store(capacity_gb=3 / 1024)
    open_store(capacity_gb=4 / 1024)
    for _ in range(3):
        assert all(set_pages(first, pool))
    assert len(list((folder / "pooled").glob("segment-*"))) == 4
    assert all(get_pages(first, pool))


def test_without_capacity_a_store_opens_where_the_file_system_has_no_room_for_a_new_one(
    open_store, pool, monkeypatch
):
    with open_store() as store:
        assert all(set_pages(store, pool))
    full = os.statvfs_result((4096, 4096, 1000, 1, 1, 1000, 1000, 1000, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: full)
    store = open_store(capacity_gb=None)
    assert all(get_pages(store, pool))
    assert all(set_pages(store, pool))


def test_another_segment_size_than_that_of_the_store_is_an_error(open_store, pool):
    open_store().close()
    with pytest.raises(ConfigError, match=r"^segment_mb: the store in .* has segments of 1 MiB; omit it"):
        open_store(segment_mb=2, capacity_gb=8 / 1024)


@pytest.mark.parametrize("name", ["state", "index.0"])
def test_a_newer_format_is_refused_or_starts_empty_never_overwritten(open_store, folder, name):
    open_store().close()
    path, place = folder / "pooled" / name, {"state": 8, "index.0": 16}[name]
    content = bytearray(path.read_bytes())
    content[place] = 9
    path.write_bytes(content)
    if name == "state":
        with pytest.raises(
            NewerFormatError, match=r"format 9, and this version .* knows up to 1: upgrade it"
        ):
            open_store()
    else:
        store = open_store()
        assert store.batch_exists(KEYS) == 0
    assert path.read_bytes() == content


@pytest.mark.parametrize("mask", [0o777, 0o277, 0o000], ids=oct)
def test_files_are_for_their_owner_only_whatever_the_umask(open_store, folder, pool, mask):
    before = os.umask(mask)
    try:
        store = open_store()
        assert all(set_pages(store, pool))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / "pooled").iterdir()}
    assert modes == dict.fromkeys(("locks", "state", "index.0", "segment-0000", "segment-0001"), 0o600)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "pooled")] == [0o700] * 2


@pytest.mark.parametrize("name", ["", "state", "locks"])
def test_what_belongs_to_another_user_is_refused(open_store, folder, monkeypatch, name):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")  # and so nobody else can leave such a file
    open_store().close()
    os.chown(folder / "pooled" / name, 4321, 4321)
    with pytest.raises(ConfigError, match="belongs to user 4321"):
        open_store()


@pytest.mark.parametrize("name", ["index.0", "segment-0000"])
def test_pages_of_another_user_are_not_loaded(open_store, folder, pool, name):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")  # and so nobody else can leave such a file
    with open_store() as store:
        assert all(set_pages(store, pool))
    os.chown(folder / "pooled" / name, 4321, 4321)
    store = open_store()
    assert get_pages(store, pool)[:4] == [False] * 4
    set_pages(store, pool)
    assert all(set_pages(store, pool))
    assert all(get_pages(store, pool))


@pytest.mark.parametrize("made", [False, True], ids=["no store", "a store"])
def test_a_folder_that_may_not_be_written_is_refused_with_its_path(open_store, folder, made):
    if made:
        open_store().close()
        for path in (folder / "pooled").iterdir():
            path.chmod(0o400)
    else:
        (folder / "pooled").mkdir(parents=True, mode=0o700)
        folder.chmod(0o700)
    (folder / "pooled").chmod(0o500)
    with (
        without_capabilities(),
        pytest.raises(ConfigError, match=f"storage folder {folder}/pooled: .*Permission"),
    ):
        open_store()
    assert names_open(folder) == []


def test_a_limit_of_the_file_size_recycles_instead(open_store, folder, pool):
    store = open_store()
    assert all(set_pages(store, pool))
    with file_size_limit(1 << 19):
        for _ in range(3):
            set_pages(store, pool)
        assert len(list((folder / "pooled").glob("segment-*"))) >= 2
    assert all(set_pages(store, pool))
    assert all(get_pages(store, pool))


def test_a_limit_of_the_file_size_at_the_beginning_is_an_error_and_the_store_works_later(open_store, pool):
    with file_size_limit(1 << 16), pytest.raises(HiCacheNixlError, match="File too large"):
        open_store()
    store = open_store()
    assert all(set_pages(store, pool))
    assert all(get_pages(store, pool))


def test_less_free_space_than_min_free_is_a_line_and_false(open_store, pool, log):
    store = open_store(min_free_gb=1 << 20)
    assert not any(set_pages(store, pool))
    assert "would leave less than min_free_gb free" in log.line()


def test_on_a_full_disk_the_oldest_pages_are_recycled(tmp_path):
    try:
        prefix = unshare()
    except OSError as error:
        pytest.skip(str(error))  # the full disk is a file system of its own, which has to be mounted
    (tmp_path / "small").mkdir()
    script = str(TESTS / "scripts" / "pooled_full_disk.py")
    found = answer_of(run_python(script, str(tmp_path / "small"), prefix=prefix))
    assert found["set"] == [[True] * 4] * 12
    assert found["loaded"] == [True] * 4
    assert found["segments"] == 2  # what fits beside state and index
    at_once, later = found["warnings"][:2]
    assert "more than the file system" in at_once
    assert "no new segment: [Errno 28]" in later
    assert found["warnings"][2:] == [at_once], "of the next store"
    assert "No space left" in found["no room at all"]
    assert found["later"] == [True] * 4
    assert "Read-only file system" in found["read only"]
