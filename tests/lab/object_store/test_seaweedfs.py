"""A real SeaweedFS: what it stores, what it loses with a server, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from obstore.exceptions import BaseError
from processes import have_ended, wait_until

from hicache_nixl.lab.object_store import ObjectStore, ObjectStoreError, store, weed

pytestmark = pytest.mark.slow  # each store takes a second or two

PAGE = os.urandom(64 * 1024)
KEYS = [f"page{number}" for number in range(50)]


@pytest.fixture(scope="module")
def single() -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        yield store


@pytest.fixture(scope="module")
def cluster() -> Iterator[ObjectStore]:
    with ObjectStore(3) as store:
        yield store


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder in which a store's own folder is made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def put_all(store: ObjectStore, keys: list[str] = KEYS) -> None:
    client = store.endpoint.client()
    for key in keys:
        client.put(key, PAGE)


def loaded(store: ObjectStore, keys: list[str] = KEYS) -> list[bool]:
    client = store.endpoint.client()
    return [bytes(client.get(key).bytes()) == PAGE for key in keys]


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    return {
        tuple(connection.laddr)
        for process in processes
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }


def nothing_listens(ports: set[tuple[str, int]]) -> bool:
    for address in ports:
        with socket.socket() as asked:
            if asked.connect_ex(address) == 0:
                return False
    return True


def sockets() -> set[str]:
    """Return the names of the sockets of any SeaweedFS in /tmp; its names end in a port."""
    return {name for name in os.listdir("/tmp") if name.startswith("seaweedfs")}


class TestSingle:
    def test_an_object_is_stored_listed_loaded_and_removed(self, single):
        client = single.endpoint.client()
        assert list(client.list()) == [], "the probe of the start is gone"
        put_all(single)
        assert all(loaded(single))
        assert sorted(entry["path"] for (*page,) in client.list() for entry in page) == sorted(KEYS)
        client.delete(KEYS)
        assert list(client.list()) == []

    def test_requests_are_counted_by_kind(self, single):
        before = single.requests()
        put_all(single, KEYS[:3])
        assert all(loaded(single, KEYS[:2]))
        more = {kind: count - before.get(kind, 0) for kind, count in single.requests().items()}
        assert {kind: count for kind, count in more.items() if count} == {"PUT": 3, "GET": 2}

    def test_what_was_stored_and_counted_is_there_after_a_stop(self, single):
        put_all(single)
        counted, url = single.requests(), single.endpoint.url
        single.stop()
        assert single.requests() == counted
        with pytest.raises(BaseError):
            single.endpoint.client(retries=0).get(KEYS[0])
        with pytest.raises(ObjectStoreError, match="the s3 is not running"):
            single.stop()
        single.start()
        assert single.endpoint.url == url
        assert single.requests() == counted
        assert all(loaded(single))

    @pytest.mark.parametrize(
        "wrong", [{"secret_key": "other"}, {"access_key": "other"}], ids=lambda wrong: next(iter(wrong))
    )
    def test_wrong_credentials_are_refused(self, single, wrong):
        stranger = replace(single.endpoint, **wrong).client(retries=0)
        for call in (
            lambda: stranger.put("page", PAGE),
            lambda: stranger.get(KEYS[0]),
            lambda: list(stranger.list()),
        ):
            with pytest.raises((BaseError, PermissionError)):
                call()

    def test_a_proxy_of_the_environment_is_not_asked(self, single, monkeypatch):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        put_all(single, KEYS[:1])
        assert single.requests()["PUT"]

    def test_nothing_shows_the_secret(self, single):
        endpoint = single.endpoint
        commands = [" ".join(process.cmdline()) for process in single.processes()]
        for shown in (repr(single), repr(endpoint), single.log(), *commands):
            assert endpoint.secret_key not in shown
        (file,) = single._scratch.glob("s3.json")
        assert file.stat().st_mode & 0o777 == 0o600

    def test_it_listens_and_connects_on_the_loopback_only(self, single):
        processes = single.processes()
        assert len(processes) == 4
        assert {host for host, _ in listening(processes)} == {weed.HOST}
        others = [c.raddr.ip for process in processes for c in process.net_connections() if c.raddr]
        assert set(others) <= {weed.HOST}

    def test_processor_time_is_that_of_each_role(self, single):
        assert set(single.cpu_seconds()) == {"master", "volume1", "filer", "s3"}
        assert min(single.cpu_seconds().values()) > 0


class TestCluster:
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_every_object_is_loaded_and_stored_without_one_server(self, cluster, number):
        put_all(cluster)
        cluster.stop_volume(number)
        assert f"volume{number}" not in cluster.cpu_seconds()
        start = time.monotonic()
        assert all(loaded(cluster))
        put_all(cluster, [f"meanwhile{number}{key}" for key in KEYS])
        assert time.monotonic() - start < 20, "0.3 s on an idle machine"
        cluster.start_volume(number)
        assert all(loaded(cluster, [f"meanwhile{number}{key}" for key in KEYS]))

    def test_a_server_that_it_does_not_have_is_refused(self, cluster):
        for number in (0, 4):
            with pytest.raises(ValueError, match=f"volume server {number}: expected 1 to 3"):
                cluster.stop_volume(number)

    def test_one_copy_is_lost_with_its_server(self):
        with ObjectStore(2, replication="000") as store:
            put_all(store)
            store.stop_volume(1)
            client, found = store.endpoint.client(timedelta(seconds=1), retries=0), 0
            for key in KEYS:
                try:
                    found += bytes(client.get(key).bytes()) == PAGE
                except BaseError:
                    continue
            assert 0 < found < len(KEYS)
            store.start_volume(1)
            assert all(loaded(store))


class TestNothingIsLeft:
    def test_after_the_end_of_a_block(self, temporary):
        with ObjectStore() as store:
            processes = store.processes()
            ports = listening(processes)
            put_all(store, KEYS[:1])
        assert have_ended(processes)
        assert nothing_listens(ports)
        assert list(temporary.iterdir()) == []
        store.close()
        assert "Start Seaweed Master" in store.log(), "it can still be read"
        with pytest.raises(ObjectStoreError, match="closed"):
            store.start()

    def test_after_an_exception_in_a_block(self, temporary):
        processes = []

        def interrupted() -> None:
            with ObjectStore() as store:
                processes.extend(store.processes())
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert have_ended(processes)
        assert list(temporary.iterdir()) == []

    def test_after_a_start_that_takes_too_long(self, temporary, monkeypatch):
        monkeypatch.setattr(store, "HEALTHY", 0.0)
        with pytest.raises(ObjectStoreError, match="took no object after 0 s"):
            ObjectStore()
        assert list(temporary.iterdir()) == []

    def test_after_the_kill_of_the_process_that_has_it(self, tmp_path):
        """Also where one of its servers had been stopped."""
        code = """
import json, time
from hicache_nixl.lab.object_store import ObjectStore
store = ObjectStore(2)
store.endpoint.client().put("page", b"x" * 100_000)
store.stop_volume(2)
print(json.dumps([process.pid for process in store.processes()]), flush=True)
time.sleep(1000)
"""
        environ, before = {**os.environ, "TMPDIR": str(tmp_path)}, sockets()
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environ
        ) as parent:
            processes = [psutil.Process(pid) for pid in json.loads(parent.stdout.readline())]
            ports = listening(processes)
            assert len(processes) == 4
            assert list(tmp_path.glob("hicache-nixl-objects-*"))
            parent.send_signal(signal.SIGKILL)
        wait_until(lambda: have_ended(processes) and nothing_listens(ports))
        wait_until(lambda: not list(tmp_path.iterdir()))
        of_it = [name for name in sockets() - before if any(str(port) in name for _, port in ports)]
        assert of_it == []


def test_a_folder_of_the_user_keeps_the_objects(tmp_path, temporary):
    with ObjectStore(folder=tmp_path / "data") as first:
        put_all(first)
    assert list(temporary.iterdir()) == []
    with ObjectStore(folder=tmp_path / "data") as second:
        assert second.endpoint.secret_key != first.endpoint.secret_key
        assert all(loaded(second))


def test_other_ports_are_tried_when_one_is_taken_meanwhile(monkeypatch):
    with socket.create_server((weed.HOST, 0)) as taken:
        free_ports, asked = weed.free_ports, []

        def taken_at_first(names):
            asked.append(names)
            return free_ports(names) | ({"filer": taken.getsockname()[1]} if len(asked) == 1 else {})

        monkeypatch.setattr(weed, "free_ports", taken_at_first)
        with ObjectStore() as store:
            put_all(store, KEYS[:1])
    assert len(asked) == 2


def test_a_process_that_ends_is_named_with_its_last_lines(monkeypatch, temporary):
    made = weed.commands
    monkeypatch.setattr(
        weed, "commands", lambda *what: made(*what) | {"master": ["sh", "-c", "echo no room; exit 3"]}
    )
    with pytest.raises(ObjectStoreError, match="the master of the object store ended with 3:\nno room"):
        ObjectStore()
    assert list(temporary.iterdir()) == []
