"""What a connector counts is what was done, in every lifetime; nothing is left of it after ``close()``."""

from __future__ import annotations

import ast
import gc
import os
import re
import socket
import sys
import threading
import types
import urllib.request
import zipfile

import pytest
import torch
from faults import err_once_it_is_over
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from several import hashed, page_of, register, several_pools, transfer
from support import (
    LEFT,
    MODEL,
    TESTS,
    answer_of,
    files_in,
    free_descriptors,
    keys_of,
    make_pool,
    names_open,
    run_python,
    storage_config,
)

from hicache_nixl import HiCacheNixl
from hicache_nixl.config import LIFETIMES
from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.worker.releases import fetch, known_releases
from hicache_nixl.metrics import SGLANG, StorageMetrics
from hicache_nixl.metrics_families import table

PAGE_BYTES = 6144  # of make_pool
PIECES = 2


@pytest.fixture(params=LIFETIMES)
def lifetime(request):
    return request.param


@pytest.fixture
def pool():
    return make_pool(False, "page_first")


@pytest.fixture
def store(make_store, lifetime, pool):
    return make_store(lifetime, pool=pool, metrics=True)


@pytest.fixture
def value(lifetime):
    """Return the value of a metric of this lifetime; 0 where there is none."""

    def read(name, **labels):
        own = {"lifetime": lifetime, "model_name": MODEL, "tp_rank": "0"}
        return REGISTRY.get_sample_value(f"hicache_nixl_{name}", own | labels) or 0

    return read


def registered():
    return [name for name in REGISTRY._names_to_collectors if "hicache" in name]


def set_pages(store, pool, count, first=0):
    return store.batch_set_v1(keys_of(first + count)[first:], pool.page_indices(first, count))


# -- counts ----------------------------------------------------------------------------------------------


def test_pages_and_bytes_that_were_stored_and_loaded(store, pool, value):
    assert all(set_pages(store, pool, 3))
    assert all(store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)))
    assert (value("pages_total", operation="set"), value("pages_total", operation="get")) == (3, 2)
    assert value("bytes_total", operation="set") == 3 * PAGE_BYTES
    assert value("bytes_total", operation="get") == 2 * PAGE_BYTES


@pytest.mark.parametrize("layout", ["layer_first", "page_first_direct"])
def test_bytes_do_not_depend_on_the_layout(make_store, lifetime, layout, value):
    pool = make_pool(False, layout)
    store = make_store(lifetime, pool=pool, metrics=True)
    assert all(set_pages(store, pool, 3))
    assert all(store.batch_get_v1(keys_of(3), pool.page_indices(0, 3)))
    assert value("bytes_total", operation="set") == value("bytes_total", operation="get") == 3 * PAGE_BYTES


def test_values_are_pages_too(store, value):
    assert store.batch_set(["a", "b"], [torch.zeros(4), torch.zeros(8)])
    assert store.get("a", torch.zeros(4)) is not None
    assert (value("pages_total", operation="set"), value("bytes_total", operation="set")) == (2, 48)
    assert (value("pages_total", operation="get"), value("bytes_total", operation="get")) == (1, 16)


def test_hits_and_misses_of_a_get(store, pool, value, lifetime):
    set_pages(store, pool, 2)
    answers = store.batch_get_v1(["page0", "nowhere", "page1"], pool.page_indices(0, 3))
    assert answers == LEFT[lifetime].answers(True, False, True)
    hits = sum(answers)
    assert (value("hits_total", operation="get"), value("misses_total", operation="get")) == (hits, 3 - hits)
    assert value("bytes_total", operation="get") == hits * PAGE_BYTES
    assert [name for name in samples("failures_total") if name] == [], (
        "a page that is not stored is no failure"
    )


def test_hits_and_misses_of_a_lookup(store, pool, value):
    set_pages(store, pool, 2)
    assert store.batch_exists(["page0", "page1", "nowhere", "page0"]) == 2
    assert store.exists("page0")
    assert (value("hits_total", operation="exists"), value("misses_total", operation="exists")) == (3, 2)


def test_each_call_is_timed_by_its_name(store, pool, value):
    for _ in range(3):
        set_pages(store, pool, 1)
    store.batch_exists(keys_of(1))
    store.clear()
    counts = {
        name: value("seconds_count", operation=name) for name in ("batch_set_v1", "batch_exists", "clear")
    }
    assert counts == {"batch_set_v1": 3, "batch_exists": 1, "clear": 1}
    assert value("seconds_sum", operation="batch_set_v1") > 0


def test_pages_of_every_host_pool_count(make_store, lifetime, value):
    pools, keys = several_pools(), hashed(3)
    store = make_store(lifetime, metrics=True)
    register(store, pools)
    transfers = [transfer(name, pool, keys) for name, pool in pools.items()]
    assert all(map(all, store.batch_set_v2(transfers).values()))
    assert all(map(all, store.batch_get_v2(transfers).values()))
    assert store.batch_exists_v2([*keys, "nowhere"], transfers[1:]).kv_hit_pages == 3
    assert value("pages_total", operation="set") == value("hits_total", operation="get") == 3 * len(pools)
    size = sum(len(page_of(pool, 0)) for pool in pools.values())
    assert value("bytes_total", operation="set") == value("bytes_total", operation="get") == 3 * size
    assert (value("hits_total", operation="exists"), value("misses_total", operation="exists")) == (3, 1)
    for call in ("batch_set_v2", "batch_get_v2", "batch_exists_v2"):
        assert value("seconds_count", operation=call) == 1, "one call of all pools"


# -- failures --------------------------------------------------------------------------------------------


def samples(name):
    """Return the samples of a metric in the registry: the value by its own labels."""
    return {
        tuple(sample.labels[label] for label in ("operation", "reason")): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == f"hicache_nixl_{name}"
    }


def test_no_descriptor_left_is_a_failure_of_each_page(store, pool):
    with free_descriptors(0):
        assert set_pages(store, pool, 2) == [False, False]
    assert samples("failures_total") == {("set", "EMFILE"): 2}


def test_a_transfer_that_fails_in_nixl_is_a_failure_of_its_pages(store, pool, replace_method):
    set_pages(store, pool, 2)
    agent = store.lifetime.registration.agent
    poll = agent.check_xfer_state
    replace_method(agent, "transfer", lambda handle: "ERR")
    replace_method(agent, "check_xfer_state", lambda handle: err_once_it_is_over(poll, handle))
    assert store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)) == [False, False]
    assert samples("failures_total") == {("get", "TransferError"): 2}


def test_wrong_arguments_are_failures_with_the_class_of_the_error(make_store, lifetime, pool):
    store = make_store(lifetime, metrics=True)
    assert store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)) == [False] * 3
    store.register_mem_pool_host(pool)
    assert store.batch_get_v1(["a/b"], pool.page_indices(0, 1)) == [False]
    assert store.batch_exists("no list") == 0
    assert samples("failures_total") == {
        ("set", "PageIndexError"): 3,
        ("get", "KeyRefusedError"): 1,
        ("exists", "KeyRefusedError"): 1,
    }


@pytest.mark.parametrize("lifetime", ["pooled"])
def test_a_damaged_page_is_a_failure_not_a_miss(store, pool, folder, value):
    set_pages(store, pool, 1)
    (segment,) = (folder / "pooled").glob("segment-*")
    with segment.open("r+b") as file:
        file.write(os.urandom(16))
    assert store.batch_get_v1(keys_of(1), pool.page_indices(0, 1)) == [False]
    assert samples("failures_total") == {("get", "DamagedError"): 1}
    assert value("misses_total", operation="get") == 0


def test_where_it_cannot_be_counted_the_call_goes_on_and_one_line_says_so(store, pool, monkeypatch, log):
    def failing(*args):
        raise OSError("made to fail")

    monkeypatch.setattr(store._calls.metrics, "moved", failing)
    monkeypatch.setattr(store._calls.metrics, "called", failing)
    assert all(set_pages(store, pool, 2))
    assert store.batch_exists(keys_of(2)) == 2
    assert log.line() == "metrics are not complete from now on"


# -- what is open ----------------------------------------------------------------------------------------


def test_open_descriptors_and_registrations_are_what_the_lifetime_leaves(
    store, pool, value, folder, lifetime
):
    left = LEFT[lifetime]
    before, held = value("open_fds"), value("registrations")
    set_pages(store, pool, 3)
    files = 3 * PIECES
    expected = left.fds * files + left.opened_once
    assert value("open_fds") - before == expected
    assert value("open_fds") == len(names_open(folder)) + (lifetime == "scoped")  # that holds the folder, too
    expected = (left.file_registrations + left.buffer_registrations) * files
    lanes = 1 if lifetime == "pooled" else 0  # small batches use one of two
    assert value("registrations") - held == expected + lanes


@pytest.mark.parametrize("lifetime", ["scoped"])
def test_a_registration_that_fails_is_not_counted(store, pool, value, replace_method):
    held = value("registrations")
    kind = type(store.lifetime.registration.agent)
    original = kind.register_memory

    def failing(*args):
        raise RuntimeError("made to fail")

    kind.register_memory = failing
    try:
        assert set_pages(store, pool, 1) == [False]
    finally:
        kind.register_memory = original
    assert value("registrations") == held > 0


@pytest.mark.parametrize("lifetime", ["scoped"])
def test_an_agent_that_is_replaced_takes_its_registrations_with_it(make_store, lifetime, pool, value):
    store = make_store(lifetime, pool=pool, metrics=True, posix={"queue": "posix_aio"})
    assert all(set_pages(store, pool, 1))
    before, replaced = value("registrations"), store.lifetime.registration.agent
    replaced.transfer = lambda handle: "ERR"
    store.batch_get_v1(keys_of(1), pool.page_indices(0, 1))
    assert store.lifetime.registration.agent is not replaced
    del replaced
    gc.collect()
    assert value("registrations") == before


@pytest.mark.parametrize("lifetime", ["pooled"])
def test_the_size_of_a_store_is_in_bytes_beside_its_capacity(store, pool, value):
    assert value("store_bytes") == 0
    set_pages(store, pool, 3)
    assert value("store_bytes") == 3 * PAGE_BYTES
    assert value("store_capacity_bytes") == 20 << 20


# -- for SGLang ------------------------------------------------------------------------------------------


def test_the_stats_are_the_transfers_since_the_last_look(store, pool):
    set_pages(store, pool, 3)
    set_pages(store, pool, 1)
    store.batch_get_v1(keys_of(2), pool.page_indices(0, 2))
    stats = store.get_stats()
    assert (stats.backup_pgs, stats.prefetch_pgs) == ([3, 1], [2])
    assert len(stats.backup_bandwidth) == 2
    assert all(0 < each < 1000 for each in stats.backup_bandwidth + stats.prefetch_bandwidth)
    again = store.get_stats()
    assert (again.backup_pgs, again.prefetch_pgs, again.prefetch_bandwidth) == ([], [], [])


@pytest.mark.parametrize("lifetime", ["scoped"])
@pytest.mark.parametrize("version", sorted(known_releases()))
def test_in_a_server_the_stats_are_sglang_s_own(released, version, store, pool, monkeypatch):
    """Its class, from the source of the release; ``log_storage_metrics`` of the server asserts it."""
    released(f"sglang=={version}")
    source = zipfile.ZipFile(fetch(version)).read(f"{SGLANG.replace('.', '/')}.py")
    (made,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == "StorageMetrics"]
    module = types.ModuleType(SGLANG)
    monkeypatch.setitem(sys.modules, SGLANG, module)
    text = "from dataclasses import dataclass, field\nfrom typing import List\n" + ast.unparse(made)
    exec(compile(text, SGLANG, "exec", dont_inherit=True), vars(module))
    set_pages(store, pool, 2)
    stats = store.get_stats()
    assert type(stats) is module.StorageMetrics
    assert stats.backup_pgs == [2]
    assert list(vars(stats)) == list(vars(StorageMetrics()))


# -- the end ---------------------------------------------------------------------------------------------


def test_nothing_is_left_after_close_and_the_next_one_starts_at_zero(make_store, lifetime, pool, value):
    threads = set(threading.enumerate())
    for _ in range(2):
        store = make_store(lifetime, pool=pool, metrics=True, metrics_port=0)
        port = store._calls.metrics.port
        assert all(set_pages(store, pool, 1))
        assert value("pages_total", operation="set") == 1
        store.close()
        store.close()
        assert registered() == []
        assert set(threading.enumerate()) <= threads
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            pass


def test_two_connectors_share_the_metrics_and_the_last_one_unregisters_them(
    make_store, lifetime, pool, tmp_path, value
):
    one, two = (make_store(lifetime, pool=pool, path=str(tmp_path / name), metrics=True) for name in "ab")
    set_pages(one, pool, 1)
    set_pages(two, pool, 2)
    assert value("pages_total", operation="set") == 3
    both = value("open_fds")
    two.close()
    assert 0 <= value("open_fds") <= both - LEFT[lifetime].fds * 2 * PIECES - LEFT[lifetime].opened_once
    set_pages(one, pool, 1)
    assert value("pages_total", operation="set") == 4
    one.close()
    assert registered() == []


def test_descriptors_of_a_folder_that_two_connectors_share_are_counted_once(
    make_store, lifetime, pool, folder, value
):
    one, two = (make_store(lifetime, pool=pool, metrics=True) for _ in range(2))
    set_pages(one, pool, 1)
    expected = len(names_open(folder)) + 2 * (lifetime == "scoped")
    assert value("open_fds") == expected
    one.close()
    assert value("open_fds") == len(names_open(folder)) + (lifetime == "scoped")
    two.close()


def test_a_connector_that_cannot_be_made_leaves_no_metrics(tmp_path, lifetime):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="storage folder"):
        HiCacheNixl(storage_config(lifetime, metrics=True, metrics_port=0), str(tmp_path / "file"))
    assert registered() == []


# -- over HTTP -------------------------------------------------------------------------------------------


def test_a_port_of_its_own_serves_the_metrics_of_the_connector_and_no_others(make_store, lifetime, pool):
    store = make_store(lifetime, pool=pool, metrics=True, metrics_port=0)
    set_pages(store, pool, 2)
    url = f"http://127.0.0.1:{store._calls.metrics.port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert all(name.startswith("hicache_nixl_") for name in families)
    (stored,) = [
        s
        for s in families["hicache_nixl_pages"].samples
        if s.labels["operation"] == "set" and s.name.endswith("total")
    ]
    assert stored.value == 2
    assert families["hicache_nixl_registrations"].samples[0].value > 0


def test_a_port_that_is_taken_is_one_line_at_construction(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        expected = (
            f"^metrics_port: 127.0.0.1:{port}: Address already in use; expected a free port, or 0 for any$"
        )
        with pytest.raises(ConfigError, match=expected):
            HiCacheNixl(storage_config(metrics=True, metrics_port=port), str(tmp_path / "pages"))
    assert files_in(tmp_path) == []
    assert registered() == []


def test_each_rank_has_a_port_of_its_own(make_store, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = make_store(tp_rank=1, tp_size=2, metrics=True, metrics_port=port - 1)
    assert store._calls.metrics.port == port


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"metrics": "perhaps"}, ["metrics", "'perhaps'", "boolean"]),
        ({"metrics_port": 9400}, ["metrics_port: set metrics to true"]),
        ({"metrics": True, "metrics_port": 65536}, ["metrics_port", "65535"]),
        ({"metrics": True, "metrics_port": True}, ["metrics_port", "number"]),
        ({"metrics": True, "metrics_port": "web"}, ["metrics_port", "integer"]),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_line_that_names_it(extra, named, tmp_path):
    with pytest.raises(ConfigError) as raised:
        HiCacheNixl(storage_config(**extra), str(tmp_path / "pages"))
    assert "\n" not in str(raised.value)
    assert [text for text in named if text not in str(raised.value)] == []


def test_the_documentation_has_every_metric():
    text = (TESTS.parent / "docs/metrics.md").read_text()
    assert "\n".join(table()) in text
    assert set(re.findall(r"hicache_nixl_\w+", text)) <= set(
        re.findall(r"hicache_nixl_\w+", "\n".join(table()))
    )


# -- processes of their own ------------------------------------------------------------------------------


def test_switched_off_nothing_is_imported_wrapped_or_counted():
    code = """
import json, sys, tempfile, torch
from support import storage_config, make_pool, keys_of
from hicache_nixl import HiCacheNixl
from hicache_nixl.calls import Calls
found = []
for lifetime in ("leaky", "try_finally", "scoped", "pooled"):
    with tempfile.TemporaryDirectory() as folder, HiCacheNixl(storage_config(lifetime), folder) as store:
        pool = make_pool(False, "page_first")
        store.register_mem_pool_host(pool)
        assert all(store.batch_set_v1(keys_of(1), pool.page_indices(0, 1)))
        found.append([type(store._calls) is Calls, store.get_stats(),
                      "register_memory" in vars(store.lifetime.registration.agent)])
print(json.dumps([found, [name for name in sys.modules if "prometheus" in name or "hicache_nixl.metrics" in name]]))
"""
    assert answer_of(run_python("-c", code)) == [[[True, None, False]] * 4, []]


def test_without_prometheus_client_it_is_one_line_that_says_what_to_install(tmp_path):
    code = f"""
import json, sys
sys.modules["prometheus_client"] = None
from support import storage_config
from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import ConfigError
try:
    HiCacheNixl(storage_config(metrics=True), {str(tmp_path / "pages")!r})
except ConfigError as error:
    print(json.dumps(str(error)))
"""
    message = answer_of(run_python("-c", code))
    assert message.startswith("metrics: it needs prometheus-client")
    assert message.endswith("pip install prometheus-client")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
def test_with_several_processes_counts_are_added_up_and_gauges_are_those_that_live(tmp_path, lifetime):
    both, one, none = answer_of(
        run_python(str(TESTS / "scripts" / "metrics_processes.py"), str(tmp_path), lifetime)
    )
    assert (both["pages set"], one["pages set"], none["pages set"]) == (5, 5, 5)
    assert both["hits exists"] == 5
    assert both["ranks"] == ["0", "1"]
    assert both["open_fds"] == 2 * one["open_fds"] > 0
    assert none["open_fds"] == none["registrations"] == 0
    if lifetime == "pooled":
        assert both["store_capacity_bytes"] == one["store_capacity_bytes"] == 20 << 20
