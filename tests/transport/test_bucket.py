"""Requests to a bucket that is away: one in some seconds waits, the others fail at once; and what ``ask`` asks for."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, suppress
from types import SimpleNamespace

import pytest

from hicache_nixl.errors import AwayError, StoreError
from hicache_nixl.transport import bucket
from hicache_nixl.transport.bucket import Bucket

PATIENCE = 0.2  # seconds
EMPTY = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


class Server:
    """An endpoint that answers every request alike, or not at all, and notes the requests."""

    def __init__(self, host="127.0.0.1"):
        self.asked, self.answer = [], b""
        self._listening = socket.create_server((host, 0))
        self.url = f"http://{host}:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):  # it was closed
            while True:
                end, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(end,), daemon=True).start()

    def _serve(self, end):
        with closing(end), suppress(OSError):
            while asked := end.recv(1 << 16):
                self.asked.append(asked.split(b" ", 2)[1].decode())
                if self.answer:
                    end.sendall(self.answer)

    def says(self, status, content):
        self.answer = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)

    def close(self):
        self._listening.close()


@pytest.fixture
def server():
    with closing(Server()) as made:
        yield made


def bucket_of(server, patience=PATIENCE):
    params = {"bucket": "b", "region": "r", "endpoint_override": server.url}
    return closing(Bucket({**params, "access_key": "a", "secret_key": "s"}, patience))


@pytest.fixture
def store(server):
    with bucket_of(server) as made:
        yield made


def test_only_one_request_waits_for_a_store_that_does_not_answer(server, store):
    with pytest.raises(AwayError, match="did not answer in time"):
        store.ask()
    asked, start = len(server.asked), time.monotonic()
    for call in (store.ask, lambda: store.sizes(["name"]), lambda: list(store.names())):
        with pytest.raises(AwayError, match="did not answer in time"):
            call()
    assert time.monotonic() - start < PATIENCE
    assert len(server.asked) == asked


def test_a_store_that_is_back_is_used_after_the_time_in_which_it_is_not_asked(server, store, monkeypatch):
    monkeypatch.setattr(bucket, "AGAIN", 0.3)
    with pytest.raises(AwayError):
        store.ask()
    server.says(b"200 OK", EMPTY)
    with pytest.raises(AwayError):
        store.ask()
    time.sleep(0.3)
    store.ask()


def test_a_store_that_refuses_is_asked_again(server, store):
    server.says(b"403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>")
    for count in (1, 2):
        with pytest.raises(StoreError, match="AccessDenied") as raised:
            store.ask()
        assert not isinstance(raised.value, AwayError)
        assert len(server.asked) == count


@pytest.mark.parametrize(
    ("host", "cause"),
    [("127.0.0.1", "connection refused"), ("no-such-host.invalid", "name not resolved")],
    ids=["nobody-listens", "no-such-host"],
)
def test_a_store_that_cannot_be_reached_says_why(host, cause):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with bucket_of(SimpleNamespace(url=f"http://{host}:{port}"), patience=10) as store:
        for _ in range(2):  # at once, the second time
            with pytest.raises(AwayError, match=f"http://{host}:{port} cannot be reached: {cause}$"):
                store.ask()


def test_asking_lists_no_object_of_others(server, store):
    """Their names may be none that obstore takes, a policy may forbid it, and there may be many."""
    server.says(b"200 OK", EMPTY)
    store.ask()
    (asked,) = server.asked
    assert "prefix=pooled-1%2Fnothing%2F" in asked


def test_a_proxy_of_the_environment_is_not_asked_for_an_endpoint(monkeypatch):
    """NIXL does not ask one either, so what it stores would not be found."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with closing(Server("127.0.0.2")) as server, bucket_of(server) as store:
        server.says(b"200 OK", EMPTY)
        store.ask()
        assert len(server.asked) == 1
