"""Options that users of SGLang's own backend have: each is taken, left to the server, or refused by name."""

from __future__ import annotations

import ast
import re
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import storage_config

from hicache_nixl import HiCacheNixl, NixlBackendConfig
from hicache_nixl.config import OBJ_PLUGINS, PosixParams
from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.worker.releases import fetch, known_releases
from hicache_nixl.options import (
    DIRECT_IO_VARIABLE,
    OWN,
    PARAMS,
    PLUGIN_VARIABLE,
    REFUSED,
    SERVER,
    STORAGE_DIR_VARIABLE,
    TAKEN,
    VARIABLES,
    table,
)

ROOT = Path(__file__).resolve().parents[1]
POSIX = {"plugin": {"posix": {"active": True}}}
IN_PLUGINS = {"bucket"}  # read by SGLang, passed on to NIXL by both
OF_THE_ANSWER = {"enabled"}  # of its method that reads the options of the cleaner
OF_BACKEND_FILE = {"enable_metadata_cache", "metadata_ttl"}  # SGLang's backend "file" is another one
KNOWN = {*OWN, *PARAMS, *TAKEN, *SERVER, *REFUSED}


# -- what the releases read, from their source -----------------------------------------------------------

NIXL = "sglang/srt/mem_cache/storage/nixl/"
OF_HICACHE = re.compile(
    r"sglang/srt/(managers/cache_controller|mem_cache/(\w+|hybrid_cache/\w+|unified_cache/\w+|pool_host/common"
    r"|storage/backend_factory))\.py"
)
EXTRA = re.compile(r"extra_config|backend_config|^config$|^self\.config$")


def constants(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value


def keys_read(tree: ast.AST, receiver: re.Pattern[str]) -> Iterator[str]:
    """Yield the keys that code reads from a dict: ``d.get("k")``, ``d.pop("k")``, ``d["k"]``, ``"k" in d``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr in ("get", "pop", "setdefault") and receiver.search(
                ast.unparse(node.func.value)
            ):
                yield from constants(node.args[0])
        elif isinstance(node, ast.Subscript) and receiver.search(ast.unparse(node.value)):
            yield from constants(node.slice)
        elif isinstance(node, ast.Compare) and receiver.search(ast.unparse(node.comparators[0])):
            yield from constants(node.left)  # of `"k" in d`


def keys_listed(tree: ast.AST) -> Iterator[str]:
    """Yield the members of collections whose names say that they are keys: ``_CONFIG_KEYS``, ``required_fields``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and re.search(
            r"(?i)config_keys|key_map|required_fields", ast.unparse(node.targets[0])
        ):
            listed = node.value.keys if isinstance(node.value, ast.Dict) else [node.value]
            for key in listed:
                yield from constants(key)


def variables_read(tree: ast.AST) -> Iterator[str]:
    """Yield the variables that code reads: ``envs.NAME``, ``os.getenv("NAME")``, ``os.environ...("NAME")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "envs":
            yield node.attr
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("os.getenv", "os.environ.get")
            and node.args
        ):
            yield from constants(node.args[0])


class Release:
    """The sources of a released wheel."""

    def __init__(self, version: str):
        self._wheel = zipfile.ZipFile(fetch(version))
        names = self._wheel.namelist()
        own = re.compile(rf"{NIXL}\w+\.py")
        self.nixl = [self.tree(name) for name in names if own.fullmatch(name) and "/test_" not in name]
        self.hicache = [self.tree(name) for name in names if OF_HICACHE.fullmatch(name)]

    def text(self, name: str) -> str:
        return self._wheel.read(name).decode()

    def tree(self, name: str) -> ast.AST:
        return ast.parse(self.text(name))

    def keys(self) -> set[str]:
        anything = re.compile("")
        own = [
            node
            for tree in self.nixl
            for node in ast.walk(tree)
            if getattr(node, "name", "") == "NixlBackendConfig"
        ]
        assert own
        found = {key for tree in own for key in keys_read(tree, anything)}
        found |= {
            key
            for tree in [*self.nixl, *self.hicache]
            for key in [*keys_read(tree, EXTRA), *keys_listed(tree)]
        }
        return found | set(re.findall(r"^\| `(\w+)` +\|", self._general(), re.MULTILINE))

    def _general(self) -> str:
        """The part of SGLang's own documentation on keys that are not those of a plugin."""
        return (
            self.text(f"{NIXL}README.md").partition("Top-Level Configuration Keys")[2].partition("### 2.")[0]
        )

    def variables(self) -> set[str]:
        return {name for tree in self.nixl for name in variables_read(tree)}

    def sample(self) -> dict[str, object]:
        return tomllib.loads(self.text(f"{NIXL}nixl.config.toml.sample"))


@pytest.fixture(params=sorted(known_releases()))
def release(request, released):
    released(f"sglang=={request.param}")
    return Release(request.param)


def test_every_key_that_a_release_reads_is_taken_or_refused(release):
    found = release.keys()
    assert {"plugin", "active", "prefetch_threshold", "module_path", "tp_lcm_size"} <= found, (
        "none is overlooked"
    )
    assert sorted(found - KNOWN - IN_PLUGINS - OF_BACKEND_FILE - OF_THE_ANSWER) == []


def test_every_variable_that_a_release_reads_is_taken_or_refused(release):
    found = release.variables()
    assert {PLUGIN_VARIABLE, STORAGE_DIR_VARIABLE} <= found
    assert sorted(found - VARIABLES.keys()) == []


def test_the_keys_of_0_5_23_are_found_in_its_source(released):
    released("sglang==0.5.23")
    newest = Release("0.5.23")
    assert set(REFUSED) | {"use_direct_io", "file_storage_path", "allocator"} <= newest.keys()
    assert DIRECT_IO_VARIABLE in newest.variables()


def test_the_sample_configuration_of_a_release_is_understood_or_refused_by_name(release):
    sample = release.sample()
    refused = [key for key in REFUSED if key in sample]
    if refused:
        with pytest.raises(ConfigError) as raised:
            NixlBackendConfig(sample)
        assert all(f"{key}: " in str(raised.value) for key in refused)
    config = NixlBackendConfig({key: value for key, value in sample.items() if key not in REFUSED})
    assert (config.plugin, config.init_params("POSIX")) == ("POSIX", {"use_uring": "true"})
    for name, section in sample["plugin"].items():
        if name != "posix":
            assert set(config.init_params(name.upper())) == section.keys() - {"active"}


# -- the table -------------------------------------------------------------------------------------------


def test_the_documentation_has_the_table():
    assert "\n".join(table()) in (ROOT / "docs/options.md").read_text()


def test_the_parameters_of_the_table_are_those_that_the_plugin_posix_takes():
    assert PARAMS.keys() == {"active", *PosixParams.model_fields}


@pytest.mark.parametrize("form", [{}, POSIX], ids=["flat", "full"])
@pytest.mark.parametrize("key", [*SERVER, "file_storage_path"])
def test_what_the_server_reads_is_not_passed_to_nixl(form, key, log):
    config = NixlBackendConfig({"interface_v1": 1, **form, key: 1})
    assert config.init_params("POSIX") == config.init_params(OBJ_PLUGINS[0]) == {}
    assert log.lines(level=0) == []


def test_an_unknown_key_beside_sections_is_a_warning_that_names_it(log):
    NixlBackendConfig({**POSIX, "number_of_jobs": 4})
    assert log.lines(level=0) == ["extra_config: 'number_of_jobs' is unknown, and has no effect"]


# -- the cleaner -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, POSIX], ids=["flat", "full"])
@pytest.mark.parametrize(
    ("lifetime", "enabled", "accepted"),
    [("scoped", False, True), ("scoped", "true", False), ("pooled", True, True), ("pooled", False, False)],
)
def test_a_cleaner_is_accepted_where_the_lifetime_does_what_it_says(form, lifetime, enabled, accepted):
    extra = {**form, "lifetime": lifetime, "l3_cleaner_enabled": enabled}
    if accepted:
        assert NixlBackendConfig(extra).init_params("POSIX") == {}
    else:
        with pytest.raises(
            ConfigError, match=r"^l3_cleaner_enabled: .*lifetime.*capacity_gb|capacity_gb.*lifetime"
        ):
            NixlBackendConfig(extra)


@pytest.mark.parametrize("lifetime", ["scoped", "pooled"])
def test_watermarks_are_refused_in_one_line_that_names_all_and_what_to_use(lifetime):
    watermarks = {"l3_cleaner_high_watermark": 85.0, "l3_cleaner_low_watermark": 75.0}
    with pytest.raises(ConfigError) as raised:
        NixlBackendConfig({**POSIX, **watermarks, "lifetime": lifetime})
    message = str(raised.value)
    assert "\n" not in message
    assert [text for text in (*watermarks, "pooled", "capacity_gb") if text not in message] == []


# -- the environment -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "wanted"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_environment_may_ask_for_direct_io(monkeypatch, value, wanted):
    monkeypatch.setenv(DIRECT_IO_VARIABLE, value)
    assert NixlBackendConfig(POSIX).use_direct_io is wanted
    assert NixlBackendConfig({**POSIX, "use_direct_io": False}).use_direct_io is False


def test_a_wrong_value_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv(DIRECT_IO_VARIABLE, "perhaps")
    with pytest.raises(ConfigError, match=f"{DIRECT_IO_VARIABLE}.*boolean"):
        NixlBackendConfig(POSIX)


def test_the_folder_is_that_of_the_environment_then_of_the_extra_config_then_the_one_given(monkeypatch):
    config = NixlBackendConfig({**POSIX, "file_storage_path": "/extra"})
    assert NixlBackendConfig(POSIX).storage_folder({}) == "/tmp/hicache_storage"
    assert NixlBackendConfig(POSIX).storage_folder("/given") == "/given"
    assert config.storage_folder("/given") == "/extra"
    monkeypatch.setenv(STORAGE_DIR_VARIABLE, " /variable,")
    assert config.storage_folder("/given") == "/variable"


def test_several_folders_are_refused_at_construction(monkeypatch, tmp_path):
    monkeypatch.setenv(STORAGE_DIR_VARIABLE, f"{tmp_path}/a,{tmp_path}/b")
    with pytest.raises(ConfigError, match=f"^{STORAGE_DIR_VARIABLE} names 2 folders: .*name one"):
        HiCacheNixl(storage_config())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_string_is_refused():
    with pytest.raises(ConfigError, match=r"file_storage_path.*string"):
        NixlBackendConfig({**POSIX, "file_storage_path": ["/a"]}).storage_folder({})
