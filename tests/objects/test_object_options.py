"""Options of objects: those that cannot work, and the usual variables."""

from __future__ import annotations

import pytest
from support import OBJECTS, keys_of, object_store, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import ConfigError, PluginError

BAD = {
    "a line feed": (
        {"plugin": {"obj": {"active": True, "bucket": "b", "access_key": "key\n", "secret_key": "s"}}},
        "access_key: there is white space in it",
    ),
    "credentials in the URL": (
        {"plugin": {"obj": {"active": True, "bucket": "b", "endpoint_override": "http://me:secret@host"}}},
        "endpoint_override: there are no credentials in a URL",
    ),
    "min_free_gb": ({"min_free_gb": 1}, "min_free_gb: the free space of an object store is not known"),
    "object_timeout": ({"object_timeout": 0}, "object_timeout"),
    "a flag": ({"object_timeout": True}, "object_timeout.*expected a number"),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_cannot_work_are_refused(open_store, name):
    extra, says = BAD[name]
    with pytest.raises((ConfigError, PluginError), match=says) as raised:
        open_store("pooled", obj=extra.get("plugin", {}).get("obj"), extra=extra)
    assert "secret" not in str(raised.value)


def test_clear_keeps_what_lies_in_a_folder_of_the_bucket(open_store, pool):
    """Such as a copy of the pages: a name ends like one of this model's, but a name of this model has no slash."""
    store = open_store("scoped")
    assert all(store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)))
    client = object_store().client()
    names = [entry["path"] for part in client.list() for entry in part]
    for name in names:
        client.put(f"backup/{name}", b"a copy")
    store.clear()
    left = [entry["path"] for part in client.list() for entry in part]
    assert sorted(left) == sorted(f"backup/{name}" for name in names) != []


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
def test_the_usual_variables_are_enough(lifetime, pool, monkeypatch):
    """The flat form has no secret in it."""
    for name, value in object_store().variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SGLANG_HICACHE_NIXL_BACKEND_PLUGIN", "OBJ")
    config = storage_config(lifetime + OBJECTS)
    config.extra_config.clear()
    config.extra_config.update({"lifetime": lifetime, "scheme": "http"})
    with HiCacheNixl(config) as store:
        store.register_mem_pool_host(pool)
        assert all(store.batch_set_v1(keys_of(3), pool.page_indices(0, 3)))
        assert store.batch_exists(keys_of(3)) == 3
