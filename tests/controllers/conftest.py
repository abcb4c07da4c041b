"""Fixtures: the interpreters of two releases of SGLang, installed if they can be, and processes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from server_python import Process, ServerPython

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.server import ServerError, install, installed


@pytest.fixture(scope="session")
def server_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ServerPython]]:
    """Start the interpreter of a release, once; skip where it is not installed and cannot be."""
    started: dict[str, ServerPython] = {}

    def start(version: str) -> ServerPython:
        if version not in started:
            try:
                environment = installed(version) or install(version)
            except (ConfigError, ServerError) as error:
                pytest.skip(str(error))
            started[version] = ServerPython(environment, tmp_path_factory.mktemp("server_python"))
        return started[version]

    yield start
    for python in started.values():
        python.close()


@pytest.fixture(scope="module")
def shared(server_python: Callable[[str], ServerPython]) -> Iterator[Callable[[str], Process]]:
    """Give a process of a release that the tests of a module use one after the other."""
    opened: dict[str, tuple[Process, object]] = {}

    def process(version: str) -> Process:
        if version not in opened:
            manager = server_python(version).process()
            opened[version] = (manager.__enter__(), manager)
        return opened[version][0]

    yield process
    for _, manager in opened.values():
        manager.__exit__(None, None, None)
