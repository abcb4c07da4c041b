"""Pages and folders of other users: a page that someone else wrote never reaches the cache of the model."""

from __future__ import annotations

import os
import stat
import tempfile
import traceback
from pathlib import Path

import pytest
import torch
from support import as_bytes, files_in, keys_of, make_pool, page_files, scramble, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.errors import ConfigError
from hicache_nixl.transport.files import READ, WRITE, NixlFileManager

NOBODY, OTHER = 65534, 65533

# A file of another user can be made by that user and by root alone.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")


def as_user(user, function):
    """Run a function in a child process of another user, under the umask 0777."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            os.umask(0o777)
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "see the traceback of the child"


@pytest.fixture
def open_folder():
    """A folder that any user can reach and write, as /tmp."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


# -- the folder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "owner", "named"),
    [
        (0o777, 0, ["mode 0777", "chmod go-w"]),
        (0o1777, 0, ["mode 1777"]),
        (0o770, 0, ["mode 0770"]),
        (0o702, 0, ["mode 0702"]),
        (0o700, NOBODY, [f"user {NOBODY}", "user 0", "chown"]),
        (0o777, NOBODY, [f"user {NOBODY}", "user 0", "chown"]),
    ],
)
def test_a_folder_that_others_can_write_is_refused_unless_that_is_allowed(
    make_store, folder, mode, owner, named
):
    folder.mkdir()
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    with pytest.raises(ConfigError) as raised:
        make_store()
    assert [
        text for text in (str(folder), "allow_shared_folder", *named) if text not in str(raised.value)
    ] == []
    assert files_in(folder) == []
    assert make_store(allow_shared_folder=True).set("key", torch.zeros(4))


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2750])
def test_a_folder_that_only_its_owner_can_write_is_used(make_store, folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    assert make_store().set("key", torch.zeros(4))


def test_releases_use_any_folder(make_store, folder):
    folder.mkdir()
    folder.chmod(0o777)
    for lifetime in ("leaky", "try_finally"):
        assert make_store(lifetime).set("key", torch.zeros(4))


def test_a_user_makes_a_folder_of_its_own_in_a_folder_of_all_under_any_umask(open_folder):
    def start():
        manager = NixlFileManager(str(open_folder / "parent" / "pages"))
        with manager.opened([manager.get_file_path("page")], WRITE) as (fds, faults):
            assert faults == {}
            os.write(fds[0], b"bytes")
        with manager.opened([manager.get_file_path("page")], READ, [5]) as (_, faults):
            assert faults == {}
        for name, mode in (("parent", 0o700), ("parent/pages", 0o700), ("parent/pages/page", 0o600)):
            assert stat.S_IMODE((open_folder / name).stat().st_mode) == mode
        assert manager.is_whole(manager.get_file_path("page"), 5)

    as_user(NOBODY, start)


def test_a_folder_that_another_user_made_first_is_refused(open_folder):
    def squat():
        (open_folder / "hicache_storage").mkdir()
        (open_folder / "hicache_storage").chmod(0o777)

    def start():
        with pytest.raises(ConfigError, match=f"belongs to user {OTHER}, and this process is user {NOBODY}"):
            NixlFileManager(str(open_folder / "hicache_storage"))

    as_user(OTHER, squat)
    as_user(NOBODY, start)
    with pytest.raises(ConfigError, match="belongs to user"):
        HiCacheNixl(storage_config("scoped"), str(open_folder / "hicache_storage"))


# -- page files ------------------------------------------------------------------------------------------


def plant(folder, pool, pages):
    """Give the files of some pages to another user."""
    for page in pages:
        for ending in page_files(pool, False, page):
            path = folder / f"{keys_of(4)[page]}_org-model_0_1{ending}"
            os.chown(path, NOBODY, NOBODY)
            path.chmod(0o666)


@pytest.mark.parametrize("allowed", [False, True], ids=["own folder", "shared folder"])
def test_page_files_of_others_are_misses_that_one_line_names(make_store, folder, log, allowed):
    pool = make_pool(False, "page_first", 4)
    store = make_store(pool=pool, allow_shared_folder=allowed)
    keys, indices = keys_of(4), pool.page_indices(0, 4)
    assert all(store.batch_set_v1(keys, indices))
    plant(folder, pool, [1, 3])
    scramble(pool)
    before = as_bytes(pool.kv_buffer).clone().view(2, 4, -1)
    assert store.batch_get_v1(keys, indices) == [True, False, True, False]
    line = log.line()
    assert f"belongs to user {NOBODY}, not to user 0" in line
    assert "page1" in line
    after = as_bytes(pool.kv_buffer).view(2, 4, -1)
    assert torch.equal(after[:, [1, 3]], before[:, [1, 3]]), "no planted byte is loaded"


def test_a_planted_page_is_not_present_and_the_log_names_one_of_them(make_store, folder, log):
    pool = make_pool(False, "page_first", 4)
    store = make_store(pool=pool)
    assert all(store.batch_set_v1(keys_of(4), pool.page_indices(0, 4)))
    plant(folder, pool, [1, 3])
    for _ in range(3):
        assert store.batch_exists(keys_of(4)) == 1
    (line,) = log.lines(level=30)
    assert "page files of other users are treated as missing" in line
    assert f"user {NOBODY}" in line


def test_a_page_file_of_another_user_is_not_overwritten(make_store, folder, log):
    pool = make_pool(False, "page_first", 4)
    store = make_store(pool=pool)
    keys, indices = keys_of(4), pool.page_indices(0, 4)
    assert all(store.batch_set_v1(keys, indices))
    plant(folder, pool, [2])
    before = {name: (folder / name).read_bytes() for name in files_in(folder)}
    scramble(pool)
    assert store.batch_set_v1(keys, indices) == [True, True, False, True]
    assert f"belongs to user {NOBODY}" in log.line()
    after = {name: (folder / name).read_bytes() for name in files_in(folder)}
    assert sorted(name for name in after if after[name] == before[name]) == sorted(
        name for name in after if name.startswith(keys[2])
    )
