"""Servers one after the other, and ranks of one server, that share a storage folder; storage that fails at random."""

from __future__ import annotations

import os
import shutil

import pytest
from server_python import NEW, OLD, cache_arguments, lasting, together

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
ENDINGS = ("_k", "_v", "_mamba_temporal", "_mamba_conv_0")
FAILURES = {
    "SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY": "0.001",
    "SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.2",
}


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
@pytest.mark.parametrize("kind", ["multi_head", "mla"])
@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_server_that_is_started_again_finds_the_pages(server_python, version, kind, lifetime, tmp_path):
    for start in range(2):
        with server_python(version).process() as process, process.cache(tmp_path, lifetime, kind=kind):
            assert start == 1 or process.call("back_up", prompt=1, pages=130) == 130
            process.call("wipe")
            assert process.call("prefetch", prompt=1, pages=130) == {
                "loaded": 130,
                "right": 130,
                "outside": 0,
            }


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
def test_a_server_finds_the_pages_of_the_other_release(server_python, lifetime, tmp_path):
    with server_python(OLD).process() as process, process.cache(tmp_path, lifetime):
        process.call("back_up", prompt=1, pages=50)
    with server_python(NEW).process() as process, process.cache(tmp_path, lifetime):
        assert process.call("prefetch", prompt=1, pages=50)["right"] == 50


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
@pytest.mark.parametrize("controller", ["HiCacheController", "HybridCacheController"])
def test_each_rank_of_a_multi_head_model_has_pages_of_its_own(server_python, controller, lifetime, tmp_path):
    with server_python(NEW).processes(ranks=2) as ranks:
        _check_own_pages(ranks, tmp_path, lifetime, controller)


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
def test_each_rank_has_pages_of_its_own_in_0_5_11(server_python, lifetime, tmp_path):
    with server_python(OLD).processes(ranks=2) as ranks:
        _check_own_pages(ranks, tmp_path, lifetime, "HiCacheController")


def _check_own_pages(ranks, folder, lifetime, controller):
    together(ranks, "open", **cache_arguments(folder, lifetime, controller=controller))
    first, second = ranks
    first.send("back_up", prompt=1, pages=130, seed=10)
    second.send("back_up", prompt=1, pages=130, seed=20)
    assert [first.answer(), second.answer()] == [130, 130]
    together(ranks, "wipe")
    first.send("prefetch", prompt=1, pages=130, seed=10)
    second.send("prefetch", prompt=1, pages=130, seed=20)
    expected = {"loaded": 130, "right": 130, "outside": 0}
    assert [first.answer(), second.answer()] == [expected, expected]
    together(ranks, "close")


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
@pytest.mark.parametrize("version", [OLD, NEW])
def test_ranks_of_an_mla_model_share_the_pages_that_the_first_stores(
    server_python, version, lifetime, tmp_path
):
    with server_python(version).processes(ranks=2) as ranks:
        together(ranks, "open", **cache_arguments(tmp_path, lifetime, kind="mla"))
        ranks[0].send("back_up", prompt=1, pages=130)
        ranks[1].send("back_up", prompt=1, pages=130)
        assert [rank.answer() for rank in ranks] == [130, 0]  # the controller of rank 1 stores nothing
        together(ranks, "wipe")
        expected = {"loaded": 130, "right": 130, "outside": 0}
        assert together(ranks, "prefetch", prompt=1, pages=130) == [expected, expected]
        together(ranks, "close")
    if lifetime == "scoped":
        assert len(os.listdir(tmp_path)) == 130


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
@pytest.mark.parametrize(
    ("controller", "side_pools"),
    [
        ("HiCacheController", ()),
        ("HybridCacheController", ()),
        ("HybridCacheController", ("draft", "swa", "mamba")),
    ],
    ids=["HiCacheController", "HybridCacheController", "side_pools"],
)
def test_a_thousand_operations_on_storage_that_fails_at_random(
    server_python, controller, side_pools, lifetime, tmp_path
):
    """SGLang's own ``HiCacheStorageFailureInjector`` fails a fifth of the calls and delays all of them."""
    with server_python(NEW).process(**FAILURES) as process:
        before = process.call("held")
        with process.cache(tmp_path, lifetime, controller=controller, side_pools=side_pools):
            process.call("mix", operations=20, pages=4, at_once=4)
            attached = lasting(process.call("held"))
            moved = process.call("mix", operations=1000, pages=4, at_once=4)
            assert set(process.call("threads").values()) == {True}
            assert process.call("storage") == "HiCacheStorageFailureInjector"
            assert lasting(process.call("held")) == attached
        assert process.call("held") == before
    assert moved["wrong"] == 0
    assert moved["failed"] > 100
    assert min(moved["stored"], moved["loaded"]) > 100
    if lifetime == "scoped":
        assert [
            name for name in os.listdir(tmp_path) if not name.endswith(ENDINGS)
        ] == []  # of temporary files


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
@pytest.mark.parametrize("version", [OLD, NEW])
def test_the_threads_live_on_when_the_folder_is_removed(server_python, version, lifetime, tmp_path):
    """In 0.5.11 a backend that raises ends the thread that called it."""
    with server_python(version).process() as process, process.cache(tmp_path / "store", lifetime):
        process.call("back_up", prompt=1, pages=20)
        shutil.rmtree(tmp_path / "store")
        for prompt in (1, 2):
            process.call("back_up", prompt=prompt, pages=20)
            process.call("wipe")
            found = process.call("prefetch", prompt=prompt, pages=20)
            assert found["right"] >= found["loaded"]
        assert set(process.call("threads").values()) == {True}
