"""The storage folder, its file system, and O_DIRECT really tried."""

from __future__ import annotations

import os
import subprocess

import pytest
from findings import MOUNT, asked
from support import unshare, without_capabilities

from hicache_nixl.config import STORAGE_DIR_VARIABLE
from hicache_nixl.doctor import machine, storage_check
from hicache_nixl.doctor.finding import NO, NOTE, OK


class TestStorageFolder:
    def test_one_that_is_there_and_can_be_written_to(self, tmp_path):
        storage = storage_check.find(str(tmp_path))
        assert (storage.folder, storage.place, storage.problem) == (tmp_path, tmp_path, "")
        assert list(tmp_path.iterdir()) == []

    def test_the_folder_of_a_server_is_created_by_the_connector_so_its_parent_is_tried(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setenv(STORAGE_DIR_VARIABLE, f"{tmp_path}/a/b")
        storage = storage_check.find()
        assert (storage.folder, storage.place) == (tmp_path / "a/b", tmp_path)
        finding = machine.storage_findings(storage)[0]
        assert finding.state == OK
        assert f"({STORAGE_DIR_VARIABLE}) does not exist yet; the connector creates it in" in finding.detail

    def test_several_folders_of_a_server_are_a_problem(self, tmp_path, monkeypatch):
        monkeypatch.setenv(STORAGE_DIR_VARIABLE, f"{tmp_path}/a,{tmp_path}/b")
        storage = storage_check.find()
        assert (storage.place, storage.problem) == (None, "are several folders")
        assert "name one" in storage.advice

    def test_without_the_variable_it_is_the_connector_s_default(self):
        storage = storage_check.find()
        assert (str(storage.folder), storage.source) == ("/tmp/hicache_storage", "the default")

    @pytest.mark.parametrize(
        ("name", "problem", "advice"),
        [
            ("missing", "cannot be found: No such file or directory", "Create it (mkdir -p {}), or choose"),
            ("file", "cannot be used: it is a file", "Choose a folder"),
            ("file/below", "cannot be found: Not a directory", "choose a folder that exists"),
            ("nowhere", "cannot be found: No such file or directory", "choose a folder that exists"),
            ("loop", "cannot be found: Too many levels of symbolic links", "choose a folder that exists"),
        ],
    )
    def test_one_that_was_given_and_cannot_be_one_says_why(self, tmp_path, name, problem, advice):
        (tmp_path / "file").touch()
        (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        storage = storage_check.find(f"{tmp_path}/{name}")
        assert (storage.place, storage.problem) == (None, problem)
        assert advice.format(storage.folder) in storage.advice

    @pytest.mark.parametrize(
        ("folder", "problem"),
        [
            ("/proc", "cannot hold files: it is in proc, a file system of the kernel"),
            ("/sys/kernel", "cannot hold files: it is in sysfs, a file system of the kernel"),
            ("", "cannot be the name of a folder"),
            ("a\0b", "cannot be the name of a folder"),
            ("x" * 300, "cannot be found: File name too long"),
        ],
    )
    def test_an_odd_one_is_one_clear_line(self, folder, problem):
        storage = storage_check.find(folder)
        assert (storage.place, storage.problem) == (None, problem)
        assert storage.advice

    def test_one_that_others_can_write_to_is_refused_as_by_the_connector(self, tmp_path):
        tmp_path.chmod(0o777)
        storage = storage_check.find(str(tmp_path))
        assert storage.place is None
        assert storage.problem.startswith("can be written by others (mode 0777), who could put pages into")
        assert storage.advice.startswith("Chmod go-w it")

    def test_a_file_in_the_path_of_the_folder_of_a_server_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv(STORAGE_DIR_VARIABLE, f"{tmp_path}/file/pages")
        assert storage_check.find().problem.endswith(f"{tmp_path}/file is a file")

    @pytest.mark.parametrize("given", [True, False], ids=["given", "server's own"])
    def test_one_that_this_user_cannot_write_to_says_so(self, tmp_path, monkeypatch, given):
        monkeypatch.setenv(STORAGE_DIR_VARIABLE, f"{tmp_path}/locked/pages")
        (tmp_path / "locked").mkdir(mode=0o555)
        with without_capabilities():
            storage = storage_check.find(f"{tmp_path}/locked" if given else None)
        assert storage.place is None
        assert storage.problem.startswith("cannot be written to: Permission denied")
        assert f"let uid {os.geteuid()} write to it" in storage.advice

    def test_one_on_a_read_only_file_system_says_so(self, tmp_path):
        code = f"tell(machine.storage_findings(storage_check.find({str(tmp_path)!r})))"
        folder, kind, direct = asked(code, *unshare(), "sh", "-c", MOUNT, "tmpfs", "ro", str(tmp_path))
        assert folder.state == NO
        assert "cannot be written to: Read-only file system" in folder.detail
        assert [(finding.state, finding.detail) for finding in (kind, direct)] == [
            (NOTE, "not tried: no storage folder")
        ] * 2


class TestFileSystem:
    def test_it_is_the_one_that_the_kernel_names(self, tmp_path):
        command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(tmp_path)]
        named = subprocess.run(command, capture_output=True, text=True, check=True)
        disk = storage_check.file_system(tmp_path)
        assert disk.kind == named.stdout.strip()
        assert disk.free_bytes > 0
        assert "/" not in disk.options

    def test_o_direct_moves_aligned_bytes_and_leaves_nothing(self, tmp_path):
        works, result = storage_check.direct_io(tmp_path)
        assert (works, result.partition(";")[0]) == (True, "4096 aligned bytes were written and read")
        assert list(tmp_path.iterdir()) == []

    def test_a_ramfs_is_memory_and_refuses_o_direct(self, tmp_path):
        code = f"tell(machine.storage_findings(storage_check.find({str(tmp_path)!r})))"
        folder, kind, direct = asked(code, *unshare(), "sh", "-c", MOUNT, "ramfs", "rw", str(tmp_path))
        assert folder.state == OK
        assert kind.state == NOTE
        assert kind.detail.startswith("this is memory, not a disk: ramfs")
        assert (direct.state, direct.detail) == (NO, "open is refused (Invalid argument)")
        assert "falls back to the page cache" in direct.advice

    def test_a_tmpfs_is_memory_and_o_direct_has_no_effect_there(self, tmp_path):
        code = f"tell(machine.storage_findings(storage_check.find({str(tmp_path)!r})))"
        _, kind, direct = asked(
            code, *unshare(), "sh", "-c", MOUNT, "tmpfs", "size=8m,mode=700", str(tmp_path)
        )
        assert kind.detail.startswith("this is memory, not a disk: tmpfs, 0.0 GB free")
        assert direct.state in (NOTE, NO)  # tmpfs takes it from Linux 6.6 on
