"""Page files are looked up in the folder that was opened, wherever its path leads by now."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from functools import partial

import pytest
import torch
from faults import raising
from support import _open_fds, as_bytes, files_in, keys_of, make_pool, run_python, scramble

from hicache_nixl.errors import ConfigError, FileError
from hicache_nixl.transport.files import READ, WRITE, NixlFileManager

PAGES = 2
NAMES = sorted(f"{key}_org-model_0_1{ending}" for key in keys_of(PAGES) for ending in ("_k", "_v"))


@pytest.fixture
def parent(tmp_path):
    """The parent of the storage folder, in which an attacker may rename."""
    return tmp_path / "parent"


@pytest.fixture
def pages(parent):
    return parent / "pages"


@pytest.fixture
def pool():
    return make_pool(False, "page_first", PAGES)


@pytest.fixture
def outside(tmp_path):
    """A folder of the same user, with a file of the name of a page in it, and one that is no page."""
    made = tmp_path / "outside"
    made.mkdir(mode=0o700)
    for name in (NAMES[0], "notes"):
        (made / name).write_bytes(b"outside")
    return made


@pytest.fixture(params=[False, True], ids=["no sync", "sync"])
def store(request, make_store, pages, pool):
    return make_store(pool=pool, path=str(pages), sync=request.param)


def link_in_place(pages, outside):
    pages.rename(pages.with_name("held"))
    pages.symlink_to(outside)
    return pages.with_name("held")


def link_in_place_of_the_parent(pages, outside):
    (outside / "pages").symlink_to(".")
    held = pages.parent.rename(pages.parent.with_name("moved"))
    pages.parent.symlink_to(outside)
    return held / "pages"


def other_folder(pages, outside):
    held = pages.rename(pages.with_name("held"))
    outside.rename(pages)
    outside.symlink_to(pages)
    return held


def parent_renamed(pages, outside):
    return pages.parent.rename(pages.parent.with_name("moved")) / "pages"


EXCHANGES = [link_in_place, link_in_place_of_the_parent, other_folder, parent_renamed]
exchanged = pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.__name__)


def contents(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if not entry.is_symlink()}


@exchanged
def test_every_call_goes_to_the_folder_that_was_opened(store, pool, pages, outside, log, exchange):
    keys, indices = keys_of(PAGES), pool.page_indices(0, PAGES)
    assert store.batch_set_v1(keys[:1], indices[: pool.page_size]) == [True]
    before = contents(outside)
    held = exchange(pages, outside)
    assert store.batch_exists(keys) == 1
    assert store.batch_set_v1(keys, indices) == [True] * PAGES
    assert files_in(held) == NAMES
    stored = as_bytes(pool.kv_buffer).clone()
    scramble(pool)
    assert store.batch_get_v1(keys, indices) == [True] * PAGES
    assert torch.equal(as_bytes(pool.kv_buffer), stored)
    assert store.batch_exists(keys) == PAGES
    store.clear()
    assert files_in(held) == []
    assert contents(outside) == before
    assert log.lines() == []


@exchanged
def test_the_failures_of_a_call_are_looked_up_in_the_folder_that_was_opened(
    make_store, pages, pool, outside, log, replace_method, exchange
):
    store = make_store(pool=pool, path=str(pages))
    before = contents(outside)
    held = exchange(pages, outside)
    replace_method(store.lifetime.registration.agent, "transfer", lambda handle: "ERR")
    assert store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)) == [False] * PAGES
    assert files_in(held) == []
    assert contents(outside) == before
    assert all("[Errno 5] holds 0 of 3072 bytes" in line for line in log.lines())


@exchanged
def test_files_that_are_registered_are_those_of_the_folder_that_was_opened(
    make_store, pages, pool, outside, exchange
):
    store = make_store(pool=pool, path=str(pages))
    assert all(store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
    held = exchange(pages, outside)
    with store.register_files([f"{pages}/{NAMES[0]}"]):
        assert list(_open_fds().values()).count(f"{held}/{NAMES[0]}") == 1


def test_a_path_outside_the_folder_can_still_be_registered(make_store, pages, outside):
    store = make_store(path=str(pages))
    with store.register_files([f"{outside}/notes"]):
        assert f"{outside}/notes" in _open_fds().values()


def test_a_symbolic_link_to_the_folder_is_followed_when_it_is_opened_and_not_later(tmp_path, outside):
    """An administrator may put the folder on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "pages").symlink_to(tmp_path / "disk")
    manager = NixlFileManager(str(tmp_path / "pages"))
    (tmp_path / "pages").unlink()
    (tmp_path / "pages").symlink_to(outside)
    with manager.opened(["page"], WRITE) as (fds, faults):
        assert faults == {}
        assert os.readlink(f"/proc/self/fd/{fds[0]}") == str(tmp_path / "disk" / "page")
    manager.close()


# -- the folder is removed -------------------------------------------------------------------------------


def test_a_folder_that_is_removed_is_made_again_by_a_set(store, pool, pages):
    keys, indices = keys_of(PAGES), pool.page_indices(0, PAGES)
    opened = len(_open_fds())
    for _ in range(3):
        shutil.rmtree(pages.parent)
        assert store.batch_exists(keys) == 0
        assert store.batch_get_v1(keys, indices) == [False] * PAGES
        assert not pages.parent.exists(), "only a set makes folders"
        assert store.batch_set_v1(keys, indices) == [True] * PAGES
        assert files_in(pages) == NAMES
        assert [stat.S_IMODE(path.stat().st_mode) for path in (pages.parent, pages)] == [0o700] * 2
    assert len(_open_fds()) == opened


def test_a_folder_that_another_rank_made_again_is_found_by_one_that_only_loads(make_store, pool, pages):
    """With MLA, only rank 0 of SGLang stores."""
    keys, indices = keys_of(PAGES), pool.page_indices(0, PAGES)
    first, second = (make_store(pool=pool, path=str(pages)) for _ in range(2))
    for look in (lambda: second.batch_exists(keys) == PAGES, lambda: all(second.batch_get_v1(keys, indices))):
        shutil.rmtree(pages)
        assert all(first.batch_set_v1(keys, indices))
        assert look()
    shutil.rmtree(pages)
    assert all(first.batch_set_v1(keys, indices))
    second.clear()
    assert files_in(pages) == []


@pytest.mark.parametrize("exchange", [link_in_place, link_in_place_of_the_parent], ids=lambda it: it.__name__)
def test_a_link_where_a_removed_folder_was_is_not_followed(store, pool, pages, outside, log, exchange):
    """An empty folder can be removed by whoever may write to its parent."""
    before = contents(outside)
    exchange(pages, outside).rmdir()
    if exchange is link_in_place_of_the_parent:
        (outside / "pages").unlink()
    assert store.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)) == [False] * PAGES
    line = log.line()
    assert f"was removed, and its path leads to {outside}" in line
    assert str(pages) in line
    assert contents(outside) == before
    assert files_in(outside) == sorted(before), "no folder was made there, either"


def test_a_folder_of_all_in_the_place_of_a_removed_one_is_refused(make_store, pool, pages, log):
    stores = [
        make_store(pool=pool, path=str(pages), allow_shared_folder=allowed) for allowed in (False, True)
    ]
    pages.rmdir()
    pages.mkdir()
    pages.chmod(0o777)
    opened = len(_open_fds())
    answers = [store.batch_set_v1(keys_of(1), pool.page_indices(0, 1)) for store in stores]
    assert answers == [[False], [True]]
    assert "can be written by others (mode 0777)" in log.line()
    assert len(_open_fds()) == opened


def test_a_folder_that_its_server_has_removed_counts_as_removed(tmp_path, monkeypatch):
    manager, fstat = NixlFileManager(str(tmp_path / "pages")), os.fstat
    number = manager._folder.fd
    (tmp_path / "pages").rmdir()

    def stale(fd):
        if fd == number:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fstat(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", stale)
        with manager.opened(["page"], WRITE) as (_, faults):
            assert faults == {}
    manager.close()


def test_threads_that_find_the_folder_removed_use_one_descriptor(tmp_path, run_together):
    manager = NixlFileManager(str(tmp_path / "pages"))
    opened = len(_open_fds())

    def store_pages():
        for number in range(200):
            with manager.opened([f"{number}"], WRITE) as (fds, faults):
                for fd in fds:
                    assert faults or os.readlink(f"/proc/self/fd/{fd}").startswith(f"{tmp_path}/pages/")

    def remove():
        for _ in range(50):
            shutil.rmtree(tmp_path / "pages", ignore_errors=True)

    run_together(store_pages, store_pages, remove)
    assert len(_open_fds()) == opened
    manager.close()


# -- the descriptor --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lifetime", "held"), [("leaky", 0), ("try_finally", 0), ("scoped", 1)])
def test_a_store_holds_one_descriptor_until_close_and_the_releases_none(make_store, pages, lifetime, held):
    """Theirs would be one more than those of the release that they reproduce."""
    stores = [make_store(lifetime, path=str(pages)) for _ in range(3)]
    assert list(_open_fds().values()).count(str(pages)) == 3 * held
    for store in stores:
        store.close()
        store.close()
    assert str(pages) not in _open_fds().values()


def test_the_descriptor_is_closed_in_a_child_program(tmp_path):
    manager = NixlFileManager(str(tmp_path))
    assert not os.get_inheritable(manager._folder.fd)
    os.rmdir(tmp_path)
    with manager.opened(["page"], WRITE):
        assert not os.get_inheritable(manager._folder.fd)
    manager.close()


def test_a_store_that_nobody_closed_closes_its_folder_at_its_end(tmp_path):
    NixlFileManager(str(tmp_path))
    assert str(tmp_path) not in _open_fds().values()


def test_after_close_no_other_folder_is_used(tmp_path, outside):
    """Its number may belong to another one by then."""
    manager = NixlFileManager(str(tmp_path / "pages"))
    number = manager._folder.fd
    manager.close()
    other = os.open(outside, os.O_RDONLY)
    assert other == number
    for flags in (READ, WRITE):
        with manager.opened(["page"], flags) as (_, faults):
            assert faults[0].errno == errno.EBADF
    assert not manager.is_whole("notes", None)
    manager.discard(["notes"])
    with pytest.raises(FileError):
        manager.clear(lambda name: True)
    manager.close()
    assert files_in(outside) == sorted([NAMES[0], "notes"])
    os.close(other)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "made"), ConfigError("made"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    "step",
    [
        "os.scandir",
        "os.fstat",
        "hicache_nixl.transport.files.refuse_shared",
        "hicache_nixl.transport.durable.check",
    ],
)
def test_a_constructor_that_fails_leaves_no_descriptor(tmp_path, monkeypatch, step, error):
    with monkeypatch.context() as patch:
        patch.setattr(step, partial(raising(error), None))
        with pytest.raises((ConfigError, KeyboardInterrupt)) as raised:
            NixlFileManager(str(tmp_path), sync=True)
    assert "made" in str(raised.value) or isinstance(error, KeyboardInterrupt)
    assert str(tmp_path) not in _open_fds().values(), "also while the error is held"
    assert files_in(tmp_path) == []


def test_no_page_file_is_opened_by_its_path(tmp_path):
    """Asked of the kernel: nothing, NIXL included, looks up a name in the folder but relative to its descriptor."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    script = (
        "import sys, torch\n"
        "from support import *\n"
        "pool = make_pool(False, 'page_first', 2)\n"
        "store = HiCacheNixl(storage_config('scoped'), sys.argv[1])\n"
        "store.register_mem_pool_host(pool)\n"
        "keys, indices = keys_of(2), pool.page_indices(0, 2)\n"
        "assert all(store.batch_set_v1(keys, indices)) and all(store.batch_set_v1(keys, indices))\n"
        "assert all(store.batch_get_v1(keys, indices)) and store.batch_exists(keys) == 2\n"
        "store.register_files([f'{sys.argv[1]}/page0_org-model_0_1_k']).close()\n"
        "store.clear()\n"
        "store.close()\n"
    )
    trace = tmp_path / "trace"
    prefix = ("strace", "-f", "-e", "trace=%file", "-o", str(trace))
    ran = run_python("-c", script, str(tmp_path / "pages"), prefix=prefix)
    if "ptrace" in ran.stderr:
        pytest.skip("may not trace processes here")
    assert ran.returncode == 0, ran.stderr
    lines = trace.read_text().splitlines()
    assert [line for line in lines if f"{tmp_path}/pages/" in line and "execve" not in line] == []
    assert sum('"page0_org-model_0_1_k"' in line for line in lines) > 3
