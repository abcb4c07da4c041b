"""What the server passes: the storage configuration, and the NIXL part of its ``extra_config``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from .errors import ConfigError
from .lifetimes import BY_NAME, DEFAULT_LIFETIME, RELEASED
from .lifetimes import FILE_PER_PIECE as FILE_PER_PIECE
from .lifetimes import LIFETIMES as LIFETIMES
from .object_params import completed
from .options import (
    ALWAYS_BOUNDED,
    DIRECT_IO_VARIABLE,
    INTERFACE_V1,
    OWN,
    REFUSED,
    SERVER,
    SEVERAL_FOLDERS,
    TAKEN,
)
from .options import PLUGIN_VARIABLE as PLUGIN_VARIABLE
from .options import STORAGE_DIR_VARIABLE as STORAGE_DIR_VARIABLE

logger = logging.getLogger(__name__)

FILE_PLUGINS = ("3FS", "POSIX", "GDS_MT", "GDS")  # in the order of auto mode
OBJ_PLUGINS = ("OBJ",)

DEFAULT_STORAGE_DIR = "/tmp/hicache_storage"

# Memory layouts of a host pool; in all but the first, the pieces of a page go to storage without a copy.
LAYOUTS = ("layer_first", "page_first", "page_first_direct")
ZERO_COPY_LAYOUTS = LAYOUTS[1:]
ALIGNMENT = 4096  # bytes; enough for O_DIRECT on ext4, XFS, NFS, ...

# The three I/O queues of the POSIX plugin: their common names, and NIXL's flags for them.
QUEUES = {"libaio": "use_aio", "io_uring": "use_uring", "posix_aio": "use_posix_aio"}

Checked = TypeVar("Checked")


@dataclass(frozen=True)
class HiCacheStorageConfig:
    """SGLang's ``HiCacheStorageConfig``, field for field.

    The connector accepts any object with these attributes, so a server passes its own.  ``extra_config`` is
    the value of ``--hicache-storage-backend-extra-config``.
    """

    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    attn_cp_rank: int
    attn_cp_size: int
    is_mla_model: bool
    enable_storage_metrics: bool
    is_page_first_layout: bool
    model_name: str | None
    tp_lcm_size: int | None = None
    should_split_heads: bool = False
    extra_config: dict[str, Any] | None = field(default=None, repr=False)  # it may have secrets

    @classmethod
    def checked(cls, config: Any) -> HiCacheStorageConfig:
        """Return the configuration with every field of an object checked, such as SGLang's own class.

        Raises
        ------
        ConfigError
            When a field is missing or has a wrong type; the message names it.
        """
        given = {name: getattr(config, name) for name in cls.__annotations__ if hasattr(config, name)}
        return _checked(TypeAdapter(cls), given, "storage_config")


class PosixParams(BaseModel):
    """The parameters of NIXL's POSIX plugin (``get_plugin_params("POSIX")``, NIXL 1.5.1), and ``queue``.

    ``queue`` is an addition of this package: one name instead of three flags that exclude each other.
    """

    model_config = ConfigDict(extra="forbid")

    queue: Literal["libaio", "io_uring", "posix_aio"] | None = None
    use_aio: bool = False
    use_uring: bool = False
    use_posix_aio: bool = False
    kernel_queue_size: PositiveInt | None = None
    ios_pool_size: PositiveInt | None = None

    def init_params(self) -> dict[str, str]:
        """Return the parameters as strings, as NIXL expects them, without those at their default."""
        flags = {flag for flag in QUEUES.values() if getattr(self, flag)}
        if self.queue:
            flags.add(QUEUES[self.queue])
        if len(flags) > 1:
            raise ConfigError(
                f"posix: {', '.join(sorted(flags))} exclude each other; "
                f"set queue to one of {', '.join(QUEUES)}"
            )
        params = dict.fromkeys(flags, "true")
        for name in ("kernel_queue_size", "ios_pool_size"):
            if (value := getattr(self, name)) is not None:
                params[name] = str(value)
        return params


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


_NOT_A_FLAG = BeforeValidator(_no_flag)
_SECONDS: TypeAdapter[float] = TypeAdapter(
    Annotated[float, _NOT_A_FLAG, Field(gt=0, le=3600, allow_inf_nan=False)]
)
_PORT: TypeAdapter[int | None] = TypeAdapter(Annotated[int, _NOT_A_FLAG, Field(ge=0, le=65535)] | None)


class PooledOptions(BaseModel):
    """The options of lifetime ``pooled``, for files; ``docs/options.md`` says what they are with OBJ.

    Attributes
    ----------
    capacity_gb : float, optional
        The most that the store may hold, in GiB.  All processes on a store have one capacity: the last that was
        given, to whichever of them.  Without it, a new store may use half of the free space.
    min_free_gb : float
        GiB of the file system that stay free: below that, the oldest pages are dropped instead.
    segment_mb : int, optional
        MiB of a segment of a new store: 256, more with capacities over 32 GiB, less with those below 1 GiB.
    verify : {"checksum", "none"}
        Whether pages are compared with their checksums when they are loaded.
    """

    model_config = ConfigDict(extra="forbid")

    capacity_gb: Annotated[float, _NOT_A_FLAG, Field(gt=0, le=2**20, allow_inf_nan=False)] | None = None
    min_free_gb: Annotated[float, _NOT_A_FLAG, Field(ge=0, le=2**20, allow_inf_nan=False)] = 1.0
    segment_mb: Annotated[int, _NOT_A_FLAG, Field(gt=0, le=2**20)] | None = None
    verify: Literal["checksum", "none"] = "checksum"


# Keys of the flat form that are not for NIXL.
_NOT_FOR_NIXL = {*OWN, *TAKEN, *SERVER, *REFUSED, "active"}
# Others are near to what plugins have.
_TOLD_APART = [key for key in (*OWN, *PosixParams.model_fields) if key not in ("sync", "queue")]
ALMOST = 0.8  # similarity of two keys, by difflib


class NixlBackendConfig:
    """The two forms of ``extra_config`` that SGLang's backend reads.

    Full form: ``{"plugin": {"posix": {"active": True, ...}, ...}}``; the first active plugin is used.

    Flat form: ``{"use_uring": "true"}``; parameters of the plugin that ``SGLANG_HICACHE_NIXL_BACKEND_PLUGIN``
    names, or of the plugin that auto mode selects.

    Both forms accept additions of this package, such as ``"lifetime"``, and what ``hicache_nixl.options`` lists.

    Attributes
    ----------
    lifetime : str
        Name of the lifetime that stores the pages, see ``hicache_nixl.lifetimes``.
    plugin : str
        One of ``FILE_PLUGINS`` or ``OBJ_PLUGINS``, or ``"auto"``.
    use_direct_io : bool
        Whether files are opened with O_DIRECT, past the page cache, where sizes and addresses allow it.
    allow_shared_folder : bool
        Whether ``scoped`` uses a storage folder to which other users can write.
    sync : bool
        Whether ``scoped`` stores pages so that after a power cut each is whole or missing.
    pooled : PooledOptions
        The options of ``pooled``.
    object_timeout : float
        Seconds without any answer of an object store after which a call fails.
    metrics : bool
        Whether calls are measured, see ``hicache_nixl.metrics``.
    metrics_port : int or None
        Where the connector itself serves what it measured; 0 for any port, None for nowhere.
    agent_made : callable or None
        Is called with each agent of NIXL that is made for this configuration.

    Raises
    ------
    ConfigError
        When a value is not valid; the message names the key and the expected values.

    Examples
    --------
    >>> config = NixlBackendConfig({"plugin": {"posix": {"active": True, "queue": "io_uring"}}})
    >>> config.plugin, config.init_params("POSIX")
    ('POSIX', {'use_uring': 'true'})
    """

    def __init__(self, extra_config: Mapping[str, Any] | None = None):
        if extra_config is not None and not isinstance(extra_config, Mapping):
            raise ConfigError(f"extra_config: expected a dict, got a {type(extra_config).__name__}")
        self._extra = dict(extra_config or {})
        self._refuse_misspelt()
        if "module_path" in self._extra and not self._extra.get("interface_v1"):
            raise ConfigError(f"interface_v1: {INTERFACE_V1}")
        self.lifetime = _one_of("lifetime", self._extra.get("lifetime", DEFAULT_LIFETIME), tuple(BY_NAME))
        self._refuse_cleaner()
        self.use_direct_io = self._direct_io()
        self.allow_shared_folder = self._flag("allow_shared_folder")
        self.sync = self._flag("sync")
        self.object_timeout = _checked(_SECONDS, self._extra.get("object_timeout", 10), "object_timeout")
        self.metrics = self._flag("metrics")
        self.metrics_port = _checked(_PORT, self._extra.get("metrics_port"), "metrics_port")
        if self.metrics_port is not None and not self.metrics:
            raise ConfigError("metrics_port: set metrics to true as well, or omit it")
        self.agent_made: Callable[[Any], None] | None = None
        for key in ("use_direct_io", "sync"):
            if getattr(self, key) and self.lifetime in RELEASED:
                raise ConfigError(
                    f"{key}: lifetime {self.lifetime} reproduces {RELEASED[self.lifetime]}, which has no "
                    f"such option; use lifetime {DEFAULT_LIFETIME}"
                )
        given = {name: self._extra[name] for name in PooledOptions.model_fields if name in self._extra}
        if given and self.lifetime != "pooled":
            raise ConfigError(f"{next(iter(given))}: only lifetime pooled has this option")
        self.pooled = _checked(TypeAdapter(PooledOptions), given, "extra_config")
        if self.sync and self.lifetime == "pooled":
            raise ConfigError("sync: pooled has checksums instead; omit it, or use lifetime scoped")
        self.plugin = self._active_plugin() if "plugin" in self._extra else self._named_plugin()
        if self.plugin != "auto":
            self.init_params(self.plugin)  # a wrong parameter is an error at construction

    def _refuse_misspelt(self) -> None:
        """Raise for a key that is nearly an option of this package; others may be meant for the server."""
        known = {*_NOT_FOR_NIXL, *PosixParams.model_fields, "plugin"}
        for key in self._extra:
            if key not in known and (meant := get_close_matches(str(key), _TOLD_APART, 1, ALMOST)):
                raise ConfigError(f"extra_config: {key!r} is unknown; did you mean {meant[0]}?")
            if (
                key not in known and "plugin" in self._extra
            ):  # without sections it is a parameter of the plugin
                logger.warning("extra_config: %r is unknown, and has no effect", key)

    def _refuse_cleaner(self) -> None:
        """Raise for each option of SGLang's cleaner that asks for what the lifetime does not do."""
        refused = {key: why for key, why in REFUSED.items() if key in self._extra}
        if "l3_cleaner_enabled" in refused:
            bounded = self.lifetime == "pooled"
            if self._flag("l3_cleaner_enabled") == bounded:
                del refused["l3_cleaner_enabled"]
            elif bounded:
                refused["l3_cleaner_enabled"] = ALWAYS_BOUNDED
        if refused:
            raise ConfigError("; ".join(f"{key}: {why}" for key, why in refused.items()))

    def _direct_io(self) -> bool:
        variable = os.environ.get(DIRECT_IO_VARIABLE)
        if "use_direct_io" in self._extra or not variable:
            return self._flag("use_direct_io")
        return _checked(TypeAdapter(bool), variable, DIRECT_IO_VARIABLE)

    def _flag(self, key: str) -> bool:
        return _checked(TypeAdapter(bool), self._extra.get(key, False), key)

    def storage_folder(self, file_path: Any) -> str:
        """Return the storage folder: of the environment, else of the extra config, else the one that is given.

        Parameters
        ----------
        file_path : str, os.PathLike or Any
            SGLang's dynamic loader passes a dict instead of a path; it means the default.
        """
        if folders := folders_in(os.environ.get(STORAGE_DIR_VARIABLE) or ""):
            if len(folders) > 1:
                raise ConfigError(f"{STORAGE_DIR_VARIABLE} names {len(folders)} folders: {SEVERAL_FOLDERS}")
            return folders[0]
        given = file_path if isinstance(file_path, str | os.PathLike) else DEFAULT_STORAGE_DIR
        folder = self._extra.get("file_storage_path") or os.fspath(given)
        return _checked(TypeAdapter(str), folder, "file_storage_path")

    def _active_plugin(self) -> str:
        sections = self._extra["plugin"]
        if not isinstance(sections, Mapping) or not all(
            isinstance(section, Mapping) for section in sections.values()
        ):
            raise ConfigError("plugin: expected a dict of plugins, each with a dict of parameters")
        active = TypeAdapter(bool)
        for name, section in sections.items():
            if _checked(active, section.get("active", False), f"plugin.{name}.active"):
                return _one_of("plugin", str(name).upper(), FILE_PLUGINS + OBJ_PLUGINS)
        raise ConfigError(
            f"plugin: none of {', '.join(map(str, sections)) or '(nothing)'} is active; "
            "set active to true in one of them"
        )

    @staticmethod
    def _named_plugin() -> str:
        name = os.environ.get(PLUGIN_VARIABLE) or "auto"
        if name.lower() == "auto":
            return "auto"
        return _one_of(PLUGIN_VARIABLE, name.upper(), ("auto", *FILE_PLUGINS, *OBJ_PLUGINS))

    def init_params(self, plugin: str) -> dict[str, str]:
        """Return the parameters of one plugin as strings, as NIXL expects them."""
        if "plugin" in self._extra:
            sections = {str(name).upper(): section for name, section in self._extra["plugin"].items()}
            given = {key: value for key, value in sections.get(plugin, {}).items() if key != "active"}
        else:
            given = {key: value for key, value in self._extra.items() if key not in _NOT_FOR_NIXL}
        if plugin == "POSIX":
            return _checked(TypeAdapter(PosixParams), given, "posix").init_params()
        for key, value in given.items():
            if not isinstance(value, str | int | float | bool):
                raise ConfigError(
                    f"{plugin.lower()}.{key}: expected a string, a number or a boolean, "
                    f"got a value of type {type(value).__name__}"
                )
        return {
            key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in given.items()
        }

    def object_params(self) -> dict[str, str]:
        """Return the parameters of OBJ, with what the usual variables add; ``ConfigError`` if they cannot work."""
        return completed(self.init_params("OBJ"))


def is_secret(name: Any) -> bool:
    """Return whether the value of a parameter must not be shown.

    Examples
    --------
    >>> is_secret("secret_key"), is_secret("bucket")
    (True, False)
    """
    return any(part in str(name).lower() for part in ("key", "secret", "token", "password"))


def folders_in(paths: str) -> list[str]:
    """Return the folders of a list with commas, as SGLang reads it since 0.5.23.

    Examples
    --------
    >>> folders_in("/mnt/a, /mnt/b,")
    ['/mnt/a', '/mnt/b']
    """
    return [path.strip() for path in paths.split(",") if path.strip()]


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"{key}: {value!r} is unknown; expected one of {', '.join(allowed)}")
    return str(value)


def _shown(path: str, value: Any) -> str:
    """Return what may be shown of a value that was given: a dict may have secrets in it."""
    if is_secret(path) or not isinstance(value, str | int | float | None):
        return f"a value of type {type(value).__name__}"
    return repr(value)


def _checked(adapter: TypeAdapter[Checked], value: Any, where: str) -> Checked:
    """Validate with pydantic; raise a ConfigError of one line."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            path = ".".join([where, *(str(part) for part in problem["loc"])])
            problems.append(f"{path}: {problem['msg']} (got {_shown(path, problem['input'])})")
        known = ""
        if any(problem["type"] == "extra_forbidden" for problem in error.errors()):
            known = f"; {where} accepts {', '.join(PosixParams.model_fields)}"
        raise ConfigError("; ".join(problems) + known) from None
