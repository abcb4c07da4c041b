"""How metrics are served, switched on and off, and what is left of them after the end."""

from __future__ import annotations

import re
import socket
import threading
import urllib.request

import pytest
from counting import PIECES, registered, set_pages
from prometheus_client.parser import text_string_to_metric_families
from support import (
    LEFT,
    TESTS,
    answer_of,
    files_in,
    names_open,
    run_python,
    storage_config,
)

from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import ConfigError
from hicache_nixl.metrics_families import table

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
