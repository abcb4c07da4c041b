"""A configuration, a pool or a storage folder that cannot work is an error at construction."""

from __future__ import annotations

import pytest
from support import files_in, make_pool, run_python, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.config import FILE_PLUGINS, LIFETIMES, OBJ_PLUGINS, QUEUES
from hicache_nixl.errors import ConfigError
from hicache_nixl.host.pools import LAYOUTS

# -- unknown lifetime, plugin, layout, queue; parameters of a wrong type ---------------------------------


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"lifetime": "eternal"}, ["eternal", *LIFETIMES]),
        ({"plugin": {"floppy": {"active": True}}}, ["FLOPPY", *FILE_PLUGINS, *OBJ_PLUGINS]),
        ({"plugin": {"posix": {"active": True, "queue": "snail"}}}, ["snail", *QUEUES]),
        ({"plugin": {"posix": {"active": True, "ios_pool_size": "many"}}}, ["ios_pool_size", "integer"]),
        ({"ios_pool_size": "many"}, ["ios_pool_size", "integer"]),
        ({"snail": "true"}, ["snail", "queue", "use_uring"]),
    ],
    ids=["lifetime", "plugin", "queue", "type", "type in flat form", "parameter in flat form"],
)
def test_a_configuration_that_cannot_work_is_an_error_at_construction(tmp_path, extra, named):
    config = storage_config()
    config.extra_config.clear()
    config.extra_config.update(extra)
    with pytest.raises(ConfigError) as raised:
        HiCacheNixl(config, str(tmp_path / "pages"))
    assert [text for text in named if text not in str(raised.value)] == []
    assert files_in(tmp_path) == [], "no folder was made"


def test_an_unknown_layout_is_an_error_at_construction_of_the_pool():
    with pytest.raises(ConfigError) as raised:
        make_pool(False, "page_last")
    assert [name for name in LAYOUTS if name not in str(raised.value)] == []


@pytest.mark.parametrize("model", ["m" * 200, "nul\0byte"], ids=["long", "nul"])
def test_a_model_name_that_fits_no_file_name_is_an_error_at_construction(tmp_path, model):
    with pytest.raises(ConfigError, match="model_name"):
        HiCacheNixl(storage_config(model=model), str(tmp_path))


# -- storage folder missing, a file, not writable, full, read-only ---------------------------------------
# While running: test_connector_failures.py; full and read-only file systems: test_file_systems.py.


def test_a_file_in_the_place_of_the_storage_folder_is_an_error_at_construction(tmp_path, lifetime):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"storage folder .*file.*\[Errno 20\]"):
        HiCacheNixl(storage_config(lifetime), str(tmp_path / "file"))


def test_a_storage_folder_that_takes_no_files_is_an_error_at_construction(lifetime):
    with pytest.raises(ConfigError, match=r"storage folder /proc/self/fdinfo: \[Errno"):
        HiCacheNixl(storage_config(lifetime), "/proc/self/fdinfo")


# -- NIXL not installed ----------------------------------------------------------------------------------


def test_without_nixl_an_uncaught_error_ends_with_one_line_that_says_what_to_install():
    code = """
import sys
sys.modules["nixl"] = None
from hicache_nixl import HiCacheNixl
from support import storage_config
HiCacheNixl(storage_config())
"""
    process = run_python("-c", code)
    assert process.returncode != 0
    last = process.stderr.splitlines()[-1]
    assert last.startswith("hicache_nixl.errors.NixlMissingError: NIXL could not be loaded")
    assert "pip install nixl" in last
