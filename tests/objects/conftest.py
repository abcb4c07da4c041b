"""Tests of the connector over objects, in a process that has loaded the build of NIXL with OBJ; see test_over_objects.py."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest
from object_pieces import empty_bucket
from support import OBJECTS, STORE_VARIABLE, make_pool, object_store, storage_config

from hicache_nixl import HiCacheNixl

if STORE_VARIABLE not in os.environ:
    collect_ignore_glob = ["test_*.py"]

TIMEOUT = 1.5  # seconds that the connectors of these tests wait for an answer


class Between:
    """A proxy in front of the object store: it can hold its answers, take its time, or close all connections."""

    def __init__(self, port: int):
        self._port, self._ends = port, ExitStack()
        self._go, self.delay, self.asked = threading.Event(), 0.0, b""
        self._go.set()
        self._open: list[socket.socket] = []
        self._lock, self._closed = threading.Lock(), False
        self._listening = self._ends.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):  # it was closed
            while True:
                near, _ = listening.accept()
                with self._lock:
                    if self._closed:
                        near.close()
                        break
                    self._open.append(near)
                    far = socket.create_connection(("127.0.0.1", self._port))
                    self._open.append(far)
                for source, to, answers in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._pass, args=(source, to, answers), daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                if answers:
                    self._go.wait()
                    threading.Event().wait(self.delay)
                else:
                    self.asked += content
                to.sendall(content)
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Hold all answers."""
        self._go.clear()

    def go_on(self) -> None:
        """Pass answers on again."""
        self._go.set()

    def die(self) -> None:
        """Close all connections, and refuse new ones."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._cut()

    def come_back(self) -> None:
        """Listen on the same port again."""
        address = ("127.0.0.1", urlsplit(self.url).port)
        self._listening = self._ends.enter_context(socket.create_server(address))
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def _cut(self) -> None:
        while self._open:
            end = self._open.pop()
            with suppress(OSError):  # its thread was faster
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self.go_on()
        self._closed = True
        self._ends.close()
        with self._lock:
            self._cut()


@pytest.fixture(autouse=True)
def empty_store() -> None:
    empty_bucket()


@pytest.fixture(params=["scoped", "pooled"])
def lifetime(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def between() -> Iterator[Between]:
    proxy = Between(urlsplit(object_store().url).port or 80)
    yield proxy
    proxy.close()


@pytest.fixture
def pool():
    return make_pool(False, "page_first", 32)


@pytest.fixture
def open_store(pool) -> Iterator[Callable[..., HiCacheNixl]]:
    """Open connectors with an endpoint that differs in some fields, and close them after the test."""
    stores = []

    def opened(lifetime: str, *, obj=None, **other) -> HiCacheNixl:
        extra = {"object_timeout": TIMEOUT, **other.pop("extra", {})}
        config = storage_config(lifetime + OBJECTS, **extra)
        endpoint = dataclasses.replace(object_store(), **other)
        section = {**endpoint.extra_config()["plugin"]["obj"], **(obj or {})}
        config.extra_config["plugin"] = {"obj": section}
        store = HiCacheNixl(config)
        stores.append(store)
        store.register_mem_pool_host(pool)
        return store

    yield opened
    for store in stores:
        store.close()
