"""Two ways to publish a file: both write all of it, and nothing stays."""

from __future__ import annotations

import os

from hicache_nixl.lab.experiments import publishing
from hicache_nixl.lab.experiments.publishing import WAYS, publish_times


def test_each_pair_times_both_ways_and_nothing_stays(tmp_path):
    table = publish_times(3, 100, repeats=2, storage_dir=tmp_path)
    assert sorted(zip(table.pair, table.way, strict=True)) == [(p, w) for p in (0, 1) for w in sorted(WAYS)]
    assert (table.seconds > 0).all()
    assert list(tmp_path.iterdir()) == []


def test_a_file_beside_its_target_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    seen = []
    write = os.write
    monkeypatch.setattr(
        publishing.os, "write", lambda fd, data: seen.append(os.listdir(tmp_path)) or write(fd, data)
    )
    publishing._write(tmp_path / "page", b"bytes", beside=True)
    assert seen == [["page.part"]]
    assert (tmp_path / "page").read_bytes() == b"bytes"
    assert os.listdir(tmp_path) == ["page"]
