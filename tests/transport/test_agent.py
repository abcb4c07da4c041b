"""Which NIXL plugin is created, what is said when it cannot be, and what SGLang's loader needs."""

from __future__ import annotations

import logging
import os
import sys
from types import ModuleType

import pytest
import torch
from support import _open_fds, answer_of, files_in, make_pool, run_python, scramble, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl import config as configuration
from hicache_nixl.config import PLUGIN_VARIABLE, QUEUES, STORAGE_DIR_VARIABLE, NixlBackendConfig
from hicache_nixl.contract import UPSTREAM_MODULE
from hicache_nixl.errors import ConfigError, HiCacheNixlError, NixlMissingError, PluginError
from hicache_nixl.transport import agent as plugins


def active(name, **params):
    return NixlBackendConfig({"plugin": {name: {"active": True, **params}}})


@pytest.fixture
def make_agent():
    """Make live agents that no plugin was created in."""
    api = plugins.load_nixl()
    return lambda name="bare": api.nixl_agent(name, api.nixl_agent_config(backends=[]))


# -- the plugins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [None, *QUEUES])
def test_every_queue_of_posix_moves_bytes(make_store, folder, queue):
    pool = make_pool(False, "page_first")
    store = make_store(pool=pool, posix={"queue": queue})
    before = pool.kv_buffer.clone()
    assert all(store.batch_set_v1([f"page{page}" for page in range(8)], pool.page_indices(0, 8)))
    scramble(pool)
    assert all(store.batch_get_v1([f"page{page}" for page in range(8)], pool.page_indices(0, 8)))
    assert torch.equal(pool.kv_buffer.view(torch.uint8), before.view(torch.uint8))
    assert len(files_in(folder)) == 16


def test_io_uring_really_is_what_was_asked_for(make_store, folder):
    before = _open_fds()
    make_store(posix={"queue": "io_uring"})
    opened = [target for fd, target in _open_fds().items() if fd not in before]
    assert opened == ["anon_inode:[io_uring]", str(folder)]


def test_auto_mode_takes_the_first_file_plugin_that_works_which_is_posix_here():
    backend = plugins.make_backend(NixlBackendConfig({}))
    assert (backend.plugin, backend.mem_type) == ("POSIX", "FILE")


def test_a_plugin_asked_for_by_name_that_cannot_be_created_is_an_error():
    with pytest.raises(PluginError, match=r"plugin GDS cannot be created.*POSIX works without"):
        plugins.make_backend(active("gds"))


def test_a_plugin_that_nixl_does_not_have_is_an_error_that_lists_what_it_has():
    with pytest.raises(PluginError, match=r"3FS is not part of this NIXL.*POSIX"):
        plugins.make_backend(active("3fs"))


def test_auto_mode_skips_what_cannot_be_created_and_says_so_once(make_agent, caplog):
    plugins._say_once.cache_clear()
    for name in ("first", "second"):
        candidates = ("GDS_MT", "GDS", "POSIX")
        assert plugins.create_first(make_agent(name), NixlBackendConfig({}), candidates) == "POSIX"
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name == "hicache_nixl.transport.agent" and record.levelno == logging.WARNING
    ]
    assert len(lines) == 2
    assert "skips plugin GDS_MT" in lines[0]
    assert "skips plugin GDS" in lines[1]


def test_when_no_candidate_works_the_error_has_every_reason(make_agent):
    with pytest.raises(PluginError) as raised:
        plugins.create_first(make_agent(), NixlBackendConfig({}), ("3FS", "GDS_MT", "GDS"))
    assert "GDS_MT cannot be created" in str(raised.value)
    assert "plugin GDS cannot be created" in str(raised.value)


def test_a_wrong_parameter_ends_auto_mode_and_is_not_skipped():
    with pytest.raises(ConfigError, match="use_urnig"):
        plugins.make_backend(NixlBackendConfig({"use_urnig": "true"}))


# -- OBJ -------------------------------------------------------------------------------------------------


def test_obj_without_a_bucket_names_both_ways_to_set_one():
    with pytest.raises(PluginError, match=r"plugin\.obj\.bucket or AWS_DEFAULT_BUCKET"):
        plugins.make_backend(active("obj"))


def test_obj_takes_its_bucket_from_the_environment_and_shows_no_secret(make_agent, monkeypatch):
    """The build for CUDA 13 cannot create OBJ here, so its error shows the parameters."""
    monkeypatch.setenv("AWS_DEFAULT_BUCKET", "from-environment")
    with pytest.raises(PluginError) as raised:
        plugins.create_plugin(
            make_agent(), "OBJ", active("obj", secret_key="hidden", access_key="hidden-too")
        )
    assert "from-environment" in str(raised.value)
    assert "hidden" not in str(raised.value)
    assert "nixl_cu12" in str(raised.value)


@pytest.mark.parametrize("lifetime", ["leaky", "try_finally", "scoped", "pooled"])
def test_the_lifetimes_of_the_releases_leave_retries_to_the_aws_client(lifetime, monkeypatch):
    for name in plugins.ATTEMPTS:
        monkeypatch.delenv(name, raising=False)
    seen = {}

    class Agent:
        def get_plugin_list(self):
            return ["OBJ"]

        def create_backend(self, plugin, params):
            seen.update({name: os.environ.get(name) for name in plugins.ATTEMPTS}, **params)

    section = {"active": True, "bucket": "b", "access_key": "a", "secret_key": "s"}
    plugins.create_plugin(
        Agent(), "OBJ", NixlBackendConfig({"lifetime": lifetime, "plugin": {"obj": section}})
    )
    released = lifetime in ("leaky", "try_finally")
    assert {name: seen[name] for name in plugins.ATTEMPTS} == (
        dict.fromkeys(plugins.ATTEMPTS) if released else plugins.ATTEMPTS
    )
    assert ("num_threads" in seen) is not released
    assert not plugins.ATTEMPTS.keys() & os.environ.keys()


def test_obj_prefers_the_build_whose_plugin_loads_without_cuda():
    code = """
import json
from hicache_nixl import HiCacheNixl
from hicache_nixl.transport import agent as plugins
from hicache_nixl.errors import PluginError
from support import storage_config
config = storage_config()
config.extra_config["plugin"] = {"obj": {"active": True}}
try:
    HiCacheNixl(config)
except PluginError as error:
    print(json.dumps([plugins.load_nixl("OBJ").__name__, str(error)]))
"""
    module, message = answer_of(run_python("-c", code))
    assert module == "nixl_cu12._api"
    assert "AWS_DEFAULT_BUCKET" in message


# -- NIXL itself -----------------------------------------------------------------------------------------


def test_without_nixl_construction_is_one_line_that_says_what_to_install():
    code = """
import json, sys
for name in ("nixl", "nixl_cu12", "nixl_cu13"):
    sys.modules[name] = None
from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import NixlMissingError
from support import storage_config
messages = []
for section in ({"posix": {"active": True}}, {"obj": {"active": True, "bucket": "pages"}}):
    config = storage_config()
    config.extra_config["plugin"] = section
    try:
        HiCacheNixl(config)
    except NixlMissingError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""
    messages = answer_of(run_python("-c", code))
    assert len(messages) == 2
    for message in messages:
        assert "pip install nixl" in message
        assert "Linux" in message
        assert "\n" not in message


def test_a_missing_nixl_is_an_import_error_of_ours():
    assert issubclass(NixlMissingError, HiCacheNixlError)
    assert issubclass(NixlMissingError, ImportError)


# -- the environment and SGLang's dynamic loader ---------------------------------------------------------


def test_the_environment_overrides_the_storage_folder_of_the_argument(make_store, tmp_path, monkeypatch):
    monkeypatch.setenv(STORAGE_DIR_VARIABLE, str(tmp_path / "from_environment"))
    assert make_store().set("key", torch.zeros(4))
    assert files_in(tmp_path / "from_environment") == ["key_org-model_0_1"]


def test_the_environment_names_the_plugin(tmp_path, monkeypatch):
    monkeypatch.setenv(PLUGIN_VARIABLE, "gds")
    config = storage_config()
    del config.extra_config["plugin"]
    with pytest.raises(PluginError, match="plugin GDS"):
        HiCacheNixl(config, str(tmp_path))


def test_the_storage_folder_may_be_a_path(make_store, tmp_path):
    assert make_store(path=tmp_path / "as_path").set("key", torch.zeros(4))
    assert files_in(tmp_path / "as_path") == ["key_org-model_0_1"]


def test_sglang_s_dynamic_loader_passes_a_dict_for_the_folder_and_keys_of_its_own(
    make_store, tmp_path, monkeypatch
):
    monkeypatch.setattr(configuration, "DEFAULT_STORAGE_DIR", str(tmp_path / "default"))
    added = {
        "backend_name": "nixl",
        "module_path": "hicache_nixl",
        "class_name": "HiCacheNixl",
        "interface_v1": 1,
    }
    assert make_store(path=dict(added), **added).set("key", torch.zeros(4))
    assert files_in(tmp_path / "default") == ["key_org-model_0_1"]


def test_inside_a_server_the_base_is_sglang_s_own_class(tmp_path):
    """Its loader refuses a class that does not inherit from HiCacheStorage."""
    code = f"""
import json, sys, types
from abc import ABC, abstractmethod

class HiCacheStorage(ABC):
    def register_mem_pool_host(self, mem_pool_host):
        self.mem_pool_host = mem_pool_host
    @abstractmethod
    def get(self, key, target_location=None, target_sizes=None): ...
    @abstractmethod
    def batch_get(self, keys, target_locations=None, target_sizes=None): ...
    @abstractmethod
    def set(self, key, value=None, target_location=None, target_sizes=None): ...
    @abstractmethod
    def batch_set(self, keys, values=None, target_locations=None, target_sizes=None): ...
    @abstractmethod
    def exists(self, key): ...
    def batch_exists(self, keys, extra_info=None): ...
    def batch_get_v1(self, keys, host_indices, extra_info=None): ...
    def batch_set_v1(self, keys, host_indices, extra_info=None): ...

module = types.ModuleType("sglang.srt.mem_cache.hicache_storage")
module.HiCacheStorage = HiCacheStorage
sys.modules[module.__name__] = module

from hicache_nixl import HiCacheNixl
from support import keys_of, make_pool, storage_config
pool = make_pool(False, "page_first")
with HiCacheNixl(storage_config(), {str(tmp_path)!r}) as store:
    early = store.batch_set_v1(keys_of(2), pool.page_indices(0, 2))
    store.register_mem_pool_host(pool)
    late = store.batch_set_v1(keys_of(2), pool.page_indices(0, 2))
    print(json.dumps([issubclass(HiCacheNixl, HiCacheStorage), early, late, store.batch_exists(keys_of(2))]))
"""
    assert answer_of(run_python("-c", code)) == [True, [False, False], [True, True], 2]


def test_an_sglang_with_another_interface_is_refused_with_what_it_lacks(tmp_path):
    """The connector loads, since SGLang's loader only checks its base; its constructor says what is wrong."""
    code = f"""
import json, sys, types
storage = types.ModuleType("sglang.srt.mem_cache.hicache_storage")
storage.HiCacheStorage = type("HiCacheStorage", (), dict(batch_exists=None, batch_get_v1=None))
sys.modules[storage.__name__] = storage
sys.modules["sglang"] = types.ModuleType("sglang")
sys.modules["sglang"].__version__ = "0.4.10"

from hicache_nixl.connector import HiCacheNixl
from hicache_nixl.errors import ConfigError
from support import storage_config
try:
    HiCacheNixl(storage_config(), {str(tmp_path / "pages")!r})
except ConfigError as error:
    print(json.dumps([issubclass(HiCacheNixl, storage.HiCacheStorage), str(error)]))
"""
    assert answer_of(run_python("-c", code)) == [
        True,
        "SGLang 0.4.10: its HiCacheStorage has no register_mem_pool_host and no batch_set_v1; expected one of the "
        "releases that work: 0.5.11 to 0.5.23",
    ]
    assert not (tmp_path / "pages").exists()


def test_a_module_without_the_class_lacks_everything(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, UPSTREAM_MODULE, ModuleType("empty"))
    monkeypatch.delitem(sys.modules, "sglang", raising=False)
    with pytest.raises(
        ConfigError, match=r"^SGLang of an unknown version: .* no register_mem_pool_host and no .*"
    ):
        HiCacheNixl(storage_config(), str(tmp_path / "pages"))


def test_outside_a_server_the_base_stands_in_for_it():
    assert HiCacheNixl.__mro__[1].__module__ == "hicache_nixl.contract"
