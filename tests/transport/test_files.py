"""Names to paths; opening, closing and removing page files."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading

import pytest
from support import files_in, free_descriptors, names_open, without_capabilities

from hicache_nixl.errors import ConfigError, FileError, HiCacheNixlError
from hicache_nixl.transport.files import WRITE, NixlFileManager

# -- the folder ------------------------------------------------------------------------------------------


def test_the_folder_is_made_and_left_empty(tmp_path):
    manager = NixlFileManager(str(tmp_path / "a" / "b"))
    assert manager.base_dir == str(tmp_path / "a" / "b")
    assert files_in(tmp_path / "a" / "b") == []


def test_a_relative_folder_stays_where_it_was_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manager = NixlFileManager("pages")
    monkeypatch.chdir("/")
    assert manager.get_file_path("key") == str(tmp_path / "pages" / "key")


def test_a_file_in_the_place_of_the_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"\[Errno (17|20)\]") as raised:
            NixlFileManager(str(path))
        assert str(path) in str(raised.value)


def test_a_folder_that_may_not_be_written_is_an_error_that_names_it(tmp_path):
    tmp_path.chmod(0o555)
    with without_capabilities(), pytest.raises(ConfigError, match=r"\[Errno 13\]") as raised:
        NixlFileManager(str(tmp_path))
    tmp_path.chmod(0o755)
    assert str(tmp_path) in str(raised.value)
    assert files_in(tmp_path) == []


def test_a_folder_that_may_not_be_read_is_an_error_that_names_it(tmp_path):
    tmp_path.chmod(0o333)
    with without_capabilities(), pytest.raises(ConfigError, match=r"\[Errno 13\]"):
        NixlFileManager(str(tmp_path))
    tmp_path.chmod(0o755)


def test_many_may_start_on_one_folder_at_the_same_time(tmp_path):
    """The ranks of a server share the folder and start together."""
    errors = []

    def start():
        for _ in range(500):
            try:
                NixlFileManager(str(tmp_path))
            except ConfigError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors[:1] == []
    assert files_in(tmp_path) == []


# -- who may read ----------------------------------------------------------------------------------------


@pytest.fixture(params=[0, 0o022, 0o077, 0o777], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_that_are_made_are_their_owner_s_alone_whatever_the_umask(tmp_path, umask):
    folder = tmp_path / "parent" / "storage"
    manager = NixlFileManager(str(folder))
    assert [mode_of(path) for path in (folder.parent, folder)] == [0o700, 0o700]
    shutil.rmtree(folder.parent)
    with manager.opened([manager.get_file_path("page")], WRITE):
        assert [mode_of(path) for path in (folder.parent, folder)] == [0o700, 0o700]


def test_page_files_are_their_owner_s_alone_whatever_the_umask(tmp_path, umask):
    manager = NixlFileManager(str(tmp_path))
    with manager.opened([manager.get_file_path(name) for name in ("a", "b")], WRITE):
        assert [mode_of(tmp_path / name) for name in ("a", "b")] == [0o600, 0o600]


def test_a_folder_that_is_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    NixlFileManager(str(tmp_path))
    assert mode_of(tmp_path) == 0o755


# -- files -----------------------------------------------------------------------------------------------


def test_create_file_tells_whether_the_file_is_new_and_keeps_an_old_one(manager, tmp_path):
    path = manager.get_file_path("page")
    assert manager.create_file(path) is True
    (tmp_path / "page").write_bytes(b"old")
    assert manager.create_file(path) is False
    assert (tmp_path / "page").read_bytes() == b"old"
    assert names_open(tmp_path) == []


def test_create_file_makes_the_folder_again(manager, tmp_path):
    manager.base_dir = str(tmp_path / "gone")
    assert manager.create_file(manager.get_file_path("page"))
    assert files_in(tmp_path / "gone") == ["page"]


def test_a_file_error_has_errno_and_the_path(manager):
    path = manager.get_file_path("missing")
    with pytest.raises(FileError) as raised:
        manager.open_file(path)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, path)
    assert isinstance(raised.value, OSError)
    assert isinstance(raised.value, HiCacheNixlError)


def test_open_hands_over_a_descriptor_for_both_directions_and_close_ends_it(manager, paths, tmp_path):
    fd = manager.open_file(paths[0])
    assert names_open(tmp_path) == ["a"]
    assert os.write(fd, b"bytes") == 5
    assert os.pread(fd, 5, 0) == b"bytes"
    assert not os.get_inheritable(fd), "a child of the server must not hold pages open"
    assert manager.close_file(fd) is True
    assert names_open(tmp_path) == []


def test_closing_twice_is_false_with_a_line(manager, paths, log):
    fd = manager.open_file(paths[0])
    assert manager.close_file(fd) is True
    assert manager.close_file(fd) is False
    assert f"descriptor {fd}" in (line := log.line())
    assert "[Errno 9]" in line


def test_files_to_nixl_tuples_opens_every_file(manager, paths, tmp_path):
    tuples = manager.files_to_nixl_tuples(paths)
    assert [(offset, length, path) for offset, length, _, path in tuples] == [(0, 0, path) for path in paths]
    assert [os.readlink(f"/proc/self/fd/{fd}") for _, _, fd, _ in tuples] == paths
    assert names_open(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize("position", [0, 1, 3])
def test_files_to_nixl_tuples_closes_what_it_opened_when_a_file_cannot_be(manager, paths, tmp_path, position):
    missing = manager.get_file_path("missing")
    with pytest.raises(FileError, match="missing"):
        manager.files_to_nixl_tuples([*paths[:position], missing, *paths[position:]])
    assert names_open(tmp_path) == []


def test_files_to_nixl_tuples_closes_what_it_opened_at_the_descriptor_limit(manager, paths, tmp_path):
    with free_descriptors(2), pytest.raises(FileError, match=r"\[Errno 24\]"):
        manager.files_to_nixl_tuples(paths)
    assert names_open(tmp_path) == []


def test_a_file_that_is_whole_has_exactly_its_bytes(manager, paths, tmp_path):
    os.truncate(paths[0], 10)
    assert [manager.is_whole(paths[0], size) for size in (9, 10, 11, None)] == [False, True, False, True]
    assert [manager.is_whole(paths[1], size) for size in (1, None)] == [False, False]
    assert not manager.is_whole(str(tmp_path), None)
    assert not manager.is_whole(manager.get_file_path("missing"), None)


# -- removing --------------------------------------------------------------------------------------------


def test_discard_removes_files_that_are_there_and_no_folder(manager, paths, tmp_path, log):
    (tmp_path / "folder").mkdir()
    manager.discard([paths[0], manager.get_file_path("missing"), str(tmp_path / "folder"), paths[2]])
    assert files_in(tmp_path) == ["b", "folder"]
    assert log.lines() == []


def test_discard_says_which_file_it_could_not_remove_and_goes_on(manager, paths, tmp_path, log):
    tmp_path.chmod(0o555)
    with without_capabilities():
        manager.discard([paths[0], manager.get_file_path("missing"), paths[2]])
    tmp_path.chmod(0o755)
    lines = log.lines()
    assert [path for path in paths if any(path in line for line in lines)] == [paths[0], paths[2]]
    assert all("[Errno 13]" in line for line in lines)
    assert len(lines) == 2


def test_clear_removes_the_files_that_are_own_and_no_folder_or_link(manager, tmp_path):
    for name in ("1_m", "2_m_k", "notes"):
        (tmp_path / name).touch()
    (tmp_path / "folder_m").mkdir()
    (tmp_path / "link_m").symlink_to(tmp_path / "notes")
    assert manager.clear(lambda name: name.endswith(("_m", "_m_k"))) == 2
    assert files_in(tmp_path) == ["folder_m", "link_m", "notes"]


# -- which file made a transfer fail ---------------------------------------------------------------------


def test_first_fault_names_the_first_file_that_cannot_hold_its_page(manager, paths, tmp_path):
    for path in paths:
        os.truncate(path, 100)
    sizes = [100] * 3
    assert manager.first_fault(paths, sizes, writing=False) is None
    os.truncate(paths[2], 99)
    fault = manager.first_fault(paths, sizes, writing=False)
    assert (fault.errno, fault.filename) == (errno.EIO, paths[2])
    assert "99 of 100 bytes" in str(fault)
    os.unlink(paths[1])
    fault = manager.first_fault(paths, sizes, writing=False)
    assert (fault.errno, fault.filename) == (errno.ENOENT, paths[1])
    os.unlink(paths[0])
    (tmp_path / "a").mkdir()
    fault = manager.first_fault(paths, sizes, writing=False)
    assert (fault.errno, fault.filename) == (errno.EISDIR, paths[0])


def test_first_fault_of_a_short_write_is_a_full_disk_only_when_there_is_no_space(manager, paths):
    assert manager.first_fault(paths[:1], [1], writing=True).errno == errno.EIO
    more_than_any_disk = 1 << 60
    assert manager.first_fault(paths[:1], [more_than_any_disk], writing=True).errno == errno.ENOSPC
    assert manager.first_fault(paths[:1], [more_than_any_disk], writing=False).errno == errno.EIO
