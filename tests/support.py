"""What the tests share: configurations, pools, open descriptors by name, processes of their own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hicache_nixl import HiCacheNixl, HiCacheStorageConfig, MlaHostPool, MultiHeadHostPool
from hicache_nixl.config import DEFAULT_LIFETIME, RELEASED
from hicache_nixl.host.pools import HostKVPool

if TYPE_CHECKING:
    from hicache_nixl.lab.object_store import Endpoint

MODEL = "org/model"  # its files end in _org-model_0_1, MLA: _org-model
TESTS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Left:
    """What one lifetime leaves alive, per file (or buffer) that a call used, and what it answers.

    Attributes
    ----------
    fds : int
        Descriptors per file of a transfer.
    file_registrations, buffer_registrations : int
        Regions registered with NIXL per file and per buffer of a transfer.
    registered_fds : int
        Descriptors per path of ``register_files`` after its caller let the registration go.
    interrupted_opens : int
        Of the files that were open when an interrupt came between two opens, how many stay open each.
    fails_together : bool
        Whether one bad page fails its whole batch with one line, as in SGLang.
    one_record : bool
        Whether a page is one record in a large file: its pieces are stored and lost together, an error names the
        key instead of a piece, and pages that are missing share a line.
    opened_once : int
        Descriptors that the first page opens for the life of the store.
    """

    fds: int
    file_registrations: int
    buffer_registrations: int
    registered_fds: int
    interrupted_opens: int
    fails_together: bool
    one_record: bool = False
    opened_once: int = 0

    def answers(self, *good: bool) -> list[bool]:
        """Return what a batch call answers when these of its pages are good."""
        return [all(good)] * len(good) if self.fails_together else list(good)

    def lines(self, bad_files: int) -> int:
        """Return how many lines are logged for so many bad files in a batch, all of the same kind."""
        return 1 if self.fails_together or self.one_record else bad_files


# The one table of what the lifetimes differ in; everything else in the contract is the same for all.
LEFT = {
    "leaky": Left(1, 1, 1, 1, 1, fails_together=True),
    "try_finally": Left(0, 1, 1, 1, 1, fails_together=True),
    "scoped": Left(0, 0, 0, 0, 0, fails_together=False),
    "pooled": Left(0, 0, 0, 0, 0, fails_together=False, one_record=True, opened_once=1),
    "scoped_objects": Left(0, 0, 0, 0, 0, fails_together=False),  # of the tests only: the plugin OBJ
    "pooled_objects": Left(0, 0, 0, 0, 0, fails_together=False, one_record=True),
    "in_memory": Left(0, 0, 0, 0, 0, fails_together=False),  # of the tests only
}
OBJECTS = "_objects"  # how the names of lifetimes end here that use the plugin OBJ
STORE_VARIABLE = (
    "HICACHE_NIXL_TEST_OBJECT_STORE"  # with an endpoint as JSON, the contract is tested over objects
)
# A store of pooled without these may use half of the disk.
SMALL_STORE = {"capacity_gb": 0.02, "segment_mb": 1, "min_free_gb": 0}


def storage_config(
    lifetime: str = DEFAULT_LIFETIME,
    *,
    mla: bool = False,
    model: str | None = MODEL,
    tp_rank: int = 0,
    tp_size: int = 1,
    pp: tuple[int, int] = (0, 1),
    cp: tuple[int, int] = (0, 1),
    posix: dict[str, Any] | None = None,
    **extra: Any,
) -> HiCacheStorageConfig:
    """Return what a server would hand over, for the POSIX plugin unless the name of the lifetime says OBJ; stores of ``pooled`` are small."""
    if lifetime == "pooled":
        extra = SMALL_STORE | extra
    plugin = {"posix": {"active": True, **(posix or {})}}
    if lifetime.endswith(OBJECTS):
        lifetime, plugin = lifetime.removesuffix(OBJECTS), object_store().extra_config()["plugin"]
    return HiCacheStorageConfig(
        tp_rank=tp_rank,
        tp_size=tp_size,
        pp_rank=pp[0],
        pp_size=pp[1],
        attn_cp_rank=cp[0],
        attn_cp_size=cp[1],
        is_mla_model=mla,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name=model,
        extra_config={"plugin": plugin, "lifetime": lifetime, **extra},
    )


def object_store() -> Endpoint:
    """Return the object store that the tests use, in a process that has loaded the build of NIXL with OBJ."""
    from hicache_nixl.lab.object_store import Endpoint

    return Endpoint(**json.loads(os.environ[STORE_VARIABLE]))


def make_pool(
    mla: bool, layout: str, pages: int = 8, *, page_size: int = 64, dtype: torch.dtype = torch.bfloat16
) -> HostKVPool:
    """Return a pool of random bits whose pages have as many bytes as those of the table in facts.md.

    Pages of 64 tokens are named alike in every lifetime; those of the table have 4.
    """
    shape = {"layers": 3, "page_size": page_size, "pages": pages, "layout": layout, "dtype": dtype}
    if mla:
        pool: HostKVPool = MlaHostPool(
            kv_lora_rank=256 // page_size, qk_rope_head_dim=64 // page_size, **shape
        )
    else:
        pool = MultiHeadHostPool(kv_heads=2, head_dim=256 // page_size, **shape)
    scramble(pool)
    return pool


def scramble(pool: HostKVPool) -> None:
    """Fill a pool with new random bits; any bit pattern, NaN among them, is a page."""
    as_bytes(pool.kv_buffer).random_(0, 256)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View a contiguous tensor as bytes, which compare equal where NaN does not."""
    return tensor.view(torch.uint8)


def page_tensor(pool: HostKVPool, mla: bool, page: int) -> torch.Tensor:
    """Return a page by plain slicing, without the pool's own methods; planes stay apart."""
    first = page * pool.page_size
    planes = pool.kv_buffer[None] if mla else pool.kv_buffer
    if pool.layout == "layer_first":
        return planes[:, :, first : first + pool.page_size]
    if pool.layout == "page_first":
        return planes[:, first : first + pool.page_size]
    return planes[:, page]


def page_files(pool: HostKVPool, mla: bool, page: int) -> dict[str, bytes]:
    """Return what the files of a page hold, by the ending of their names."""
    planes = [as_bytes(plane.contiguous()).numpy().tobytes() for plane in page_tensor(pool, mla, page)]
    if pool.layout == "layer_first":
        return {"": b"".join(planes)}
    return dict(zip(("_k",) if mla else ("_k", "_v"), planes, strict=True))


def suffix(mla: bool, layout: str = "page_first", lifetime: str = DEFAULT_LIFETIME) -> str:
    """Return what stands behind the key in the name of a page's file, before ``_k`` or ``_v``."""
    differs = layout == "page_first_direct" and lifetime not in RELEASED
    return ("_org-model" if mla else "_org-model_0_1") + f"+{layout}" * differs


def keys_of(count: int, prefix: str = "page") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def _open_fds() -> dict[int, str]:
    """Return every descriptor of this process with its target."""
    targets = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor that listdir itself used
            targets[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    return targets


def fds_below(folder: Path) -> dict[int, str]:
    """Return the descriptors of files below a folder, also of files that were removed."""
    root = f"{folder}/"
    return {
        fd: target.removeprefix(root).removesuffix(" (deleted)")
        for fd, target in _open_fds().items()
        if target.startswith(root)
    }


def names_open(folder: Path) -> list[str]:
    """Return the names of the files that are held open below a folder, one per descriptor.

    A comparison with this list fails with the names of the files that leaked.
    """
    return sorted(fds_below(folder).values())


def close_below(folder: Path) -> None:
    """Close what a leaky connector left open."""
    if fds_below(folder):
        gc.collect()  # what ends with its object ends first, and not once its number is that of another file
    for fd in fds_below(folder):
        os.close(fd)


def let_go(store: HiCacheNixl, registration: Any) -> None:
    """End what ``register_files`` returned, as far as its caller can."""
    end = getattr(registration, "close", None) or partial(
        store.lifetime.registration.deregister, registration
    )
    end()


def files_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Leave this process exactly ``count`` descriptors that it can still open."""
    gc.collect()  # or what is freed within the block is one more
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    padding: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(_open_fds()) + count + 1, hard))
        with contextlib.suppress(OSError):
            while True:
                padding.append(os.open(os.devnull, os.O_RDONLY))
        for fd in padding[len(padding) - count :]:
            os.close(fd)
        del padding[len(padding) - count :]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in padding:
            os.close(fd)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let a write end where the file has this size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def without_capabilities() -> Iterator[None]:
    """Let permissions count for root too: give up the effective capabilities for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits of each
    assert libc.capget(header, held) == 0
    none_effective = (ctypes.c_uint32 * 6)(0, *held[1:3], 0, *held[4:6])
    assert libc.capset(header, none_effective) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


def unshare() -> tuple[str, ...]:
    """Return how to run a program in a separate mount namespace, as root or with user namespaces."""
    for options in (("--mount",), ("--mount", "--map-root-user")):
        if subprocess.run(["unshare", *options, "true"], capture_output=True).returncode == 0:
            return ("unshare", *options)
    raise OSError("these tests mount a small tmpfs and need unshare(1): root, or user namespaces")


def run_python(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a script, or ``-c`` and code, in a fresh interpreter that can import this module."""
    return subprocess.run(
        [*prefix, sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        timeout=100,
    )


def answer_of(process: subprocess.CompletedProcess[str]) -> Any:
    """Return the JSON in the last line of a script's output; NIXL may have printed before it."""
    assert process.returncode == 0, f"exit {process.returncode}\n{process.stdout}\n{process.stderr}"
    return json.loads(process.stdout.splitlines()[-1])
