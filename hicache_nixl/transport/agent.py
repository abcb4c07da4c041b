"""Which NIXL plugin moves the bytes; loading ``nixl``; making the agent."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import platform
import sys
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..config import FILE_PLUGINS, OBJ_PLUGINS, NixlBackendConfig
from ..errors import NixlMissingError, PluginError

logger = logging.getLogger(__name__)

VARIANTS = ("nixl_cu12", "nixl_cu13")


@dataclass(frozen=True)
class NixlBackend:
    """A NIXL agent with the one plugin that it was made for.

    Attributes
    ----------
    agent : nixl_agent
    agent_name : str
        Storage is a loopback transfer: the agent is its own remote side.
    plugin : str
        ``"POSIX"``, ``"OBJ"``, ...
    mem_type : str
        ``"FILE"`` or ``"OBJ"``.
    keeps_failed_io : bool
        Whether a transfer that failed makes every later one of this agent fail: so does the POSIX plugin on
        POSIX AIO in NIXL 1.5.1, whose queue keeps the failed I/O.  Such an agent has to be made anew.
    """

    agent: Any
    agent_name: str
    plugin: str
    mem_type: str
    keeps_failed_io: bool


def load_nixl(plugin: str = "auto") -> ModuleType:
    """Return NIXL's Python API.

    ``nixl`` comes in a build per CUDA major and a process can load only one of them ("type ... is already
    registered").  Without CUDA it picks the build for CUDA 13, whose OBJ plugin wants ``libcuobjclient``;
    the build for CUDA 12 has an OBJ plugin that loads anywhere, so OBJ prefers that one.

    Raises
    ------
    NixlMissingError
        One line that says what to install.
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
            f"NIXL cannot be loaded ({error}): pip install nixl. Wheels exist for Linux on x86_64 and "
            f"aarch64 with glibc 2.28 or newer; this is {here}."
        ) from error


def make_backend(config: NixlBackendConfig) -> NixlBackend:
    """Make an agent with the plugin that the configuration asks for.

    In auto mode the first plugin that can be created wins: ``FILE_PLUGINS`` in their order, then OBJ.
    The agent is made with NIXL's read-write locking.  Its default is none, and then a set, a get and a
    lookup from a thread each corrupt memory within seconds.

    Raises
    ------
    PluginError
        Naming the plugin, the reason, and what could be used in its place.
    """
    api = load_nixl(config.plugin)
    name = f"hicache_nixl_{uuid.uuid4()}"
    locked = api.nixl_thread_sync_t.NIXL_THREAD_SYNC_RW  # the server calls from several threads
    agent = api.nixl_agent(name, api.nixl_agent_config(backends=[], sync_mode=locked))
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
        raise PluginError(f"plugin {plugin} is not in this NIXL, which has {', '.join(sorted(listed))}")
    params = config.init_params(plugin)
    if plugin in OBJ_PLUGINS and not params.get("bucket"):
        params["bucket"] = os.environ.get("AWS_DEFAULT_BUCKET", "")
        if not params["bucket"]:
            raise PluginError("OBJ needs a bucket: set plugin.obj.bucket or AWS_DEFAULT_BUCKET")
    try:
        agent.create_backend(plugin, params)
    except Exception as error:
        shown = {key: "***" if "key" in key or "token" in key else value for key, value in params.items()}
        raise PluginError(
            f"plugin {plugin} cannot be created with {shown or 'its defaults'}: {error}. {_way_out(plugin, params)}"
        ) from error


def create_first(agent: Any, config: NixlBackendConfig, candidates: Iterable[str]) -> str:
    """Create the first candidate that works, skipping what NIXL lists and cannot create."""
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
        return "It needs an NVIDIA GPU with GPUDirect Storage; POSIX works without."
    if plugin == "OBJ":
        variant = next((name for name in VARIANTS if name in sys.modules), "nixl")
        return f"This process uses {variant}; OBJ loads without CUDA only from nixl_cu12, in a process of its own."
    if params.get("use_uring") == "true":
        return (
            "io_uring is refused in many containers (kernel.io_uring_disabled, seccomp); libaio works there."
        )
    return "NIXL_LOG_LEVEL=DEBUG makes NIXL say more."
