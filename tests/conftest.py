"""Fixtures: a store in a folder of the test's own, its host pool, the log, faults in a live agent."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "HICACHE_NIXL_TEST_OBJECT_STORE" in os.environ:
    import nixl_cu12._api  # noqa: F401  # before anything imports nixl: the build with OBJ

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel
from support import LEFT, Left, close_below, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.config import DEFAULT_LIFETIME, FILE_PER_PIECE
from hicache_nixl.host.pools import LAYOUTS, HostKVPool
from hicache_nixl.lab.worker.releases import at_hand
from hicache_nixl.options import VARIABLES

IO_URING_SETUP = 425  # the number of the system call, on every architecture
IO_URING_PARAMS_BYTES = 120

os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")  # read when nixl is first imported
# A shell that starts the tests in the background has them, and so the processes that they start, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a released wheel slow: the first one downloads it."""
    for item in items:
        if "released" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def no_open_figures() -> Iterator[None]:
    """Close what a test has drawn, so that no other test finds it."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(params=FILE_PER_PIECE)
def lifetime(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def left(lifetime: str) -> Left:
    """What the lifetime of this test leaves alive per file."""
    return LEFT[lifetime]


@pytest.fixture(params=[False, True], ids=["multi_head", "mla"])
def mla(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The storage folder of the stores that ``make_store`` makes."""
    return tmp_path / "pages"


@pytest.fixture
def make_store(tmp_path: Path, folder: Path) -> Iterator[Callable[..., HiCacheNixl]]:
    """Make connectors, and own their end: what they leak on purpose is closed after the test."""
    stores = []

    def make(
        lifetime: str = DEFAULT_LIFETIME, *, pool: HostKVPool | None = None, path: Any = None, **config: Any
    ) -> HiCacheNixl:
        store = HiCacheNixl(storage_config(lifetime, **config), path or str(folder))
        stores.append(store)
        if pool is not None:
            store.register_mem_pool_host(pool)
        return store

    yield make
    for store in stores:
        store.close()
    close_below(tmp_path)


@pytest.fixture
def store(make_store: Callable[..., HiCacheNixl], lifetime: str) -> HiCacheNixl:
    """A connector of each lifetime."""
    return make_store(lifetime)


class Log:
    """The error lines of the package."""

    def __init__(self, caplog: pytest.LogCaptureFixture):
        self._caplog = caplog

    def lines(self, level: int = logging.ERROR) -> list[str]:
        """Return the lines since the last look."""
        lines = [
            record.getMessage()
            for record in self._caplog.records
            if record.name.startswith("hicache_nixl") and record.levelno >= level
        ]
        self._caplog.clear()
        return lines

    def line(self) -> str:
        """Return the line since the last look; there must be exactly one."""
        lines = self.lines()
        assert len(lines) == 1, f"{len(lines)} error lines: {lines}"
        return lines[0]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


@pytest.fixture
def replace_method() -> Iterator[Callable[[Any, str, Callable[..., Any]], None]]:
    """Replace a method of one live object until the test ends."""
    replaced: list[tuple[Any, str]] = []

    def replace(target: Any, name: str, function: Callable[..., Any]) -> None:
        setattr(target, name, function)
        replaced.append((target, name))

    yield replace
    for target, name in replaced:
        vars(target).pop(name, None)


@pytest.fixture
def regions_alive(
    replace_method: Callable[[Any, str, Callable[..., Any]], None],
) -> Callable[[HiCacheNixl], Counter[str]]:
    """Count, from now on, the regions that a store's agent holds registered: FILE_SEG, DRAM_SEG."""

    def watch(store: HiCacheNixl) -> Counter[str]:
        agent, alive = getattr(store, "lifetime", store).registration.agent, Counter[str]()
        register, deregister = agent.register_memory, agent.deregister_memory
        counting = threading.Lock()

        def counted_register(*args: Any, **kwargs: Any) -> Any:
            regions = register(*args, **kwargs)
            with counting:
                alive[regions.getType().name] += regions.descCount()
            return regions

        def counted_deregister(regions: Any, *args: Any, **kwargs: Any) -> Any:
            with counting:
                alive[regions.getType().name] -= regions.descCount()
            return deregister(regions, *args, **kwargs)

        replace_method(agent, "register_memory", counted_register)
        replace_method(agent, "deregister_memory", counted_deregister)
        return alive

    return watch


@pytest.fixture(scope="session", autouse=True)
def shell_without_settings() -> Iterator[None]:
    """Remove settings of the shell that would change the outcome of tests."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in VARIABLES:
            patch.delenv(variable, raising=False)
        yield


@pytest.fixture(scope="session")
def released() -> Callable[[str], str]:
    """Give back the name of a released connector, fetched; skip where neither cache nor registry has it."""

    def connector(name: str) -> str:
        if reason := at_hand([name])[name]:
            pytest.skip(reason)  # SGLang's code is not ours to keep, so without a registry there is no peer
        return name

    return connector


@pytest.fixture
def io_uring_fd() -> Iterator[int | None]:
    """An io_uring of this process, asked of the kernel itself; None where the kernel refuses it."""
    parameters = ctypes.create_string_buffer(IO_URING_PARAMS_BYTES)
    fd = ctypes.CDLL(None).syscall(IO_URING_SETUP, 4, parameters)
    yield fd if fd >= 0 else None
    if fd >= 0:
        os.close(fd)


@pytest.fixture
def needs_io_uring(io_uring_fd: int | None) -> None:
    """Skip where the kernel refuses io_uring, as in many containers: a setting of the machine, not of ours."""
    if io_uring_fd is None:
        pytest.skip(
            "the kernel refuses io_uring here"
        )  # seccomp or a sysctl; the refusal itself is tested with a filter


@pytest.fixture(scope="module")
def kernel() -> Iterator[BlockingKernelClient]:
    """A kernel of this interpreter, as a notebook has one."""
    manager, client = start_new_kernel(kernel_name="python3")
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture
def run_together() -> Callable[..., None]:
    """Run functions in threads at the same time; the first that raised raises here."""

    def run(*functions: Callable[[], None]) -> None:
        errors: list[BaseException] = []
        start = threading.Barrier(len(functions))

        def guarded(function: Callable[[], None]) -> None:
            start.wait(10)
            try:
                function()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        for error in errors:
            raise error

    return run
