"""What the benchmark plans: points, arms, disk."""

from __future__ import annotations

import resource
import shutil

import pytest

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.bench.measure import options_of
from hicache_nixl.lab.bench.plan import ARMS, EVERY, GIB, KIB, MIB, Point, make_plan

CACHED, DIRECT = (Point("libaio", direct, 4 * KIB) for direct in (False, True))


def test_the_whole_has_five_sizes_two_queues_and_both_caches():
    plan = make_plan()
    assert len(plan.points) == 5 * 2 * 2
    assert plan.arms == tuple(ARMS)


def test_quick_has_three_sizes_libaio_and_the_page_cache():
    plan = make_plan(quick=True)
    assert [str(point) for point in plan.points] == [
        f"page cache, libaio, {size}" for size in ("4 KiB", "64 KiB", "1 MiB")
    ]


def test_options_take_the_place_of_what_is_usual():
    plan = make_plan(page_kib=[64, 4, 64], queues=["posix_aio"], direct=True, arms=["scoped", "pooled"])
    assert [str(point) for point in plan.points] == [
        "O_DIRECT, posix_aio, 4 KiB",
        "O_DIRECT, posix_aio, 64 KiB",
    ]
    assert plan.arms == ("pooled", "scoped")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"page_kib": [0]}, "--page-kib 0: expected 1 to 16384"),
        ({"page_kib": [16385]}, "--page-kib 16385"),
        ({"queues": ["uring"]}, "--queue uring is unknown; expected one of libaio"),
        ({"arms": ["full"]}, "--arm full is unknown; expected one of pooled"),
        ({"arms": ["leaky"], "direct": True}, "--arm leaky has no O_DIRECT"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(**options)


def test_leaky_is_refused_where_it_would_reach_the_limit(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (20000, 20000))
    with pytest.raises(
        ConfigError, match=r"leaky keeps 81920 descriptors .* limit is 20000 .* --page-kib 512"
    ):
        make_plan(quick=True, arms=["leaky"])
    assert make_plan(quick=True, arms=["leaky"], page_kib=[512]).arms == ("leaky",)


def test_with_o_direct_the_arms_that_cannot_use_it_are_left_out():
    assert CACHED.arms(list(EVERY)) == list(EVERY)
    assert set(EVERY) - set(DIRECT.arms(list(EVERY))) == {"sglang-file", "ceiling", "full-cold"}
    assert "ceiling" in Point("libaio", True, 64 * KIB).arms(list(ARMS))


def test_a_turn_has_fewer_calls_of_large_pages():
    assert [Point("libaio", False, size * KIB).calls for size in (4, 64, 256, 1024)] == [16, 8, 2, 1]


def test_further_rows_need_pooled_and_are_measured_at_4_and_64_kib():
    assert [point.page_bytes for point in make_plan(quick=True).further] == [4 * KIB, 64 * KIB]
    assert [point.page_bytes for point in make_plan(page_kib=[256, 16]).further] == [16 * KIB]
    assert make_plan(page_kib=[1024]).further, "a call of 128 MiB"
    assert make_plan(page_kib=[2048]).further == (), "too large for a store that is full soon"
    assert make_plan(arms=["scoped"]).further == ()


def test_the_disk_that_is_needed_is_that_of_the_largest_pages():
    plan = make_plan(quick=True, page_kib=[1024], arms=["scoped"])
    assert plan.needed() == (9 + 1) * 128 * MIB


def test_a_disk_that_is_too_small_is_refused(monkeypatch, tmp_path):
    plan = make_plan(quick=True, arms=["scoped"], page_kib=[1024])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=plan.needed()))
    with pytest.raises(ConfigError, match=r"not enough disk: up to 1.2 GiB .* --storage-dir"):
        plan.check_space(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * plan.needed()))
    assert plan.check_space(tmp_path).startswith("writes up to 1.2 GiB at a time")


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected an existing, writable folder"):
        make_plan().check_space(tmp_path / "missing")


def test_only_the_full_store_recycles():
    plan = make_plan(quick=True)
    capacities = {
        arm: options_of(EVERY[arm], plan, CACHED)["capacity_gb"] * GIB for arm in ("pooled", "empty", "full")
    }
    assert capacities["full"] == 8 * 32 * MIB
    assert min(capacities["pooled"], capacities["empty"]) > 2 * plan.written(CACHED)
    assert "capacity_gb" not in options_of(EVERY["scoped"], plan, CACHED)
