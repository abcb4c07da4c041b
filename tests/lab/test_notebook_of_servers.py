"""Notebook 08 where no server can be installed: every arm is marked as not run, and nothing fails."""

from __future__ import annotations

import shutil

import pytest

from hicache_nixl.lab import execute as reproduction


@pytest.mark.slow
def test_without_a_cache_folder_every_server_is_not_run_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("HICACHE_NIXL_CACHE", "/dev/null")
    result = reproduction.execute([], profile="server", run=f"servers-{tmp_path.name}")
    try:
        assert result.errors() == []
        assert sorted(result.not_run) == [
            "sglang==0.5.11",
            "sglang==0.5.12",
            "sglang==0.5.13.post1",
            "sglang==0.5.23",
        ]
        assert "set HICACHE_NIXL_CACHE to a folder" in result.not_run["sglang==0.5.11"]
        assert set(result.outcomes[0].claims.verdict) == {"not applicable"}
        assert "Not run: " in result.page.read_text()
    finally:
        shutil.rmtree(result.folder)
