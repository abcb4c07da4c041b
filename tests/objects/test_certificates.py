"""A store that is reached by https, with a certificate of an authority that only its owner knows."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from support import OBJECTS, keys_of, object_store, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import ConfigError, PluginError
from hicache_nixl.lab.object_store import endpoint_of

KEYS = keys_of(8)


class TlsProxy:
    """A proxy that speaks TLS, in front of the object store."""

    def __init__(self, port: int, context: ssl.SSLContext):
        self._port, self._loop = port, asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context))
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _do(self, what):
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _serve(self, near: asyncio.StreamReader, near_end: asyncio.StreamWriter) -> None:
        far, far_end = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await asyncio.gather(self._pass(near, far_end), self._pass(far, near_end))
        finally:
            near_end.transport.abort()
            far_end.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while content := await source.read(1 << 16):
                to.write(content)
                await to.drain()
        to.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.1)  # in which the sockets are closed

    def close(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_bundle(authority, tmp_path) -> Path:
    """Return a file of the certificate of the authority; its name has a space."""
    file = tmp_path / "our ca.pem"
    authority.cert_pem.write_to_path(file)
    return file


def proxy_of(certificate: trustme.LeafCert) -> Iterator[TlsProxy]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    proxy = TlsProxy(urlsplit(object_store().url).port or 80, context)
    yield proxy
    proxy.close()


@pytest.fixture
def secured(authority) -> Iterator[TlsProxy]:
    yield from proxy_of(authority.issue_cert("127.0.0.1"))


@pytest.fixture
def of_another_host(authority) -> Iterator[TlsProxy]:
    yield from proxy_of(authority.issue_cert("store.example"))


@pytest.fixture(autouse=True)
def variables(monkeypatch) -> None:
    """No certificates but those of a test."""
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


def stores_and_finds(store: HiCacheNixl, pool) -> None:
    pages = pool.page_indices(0, len(KEYS))
    assert all(store.batch_set_v1(KEYS, pages))
    assert store.batch_exists(KEYS) == len(KEYS)
    assert all(store.batch_get_v1(KEYS, pages))


def test_an_authority_that_is_named_is_trusted(lifetime, open_store, pool, secured, ca_bundle):
    stores_and_finds(open_store(lifetime, url=secured.url, ca_bundle=str(ca_bundle)), pool)


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_variable_may_name_it(open_store, pool, secured, ca_bundle, monkeypatch, variable):
    monkeypatch.setenv(variable, str(ca_bundle))
    stores_and_finds(open_store("pooled", url=secured.url), pool)


def test_the_lab_trusts_it(secured, ca_bundle, monkeypatch, pool):
    for name, value in object_store().variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(ca_bundle))
    endpoint = endpoint_of(secured.url)
    endpoint.client().put("name", b"content")
    config = storage_config("pooled" + OBJECTS)
    config.extra_config.update(endpoint.extra_config())
    with HiCacheNixl(config) as store:
        store.register_mem_pool_host(pool)
        stores_and_finds(store, pool)


def test_a_certificate_that_is_not_trusted_is_told(lifetime, open_store, pool, secured, log):
    store = open_store(lifetime, url=secured.url)
    assert not any(store.batch_set_v1(KEYS, pool.page_indices(0, len(KEYS))))
    assert store.batch_exists(KEYS) == 0
    assert all(
        "its certificate is not trusted; name that of its authority in ca_bundle" in line
        for line in log.lines()
    )


def test_a_certificate_of_another_host_is_told(open_store, of_another_host, ca_bundle, log):
    store = open_store("pooled", url=of_another_host.url, ca_bundle=str(ca_bundle))
    assert store.batch_exists(KEYS) == 0
    assert "its certificate is for another host" in log.lines()[0]


def test_that_a_store_does_not_speak_tls_is_told(open_store, log):
    store = open_store("pooled", url=object_store().url.replace("http:", "https:"))
    assert store.batch_exists(KEYS) == 0
    assert "it does not speak TLS; is it http?" in log.lines()[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file or directory"), ("", "there is no certificate in PEM format in it")],
)
def test_a_file_without_certificates_is_refused(open_store, tmp_path, content, says):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises((ConfigError, PluginError), match=f"ca_bundle {file}: {says}"):
        open_store("pooled", url="https://127.0.0.1:9", ca_bundle=str(file))


def test_a_store_by_http_needs_no_certificates(open_store, pool, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nothing/here")
    stores_and_finds(open_store("pooled"), pool)
