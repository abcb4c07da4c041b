"""What the rounds of prompts to real servers are made of; the servers themselves are in tests/lab/server."""

from __future__ import annotations

import io

import torch

from hicache_nixl import HiCacheNixl
from hicache_nixl.config import HiCacheStorageConfig
from hicache_nixl.lab.experiments import serving
from hicache_nixl.lab.runs.record import AVAILABLE
from hicache_nixl.lab.server import ServerError

RELEASES = ["sglang==0.5.11", "sglang==0.5.12", "sglang==0.5.13.post1", "sglang==0.5.23"]


def test_pages_of_files_that_are_overwritten_are_loaded_with_other_bytes(tmp_path):
    with HiCacheNixl(config("scoped"), tmp_path) as store:
        values = [torch.full((64,), value) for value in (1, 2)]
        assert store.batch_set(["a", "b"], values)
        serving.overwrite_pages(tmp_path)
        assert store.get("a", torch.zeros(64, dtype=torch.int64)).tolist() != values[0].tolist()


def test_pages_of_pooled_that_are_overwritten_are_misses(tmp_path):
    with HiCacheNixl(config("pooled", capacity_gb=0.2), tmp_path) as store:
        assert store.batch_set(["a", "b"], [torch.full((64,), value) for value in (1, 2)])
        serving.overwrite_pages(tmp_path)
        assert store.batch_get(["a", "b"], [torch.zeros(64, dtype=torch.int64)] * 2) == [None, None]


def config(lifetime: str, **options: object) -> HiCacheStorageConfig:
    extra = {"lifetime": lifetime, "plugin": {"posix": {"active": True}}, **options}
    return HiCacheStorageConfig(0, 1, 0, 1, 0, 1, False, False, True, "m", extra_config=extra)


def test_a_server_that_cannot_be_installed_is_left_out_with_the_reason(monkeypatch):
    def install(version: str, progress: object) -> None:
        if version == "0.5.12":
            raise ServerError("no registry")

    monkeypatch.setattr(serving, "install", install)
    released = serving.servers()
    assert released.connector.tolist() == RELEASES
    assert released.status.tolist() == [AVAILABLE, "no registry", AVAILABLE, AVAILABLE]
    assert serving.served(released, ["fix"], count=1).empty
    assert list(serving.served(released, ["fix"], count=1).columns) == serving.COLUMNS
    table, samples = serving.served_and_watched(released, "fix", count=1)
    assert table.empty
    assert samples.empty
    assert serving.first_tokens(released, "fix", ["own"], prompts=1).empty


def test_registered_bytes_are_the_sum_over_the_agents_of_a_process(monkeypatch):
    text = "".join(
        f'agent_memory_{what}_total{{agent_instance="{number}"}} {value}\n'
        for what, values in (("registered", (4000, 0)), ("deregistered", (1000, 0)))
        for number, value in enumerate(values)
    )
    text += "agent_xfer_time NaN\n"
    monkeypatch.setattr(serving.HTTP, "open", lambda url, timeout: io.BytesIO(text.encode()))
    assert serving._registered({"NIXL_TELEMETRY_PROMETHEUS_PORT": "1"}) == 3000
    assert serving._registered({}) is None
