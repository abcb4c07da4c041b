"""What a worker is asked to set up: one connector, one host pool, one storage folder."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import KW_ONLY, dataclass
from typing import Any

from ...config import (
    ALIGNMENT,
    LAYOUTS,
    LIFETIMES,
    OBJ_PLUGINS,
    QUEUES,
    HiCacheStorageConfig,
    NixlBackendConfig,
)
from ...errors import ConfigError
from ...lifetimes.pooled.state import MOST_SEGMENTS
from .releases import INSTALLED, PREFIX, installed_in, known_releases, version_of

MODEL_NAME = "replayed-model"
MIB = 1 << 20
USUAL_SEGMENT, CALLS_IN_STORE = 256, 16  # MiB; of ``pooled``
COLUMNS = ("keys", "page_bytes", "queue", "layout", "mla", "direct")  # of a setup in a table


def queue_params(queue: str = "libaio") -> dict[str, Any]:
    """Return the ``extra_config`` that selects the POSIX plugin and one of its queues.

    The plugin is named explicitly, because auto mode falls back to another plugin when POSIX is not available.

    Examples
    --------
    >>> queue_params("io_uring")
    {'plugin': {'posix': {'active': True, 'use_uring': 'true'}}}
    """
    if queue not in QUEUES:
        raise ConfigError(f"queue: {queue!r} is unknown; expected one of {', '.join(QUEUES)}")
    return {"plugin": {"posix": {"active": True, QUEUES[queue]: "true"}}}


def key_of(seed: int, page_id: int) -> str:
    """Return the key of a page that a worker stores: 64 hexadecimal digits, as SGLang's."""
    return hashlib.sha256(f"{seed}:{page_id}".encode()).hexdigest()


@dataclass(frozen=True)
class Setup:
    """What is measured: a connector, its configuration, and the host pool that it serves.

    A setup is checked when it is created, before a process is started for it.

    Attributes
    ----------
    connector : str
        A lifetime, such as ``"scoped"``; a released connector, such as ``"sglang==0.5.11"``; or the connector of
        an installed SGLang, ``"sglang@FOLDER"`` with its site-packages folder.
    queue : str
        The queue of NIXL's POSIX plugin: ``"libaio"``, ``"io_uring"`` or ``"posix_aio"``.
    plugin_params : dict, optional
        SGLang's ``extra_config`` in its full or flat form, such as ``{"use_uring": "true"}``.  It overrides
        ``queue``.
    page_bytes : int
        Bytes of a page, keys and values together.
    pages : int
        Pages in the host pool, which is the largest number of keys in a call.  ``compare`` makes every call with
        this many keys.
    direct : bool
        Use O_DIRECT instead of the page cache, for connectors that have this option.
    room : int, optional
        Pages that the store of ``pooled`` has room for before it drops the oldest, at least those of one call;
        by default those of 16.
    tp_rank, tp_size : int
        Which rank of a server the connector is of, and of how many.

    Examples
    --------
    >>> setup = Setup("leaky", queue="io_uring", pages=16)
    >>> setup.for_connector("scoped").connector
    'scoped'
    """

    connector: str = "leaky"
    _: KW_ONLY
    queue: str = "libaio"
    plugin_params: dict[str, Any] | None = None
    page_bytes: int = 65536
    pages: int = 128
    layout: str = "page_first"
    mla: bool = False
    direct: bool = False
    seed: int = 0
    room: int | None = None
    tp_rank: int = 0
    tp_size: int = 1

    def __post_init__(self) -> None:
        if not self.is_ours and self.version is None and installed_in(self.connector) is None:
            raise ConfigError(
                f"connector: {self.connector!r} is unknown; expected one of {', '.join(LIFETIMES)}, "
                f"a release such as {PREFIX}0.5.12, or {INSTALLED}FOLDER with the folder that SGLang is in"
            )
        config = NixlBackendConfig(self.extra_config if self.is_ours else self.params)
        release = known_releases().get(self.version or "")
        if self.direct and release is not None and release.stands_for:
            raise ConfigError(
                f"direct: {self.connector} has no such option; expected scoped, pooled, or {PREFIX}0.5.13.post1 or later"
            )
        if config.plugin == "auto":
            config.init_params("POSIX")  # the plugin that auto mode selects wherever NIXL runs
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout: {self.layout!r} is unknown; expected one of {', '.join(LAYOUTS)}")
        if self.page_bytes < 8 or self.page_bytes % 8:
            raise ConfigError(f"page_bytes: {self.page_bytes} does not work; expected a multiple of 8")

    @property
    def params(self) -> dict[str, Any]:
        """The ``extra_config`` of the plugin: ``plugin_params``, or the POSIX plugin on ``queue``."""
        selected = queue_params(self.queue)
        return selected if self.plugin_params is None else self.plugin_params

    def for_connector(self, connector: str) -> Setup:
        """Return the same setup with another connector."""
        return dataclasses.replace(self, connector=connector)

    def as_columns(self) -> dict[str, Any]:
        """Return what a comparison holds fixed, as columns of a table.

        Examples
        --------
        >>> Setup(plugin_params={"use_uring": "true"}, pages=16).as_columns()["queue"]
        'io_uring'
        """
        return dict(
            zip(
                COLUMNS,
                (self.pages, self.page_bytes, self._queue_in_use(), self.layout, self.mla, self.direct),
                strict=True,
            )
        )

    def _queue_in_use(self) -> str:
        """Return the queue that the parameters select; the plugin's name where it has no such queues."""
        config = NixlBackendConfig(self.params)
        if config.plugin not in ("auto", "POSIX"):
            return config.plugin
        flags = config.init_params("POSIX")
        return next((queue for queue, flag in QUEUES.items() if flag in flags), "libaio")

    @property
    def on_objects(self) -> bool:
        """Whether the pages are in an object store."""
        return NixlBackendConfig(self.params).plugin in OBJ_PLUGINS

    @property
    def is_ours(self) -> bool:
        """Whether the connector is a lifetime of this package."""
        return self.connector in LIFETIMES

    @property
    def version(self) -> str | None:
        """Which release of SGLang the connector is; None for one of ours, and for an installed one."""
        return version_of(self.connector)

    @property
    def extra_config(self) -> dict[str, Any]:
        """The server's ``extra_config``: O_DIRECT as asked for, and our lifetime, or no cleaner of SGLang's.

        The cleaner of 0.5.23 removes pages when the disk is fuller than 80 %, whoever filled it.
        """
        if self.is_ours:
            extra = {**self.params, "lifetime": self.connector, **self._store_options()}
            return {**extra, "use_direct_io": True} if self.direct else extra
        config = NixlBackendConfig(self.params)
        plugin = "POSIX" if config.plugin == "auto" else config.plugin
        section = {"active": True, **config.init_params(plugin)}
        return {
            "plugin": {plugin.lower(): section},
            "use_direct_io": self.direct,
            "l3_cleaner_enabled": False,
        }

    def _store_options(self) -> dict[str, Any]:
        """Return a capacity for ``pooled`` that is enough, and segments of the usual size, or one for all pages.

        A bucket is not bounded unless that is asked for.
        """
        if self.connector != "pooled" or self.on_objects:
            return {}
        room = CALLS_IN_STORE * self.pages if self.room is None else max(self.room, self.pages)
        page = self.page_bytes + ALIGNMENT
        segment = max(min(-(-room * page // MIB), USUAL_SEGMENT), -(-self.page_bytes // MIB), 1)
        pages = max(segment * MIB // page, 1)
        segments = min(
            -(-room // pages) + 2, MOST_SEGMENTS
        )  # two to spare, so that none is full of old pages
        return {"segment_mb": segment, "capacity_gb": segments * segment / 1024, "min_free_gb": 0}

    def storage_config(self) -> HiCacheStorageConfig:
        """The configuration that a server would pass."""
        return HiCacheStorageConfig(
            tp_rank=self.tp_rank,
            tp_size=self.tp_size,
            pp_rank=0,
            pp_size=1,
            attn_cp_rank=0,
            attn_cp_size=1,
            is_mla_model=self.mla,
            enable_storage_metrics=False,
            is_page_first_layout=self.layout != "layer_first",
            model_name=MODEL_NAME,
            extra_config=self.extra_config,
        )

    def as_message(self) -> dict[str, Any]:
        """The same as plain data."""
        return dataclasses.asdict(self)
