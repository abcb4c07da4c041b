"""Loading ``nixl``, creating an agent, and choosing its storage plugin."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import platform
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..config import FILE_PLUGINS, OBJ_PLUGINS, NixlBackendConfig, is_secret
from ..errors import ConfigError, NixlMissingError, PluginError
from ..lifetimes import RELEASED

logger = logging.getLogger(__name__)

VARIANTS = ("nixl_cu12", "nixl_cu13")
OBJ_THREADS = "8"  # of NIXL, each with one request at a time; by default half as many as there are processors
# How often the AWS SDK tries a request.  By default it tries for 25 s if nobody listens, and much longer if nobody answers.
ATTEMPTS = {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "2"}
_environment = threading.Lock()


@dataclass(frozen=True)
class NixlBackend:
    """A NIXL agent with one storage plugin.

    Attributes
    ----------
    agent : nixl_agent
    agent_name : str
        A storage transfer is a loopback: the agent is its own remote agent.
    plugin : str
        ``"POSIX"``, ``"OBJ"``, ...
    mem_type : str
        ``"FILE"`` or ``"OBJ"``.
    keeps_failed_io : bool
        Whether every transfer fails after one failed, and the agent must be replaced.  This is so for the
        POSIX plugin on POSIX AIO in NIXL 1.5.1, whose queue keeps the failed I/O.
    """

    agent: Any
    agent_name: str
    plugin: str
    mem_type: str
    keeps_failed_io: bool


def load_nixl(plugin: str = "auto") -> ModuleType:
    """Return NIXL's Python API.

    There is one build of ``nixl`` per major version of CUDA, and a process can load only one of them ("type
    ... is already registered").  Without CUDA, ``nixl`` selects the build for CUDA 13, whose OBJ plugin needs
    ``libcuobjclient``; the OBJ plugin of the build for CUDA 12 does not, so that build is preferred for OBJ.

    Raises
    ------
    NixlMissingError
        When NIXL is not installed; the message is one line and says what to install.
    """
    for variant in VARIANTS:
        if f"{variant}._api" in sys.modules:
            return sys.modules[f"{variant}._api"]
    try:
        if plugin in OBJ_PLUGINS and importlib.util.find_spec("nixl_cu12"):
            return importlib.import_module("nixl_cu12._api")
        return importlib.import_module("nixl._api")
    except ImportError as error:
        here = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        raise NixlMissingError(
            f"NIXL could not be loaded ({error}): pip install nixl. Wheels exist for Linux on x86_64 and "
            f"aarch64 with glibc 2.28 or newer; this is {here}."
        ) from error


def make_backend(config: NixlBackendConfig) -> NixlBackend:
    """Create an agent with the plugin of the configuration.

    Auto mode uses the first plugin that can be created: ``FILE_PLUGINS`` in their order, then OBJ.
    The agent has NIXL's read-write locking.  NIXL's default is no locking: a set, a get and a lookup in three
    threads then corrupt memory within seconds.

    Raises
    ------
    PluginError
        When no plugin could be created; the message names the plugin, the reason, and an alternative.
    """
    api = load_nixl(config.plugin)
    name = f"hicache_nixl_{uuid.uuid4()}"
    locked = api.nixl_thread_sync_t.NIXL_THREAD_SYNC_RW  # the server calls from several threads
    agent = api.nixl_agent(name, api.nixl_agent_config(backends=[], sync_mode=locked))
    if config.agent_made is not None:
        config.agent_made(agent)
    if config.plugin == "auto":
        plugin = create_first(agent, config, FILE_PLUGINS + OBJ_PLUGINS)
    else:
        create_plugin(agent, config.plugin, config)
        plugin = config.plugin
    return NixlBackend(
        agent,
        name,
        plugin,
        mem_type="OBJ" if plugin in OBJ_PLUGINS else "FILE",
        keeps_failed_io=plugin == "POSIX" and "use_posix_aio" in config.init_params(plugin),
    )


def create_plugin(agent: Any, plugin: str, config: NixlBackendConfig) -> None:
    """Create one plugin in the agent, or raise ``PluginError`` with the reason."""
    listed = agent.get_plugin_list()
    if plugin not in listed:
        raise PluginError(f"plugin {plugin} is not part of this NIXL, which has {', '.join(sorted(listed))}")
    params = _object_params(config) if plugin in OBJ_PLUGINS else config.init_params(plugin)
    try:
        with _few_attempts(plugin in OBJ_PLUGINS and config.lifetime not in RELEASED):
            agent.create_backend(plugin, params)
    except Exception as error:
        shown = {key: "***" if is_secret(key) else value for key, value in params.items()}
        raise PluginError(
            f"plugin {plugin} cannot be created with {shown or 'its defaults'}: {error}. "
            f"{_way_out(plugin, params)}"
        ) from error


def _object_params(config: NixlBackendConfig) -> dict[str, str]:
    try:
        params = config.object_params()
    except ConfigError as error:  # so that auto mode passes over it
        raise PluginError(str(error)) from error
    return params if config.lifetime in RELEASED else {"num_threads": OBJ_THREADS, **params}


@contextmanager
def _few_attempts(few: bool) -> Iterator[None]:
    """Set what the AWS SDK reads when its client is made, unless the user has set it."""
    with _environment:
        given = ATTEMPTS if few and not ATTEMPTS.keys() & os.environ.keys() else {}
        os.environ.update(given)
        try:
            yield
        finally:
            for name in given:
                del os.environ[name]


def create_first(agent: Any, config: NixlBackendConfig, candidates: Iterable[str]) -> str:
    """Create the first candidate that works; skip those that NIXL lists and cannot create."""
    reasons = []
    for plugin in candidates:
        if plugin not in agent.get_plugin_list():
            continue
        try:
            create_plugin(agent, plugin, config)
            return plugin
        except PluginError as error:
            reasons.append(str(error))
            _say_once(plugin, str(error))
    raise PluginError("no storage plugin could be created: " + ("; ".join(reasons) or "none is listed"))


@functools.cache
def _say_once(plugin: str, reason: str) -> None:
    logger.warning("auto mode skips plugin %s: %s", plugin, reason)


def _way_out(plugin: str, params: dict[str, str]) -> str:
    if plugin.startswith("GDS"):
        return "It needs an NVIDIA GPU with GPUDirect Storage; POSIX works without a GPU."
    if plugin == "OBJ":
        variant = next((name for name in VARIANTS if f"{name}._api" in sys.modules), "nixl")
        if variant == "nixl_cu12":
            return "NIXL_LOG_LEVEL=DEBUG makes NIXL log more."
        return (
            f"This process has loaded {variant}, and without CUDA, OBJ loads only from nixl_cu12: uninstall nixl-cu13, "
            "or import nixl_cu12 before anything imports nixl."
        )
    if params.get("use_uring") == "true":
        return (
            "io_uring is disabled in many containers (kernel.io_uring_disabled, seccomp); libaio works there."
        )
    return "NIXL_LOG_LEVEL=DEBUG makes NIXL log more."
