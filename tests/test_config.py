"""What the server hands over: both forms of extra_config, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from support import storage_config

from hicache_nixl.config import (
    DEFAULT_LIFETIME,
    FILE_PLUGINS,
    LIFETIMES,
    OBJ_PLUGINS,
    PLUGIN_VARIABLE,
    QUEUES,
    RELEASED,
    HiCacheStorageConfig,
    NixlBackendConfig,
)
from hicache_nixl.errors import ConfigError, HiCacheNixlError

# SGLang 0.5.11; what has a default there has the same one here.
SGLANG_FIELDS = {
    "tp_rank": dataclasses.MISSING,
    "tp_size": dataclasses.MISSING,
    "pp_rank": dataclasses.MISSING,
    "pp_size": dataclasses.MISSING,
    "attn_cp_rank": dataclasses.MISSING,
    "attn_cp_size": dataclasses.MISSING,
    "is_mla_model": dataclasses.MISSING,
    "enable_storage_metrics": dataclasses.MISSING,
    "is_page_first_layout": dataclasses.MISSING,
    "model_name": dataclasses.MISSING,
    "tp_lcm_size": None,
    "should_split_heads": False,
    "extra_config": None,
}


def posix(**params):
    return {"plugin": {"posix": {"active": True, **params}}}


# -- HiCacheStorageConfig --------------------------------------------------------------------------------


def test_fields_and_defaults_are_sglang_s_in_sglang_s_order():
    fields = {field.name: field.default for field in dataclasses.fields(HiCacheStorageConfig)}
    assert fields == SGLANG_FIELDS
    assert list(fields) == list(SGLANG_FIELDS)


def test_checked_reads_any_object_with_these_attributes():
    ours = storage_config(tp_rank=1, tp_size=2)
    other = SimpleNamespace(**vars(ours), something_newer=True)
    assert HiCacheStorageConfig.checked(other) == ours


def test_checked_names_the_field_that_is_missing():
    given = {name: value for name, value in vars(storage_config()).items() if name != "tp_rank"}
    with pytest.raises(ConfigError, match="tp_rank"):
        HiCacheStorageConfig.checked(SimpleNamespace(**given))


@pytest.mark.parametrize(
    ("field", "value"),
    [("tp_rank", "first"), ("tp_size", None), ("is_mla_model", "perhaps"), ("extra_config", [1])],
)
def test_checked_names_the_field_of_a_wrong_type(field, value):
    config = dataclasses.replace(storage_config(), **{field: value})
    with pytest.raises(ConfigError, match=f"storage_config.{field}"):
        HiCacheStorageConfig.checked(config)


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        storage_config().tp_rank = 1


# -- the full form ---------------------------------------------------------------------------------------


def test_the_first_active_plugin_wins():
    sections = {
        "gds": {"active": False},
        "posix": {"active": True},
        "obj": {"active": True, "bucket": "pages"},
    }
    assert NixlBackendConfig({"plugin": sections}).plugin == "POSIX"


@pytest.mark.parametrize("active", [True, "true", 1])
def test_active_may_come_as_json_and_shells_write_it(active):
    assert NixlBackendConfig({"plugin": {"posix": {"active": active}}}).plugin == "POSIX"


@pytest.mark.parametrize("name", [*FILE_PLUGINS, *OBJ_PLUGINS])
def test_every_plugin_can_be_named_in_small_letters(name):
    assert NixlBackendConfig({"plugin": {name.lower(): {"active": True}}}).plugin == name


def test_parameters_of_the_active_plugin_become_nixl_s_strings():
    config = NixlBackendConfig(posix(use_uring="true", ios_pool_size=1024, kernel_queue_size="64"))
    assert config.init_params("POSIX") == {
        "use_uring": "true",
        "ios_pool_size": "1024",
        "kernel_queue_size": "64",
    }


def test_parameters_of_another_plugin_are_passed_as_strings():
    sections = {"obj": {"active": True, "bucket": "pages", "use_virtual_addressing": False, "port": 9000}}
    assert NixlBackendConfig({"plugin": sections}).init_params("OBJ") == {
        "bucket": "pages",
        "use_virtual_addressing": "false",
        "port": "9000",
    }


@pytest.mark.parametrize(("queue", "flag"), QUEUES.items())
def test_a_queue_is_a_name_for_nixl_s_flag(queue, flag):
    assert NixlBackendConfig(posix(queue=queue)).init_params("POSIX") == {flag: "true"}
    assert NixlBackendConfig(posix(**{flag: "true"})).init_params("POSIX") == {flag: "true"}


def test_what_is_left_at_its_default_is_left_out():
    assert NixlBackendConfig(posix(use_uring="false")).init_params("POSIX") == {}


# -- the flat form and the environment -------------------------------------------------------------------


@pytest.mark.parametrize("extra", [None, {}])
def test_without_a_plugin_it_is_auto_mode_and_the_default_lifetime(extra):
    config = NixlBackendConfig(extra)
    assert (config.plugin, config.lifetime) == ("auto", DEFAULT_LIFETIME)
    assert DEFAULT_LIFETIME == "scoped"
    assert config.use_direct_io is False


def test_every_lifetime_but_the_releases_is_ours():
    assert set(LIFETIMES) - set(RELEASED) == {"scoped", "pooled"}


@pytest.mark.parametrize("name", ["POSIX", "posix"])
def test_the_environment_names_the_plugin_of_the_flat_form(monkeypatch, name):
    monkeypatch.setenv(PLUGIN_VARIABLE, name)
    config = NixlBackendConfig({"use_uring": "true"})
    assert (config.plugin, config.init_params("POSIX")) == ("POSIX", {"use_uring": "true"})


@pytest.mark.parametrize("name", ["auto", "AUTO", ""])
def test_the_environment_may_say_auto(monkeypatch, name):
    monkeypatch.setenv(PLUGIN_VARIABLE, name)
    assert NixlBackendConfig({}).plugin == "auto"


def test_the_full_form_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv(PLUGIN_VARIABLE, "GDS")
    assert NixlBackendConfig(posix()).plugin == "POSIX"


def test_the_environment_is_named_when_it_is_wrong(monkeypatch):
    monkeypatch.setenv(PLUGIN_VARIABLE, "floppy")
    with pytest.raises(ConfigError, match=PLUGIN_VARIABLE) as raised:
        NixlBackendConfig({})
    assert all(name in str(raised.value) for name in (*FILE_PLUGINS, *OBJ_PLUGINS, "auto"))


@pytest.mark.parametrize("form", [{}, posix()], ids=["flat", "full"])
@pytest.mark.parametrize("lifetime", LIFETIMES)
def test_either_form_may_hold_the_lifetime(form, lifetime):
    config = NixlBackendConfig({**form, "lifetime": lifetime})
    assert config.lifetime == lifetime
    assert config.init_params("POSIX") == {}


@pytest.mark.parametrize("form", [{}, posix()], ids=["flat", "full"])
@pytest.mark.parametrize(("given", "wanted"), [(True, True), ("true", True), (1, True), ("false", False)])
def test_either_form_may_ask_for_direct_io(form, given, wanted):
    config = NixlBackendConfig({**form, "use_direct_io": given})
    assert config.use_direct_io is wanted
    assert config.init_params("POSIX") == {}


@pytest.mark.parametrize("lifetime", RELEASED)
def test_direct_io_may_be_declined_in_every_lifetime(lifetime):
    assert NixlBackendConfig({"lifetime": lifetime, "use_direct_io": False}).use_direct_io is False


def test_what_sglang_s_dynamic_loader_adds_is_not_passed_to_nixl():
    added = {
        "backend_name": "nixl",
        "module_path": "hicache_nixl",
        "class_name": "HiCacheNixl",
        "interface_v1": 1,
    }
    assert NixlBackendConfig({**added, "use_uring": "true"}).init_params("POSIX") == {"use_uring": "true"}
    assert NixlBackendConfig({**added, **posix()}).init_params("POSIX") == {}


# -- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"lifetime": "eternal"}, ["lifetime", "'eternal'", *LIFETIMES]),
        ({"lifetime": None}, ["lifetime", *LIFETIMES]),
        ({"module_path": "hicache_nixl.connector"}, ["interface_v1", "set it to 1", "never finds"]),
        ({"module_path": "hicache_nixl.connector", "interface_v1": 0}, ["interface_v1", "set it to 1"]),
        ({"lifetime": "Scoped"}, ["lifetime", "'Scoped'", *LIFETIMES]),
        (
            {"lifetime": "leaky", "use_direct_io": True},
            ["use_direct_io", "lifetime leaky", "use lifetime scoped"],
        ),
        (
            {"lifetime": "try_finally", "use_direct_io": "true"},
            ["use_direct_io", "0.5.12", "use lifetime scoped"],
        ),
        ({"lifetime": "leaky", "sync": True}, ["sync", "lifetime leaky", "use lifetime scoped"]),
        ({"sync": "perhaps"}, ["sync", "'perhaps'", "boolean"]),
        ({"allow_shared_folder": "perhaps"}, ["allow_shared_folder", "'perhaps'", "boolean"]),
        ({"use_direct_io": "perhaps"}, ["use_direct_io", "'perhaps'", "boolean"]),
        ({"use_direct_io": 2}, ["use_direct_io", "boolean"]),
        ({"use_direct_io": None}, ["use_direct_io", "boolean"]),
        ({"use_direct_io": ["true"]}, ["use_direct_io", "boolean"]),
        (posix(use_direct_io=True), ["posix.use_direct_io", "queue"]),
        ({"plugin": {"floppy": {"active": True}}}, ["plugin", "FLOPPY", *FILE_PLUGINS, *OBJ_PLUGINS]),
        ({"plugin": {"posix": {"active": False}}}, ["none of posix is active"]),
        ({"plugin": {}}, ["plugin", "active"]),
        ({"plugin": "posix"}, ["plugin", "dict"]),
        ({"plugin": {"posix": True}}, ["plugin", "dict"]),
        ({"plugin": {"posix": {"active": "perhaps"}}}, ["plugin.posix.active"]),
        (posix(queue="floppy"), ["queue", "'floppy'", *QUEUES]),
        (posix(queue="libaio", use_uring="true"), ["use_aio", "use_uring", *QUEUES]),
        (posix(use_aio="true", use_uring="true"), ["use_aio", "use_uring", *QUEUES]),
        (posix(use_urnig="true"), ["use_urnig", "use_uring", "ios_pool_size"]),
        (posix(use_uring="perhaps"), ["posix.use_uring", "boolean"]),
        (posix(ios_pool_size="many"), ["posix.ios_pool_size", "integer"]),
        (posix(kernel_queue_size=0), ["posix.kernel_queue_size", "greater than 0"]),
        ({"plugin": {"obj": {"active": True, "bucket": ["a"]}}}, ["obj.bucket", "list", "string"]),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_one_line_that_names_the_key_and_what_it_takes(extra, named):
    with pytest.raises(ConfigError) as raised:
        NixlBackendConfig(extra)
    message = str(raised.value)
    assert "\n" not in message
    assert [text for text in named if text not in message] == []


def test_a_name_of_a_plugin_that_is_no_string_is_an_error_too():
    with pytest.raises(ConfigError):
        NixlBackendConfig({"plugin": {1: {"active": True}}})


@pytest.mark.parametrize("extra", ["posix", ["posix"], 5])
def test_extra_config_that_is_no_dict_is_an_error(extra):
    with pytest.raises(ConfigError, match="extra_config"):
        NixlBackendConfig(extra)


SECRET = "a-secret-that-nobody-may-see"


@pytest.mark.parametrize(
    "extra",
    [
        {
            "bucket": "b",
            "secret_key": SECRET,
        },  # the flat form without the variable that names OBJ: taken for POSIX
        {"plugin": {"posix": {"active": True, "session_token": SECRET}}},
        {"plugin": {"obj": {"active": True, "bucket": "b", "credentials": {"secret_key": SECRET}}}},
        {"plugin": {"obj": {"active": {"secret_key": SECRET}}}},
        {"object_timeout": {"secret_key": SECRET}},
    ],
    ids=["flat", "another plugin", "nested", "in active", "in a number"],
)
def test_no_error_shows_a_secret_wherever_it_was_put(extra):
    with pytest.raises(ConfigError) as raised:
        NixlBackendConfig(extra).init_params("POSIX")  # as auto mode does
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("missing", [True, False])
def test_no_error_of_a_storage_config_shows_its_extra_config(missing):
    given = {**vars(storage_config()), "extra_config": {"plugin": {"obj": {"secret_key": SECRET}}}}
    given["extra_config"] = given["extra_config"] if missing else [given["extra_config"]]
    if missing:
        del given["tp_rank"]
    with pytest.raises(ConfigError) as raised:
        HiCacheStorageConfig.checked(SimpleNamespace(**given))
    assert SECRET not in str(raised.value)


def test_errors_are_also_the_builtin_errors_that_fit():
    assert issubclass(ConfigError, HiCacheNixlError)
    assert issubclass(ConfigError, ValueError)
