"""Where the files of a measurement are placed."""

from __future__ import annotations

import os

import pytest

from hicache_nixl.lab.worker import placement
from hicache_nixl.lab.worker.client import Worker
from hicache_nixl.lab.worker.placement import new_subfolder, place_apart, truncate_files
from hicache_nixl.lab.worker.setup import Setup


class TestFolders:
    def test_subfolders_are_empty_and_of_different_names(self, tmp_path):
        folders = [new_subfolder(tmp_path) for _ in range(3)]
        assert len(set(folders)) == 3
        assert all(os.listdir(folder) == [] for folder in folders)
        assert sorted(folders) == sorted(str(path) for path in tmp_path.iterdir())

    def test_a_file_system_without_such_a_flag_is_used_all_the_same(self, tmp_path, monkeypatch):
        def refuse(*args):
            raise OSError("not supported")

        monkeypatch.setattr(placement.fcntl, "ioctl", refuse)
        assert not place_apart(tmp_path)
        assert os.listdir(new_subfolder(tmp_path)) == []

    def test_truncated_files_stay_and_are_empty(self, tmp_path):
        (tmp_path / "below").mkdir()
        paths = [tmp_path / "page", tmp_path / "below" / "page"]
        inodes = []
        for path in paths:
            path.write_bytes(b"bytes")
            inodes.append(path.stat().st_ino)
        truncate_files(tmp_path)
        assert [(path.stat().st_ino, path.stat().st_size) for path in paths] == [(ino, 0) for ino in inodes]


def test_workers_in_one_folder_delete_nothing_in_it_and_read_their_own_pages(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    setups = [Setup("scoped", page_bytes=4096, pages=2, seed=seed) for seed in range(2)]
    with Worker(setups[0]) as first, Worker(setups[1]) as second:
        for worker, setup in zip((first, second), setups, strict=True):
            worker.open(setup, folder=folder)
        for operation in ("set", "get"):
            assert [worker.call(operation, 2).pages_ok for worker in (first, second)] == [2, 2]
        for worker, setup in zip((first, second), setups, strict=True):
            worker.open(setup)
            assert worker.call("exists", 2).pages_ok == 0
        assert len(list(folder.iterdir())) == 8


def test_descriptors_of_a_leak_are_counted_and_closed_in_the_folder_of_another(tmp_path):
    setup = Setup("leaky", page_bytes=4096, pages=2)
    with Worker(setup) as worker:
        worker.open(setup, folder=tmp_path)
        assert worker.call("set", 2).storage_fds == 4
        worker.open(setup)
        assert worker.call("exists", 2).storage_fds == 0


@pytest.mark.parametrize("page_bytes", [4096, 8192])
def test_pages_whose_pieces_o_direct_does_not_take_are_checked_in_the_file_that_they_are_copied_to(
    page_bytes,
):
    with Worker(Setup("scoped", page_bytes=page_bytes, pages=3, direct=True)) as worker:
        assert [worker.call(operation, 3).pages_ok for operation in ("set", "get")] == [3, 3]
        files = [path for path in worker.folder.rglob("*") if path.is_file()]
        assert len(files) == 3 * (page_bytes // 4096)
