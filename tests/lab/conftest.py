"""Fixtures: the instruments must not depend on what the shell or an earlier test has set."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from hicache_nixl.config import PLUGIN_VARIABLE, STORAGE_DIR_VARIABLE
from hicache_nixl.lab.releases import at_hand

IO_URING_SETUP = 425  # the number of the system call, on every architecture
IO_URING_PARAMS_BYTES = 120


@pytest.fixture(scope="session", autouse=True)
def shell_without_settings() -> Iterator[None]:
    """Fixtures of a module start workers before those of a test can clean the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in (PLUGIN_VARIABLE, STORAGE_DIR_VARIABLE, "AWS_DEFAULT_BUCKET"):
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
