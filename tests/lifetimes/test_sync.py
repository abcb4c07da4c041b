"""``sync``: a page gets its name when its bytes are on the disk, so that a power cut leaves whole pages or none."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

import pytest
import torch
from faults import ALWAYS, IN_NIXL, PAGES, Fault, Observed, get_pages, raising, set_pages
from support import (
    as_bytes,
    fds_below,
    files_in,
    keys_of,
    make_pool,
    names_open,
    scramble,
)

from hicache_nixl.config import QUEUES
from hicache_nixl.errors import ConfigError
from hicache_nixl.transport import durable

NAME = "page0_org-model_0_1_k"


@pytest.fixture
def pool():
    return make_pool(False, "page_first")


@pytest.fixture
def store(make_store, pool):
    return make_store("scoped", pool=pool, sync=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("ordered", "sync"), ("writeback", "sync", "use_direct_io")], ids=" ".join
)
def test_after_a_power_cut_every_page_that_was_stored_is_present_and_holds_its_bytes(left_by_cuts, arguments):
    left = left_by_cuts("power_cut.py", *arguments)
    assert left["stored"] > 1000
    assert (left["lost"], left["older"], left["other bytes"]) == (0, 0, 0)


@pytest.mark.slow
def test_without_the_option_a_power_cut_loses_pages_and_leaves_others_with_other_bytes(left_by_cuts):
    """So the cuts of the test above are real ones; ``data=ordered`` is the default of ext4."""
    left = left_by_cuts("power_cut.py", "ordered")
    assert left["lost"] > 0
    assert left["other bytes"] > 0


@pytest.mark.slow
def test_on_a_file_system_without_a_journal_the_option_does_not_keep_pages(left_by_cuts):
    """So the warning about such a file system is right."""
    assert left_by_cuts("power_cut.py", "no_journal", "sync")["lost"] > 0


@pytest.mark.parametrize(("task", "warned"), [("<none>", True), ("123", False), (None, False)])
def test_a_file_system_without_a_journal_is_a_warning(
    make_store, tmp_path, monkeypatch, caplog, task, warned
):
    """``None``: not ext4."""
    device = os.stat(tmp_path).st_dev
    blocks, told = tmp_path / "dev" / "block", tmp_path / "fs" / "ext4" / "sda1"
    blocks.mkdir(parents=True)
    (blocks / f"{os.major(device)}:{os.minor(device)}").symlink_to(tmp_path / "devices" / "sda1")
    told.mkdir(parents=True)
    if task:
        (told / "journal_task").write_text(f"{task}\n")
    monkeypatch.setattr(durable, "SYSFS", str(tmp_path))
    make_store(sync=True)
    assert sum("no journal" in line for line in caplog.messages) == warned


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_pages_are_stored_replaced_and_loaded(make_store, folder, request, queue, direct, layout):
    if queue == "io_uring":
        request.getfixturevalue("needs_io_uring")
    pool = make_pool(False, layout)
    store = make_store(pool=pool, sync=True, use_direct_io=direct, posix={"queue": queue})
    for _ in range(2):
        scramble(pool)
        original = as_bytes(pool.kv_buffer).clone()
        assert set_pages(store, pool) == [True] * PAGES
        assert store.batch_exists(keys_of(PAGES)) == PAGES
        held = pool.page_indices(0, PAGES)
        pool.kv_buffer.zero_()
        assert get_pages(store, pool) == [True] * PAGES
        loaded = make_pool(False, layout)
        loaded.kv_buffer.copy_(original.view(pool.kv_buffer.dtype).view(pool.kv_buffer.shape))
        for first in held[:: pool.page_size].tolist():
            assert torch.equal(as_bytes(loaded.get_data_page(first)), as_bytes(pool.get_data_page(first)))
    assert names_open(folder) == []


def test_no_file_has_a_name_before_its_bytes_are_on_the_disk(store, pool, folder, replace_method):
    agent, seen = store.lifetime.registration.agent, []
    post = agent.transfer

    def observed_post(handle):
        flags = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in fds_below(folder)]
        seen.append((files_in(folder), [bool(flag & os.O_DSYNC) for flag in flags]))
        return post(handle)

    replace_method(agent, "transfer", observed_post)
    assert all(set_pages(store, pool))
    assert seen == [([], [True] * 2 * PAGES)]
    assert len(files_in(folder)) == 2 * PAGES


@pytest.mark.parametrize("error", [IN_NIXL, KeyboardInterrupt()], ids=["exception", "interrupt"])
def test_a_transfer_that_fails_leaves_no_file(store, pool, folder, replace_method, monkeypatch, error):
    observed = Observed(store, folder, replace_method, monkeypatch)
    disarm = observed.arm(Fault("transfer", raising(error), ALWAYS))
    with suppress(KeyboardInterrupt):
        assert not any(set_pages(store, pool))
    disarm()
    assert files_in(folder) == []
    assert names_open(folder) == []
    assert observed.registered == 0


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to(path.with_name("elsewhere")),
    ],
    ids=["folder", "fifo", "link"],
)
def test_what_is_no_page_is_not_replaced(store, pool, folder, log, put):
    put(folder / NAME)
    assert set_pages(store, pool) == [False, True]
    assert NAME in log.line()
    assert (folder / NAME).is_symlink() or not (folder / NAME).is_file()
    assert not (folder / "elsewhere").exists()


def test_another_name_of_a_page_keeps_its_bytes(store, pool, folder):
    assert all(set_pages(store, pool))
    before = (folder / NAME).read_bytes()
    os.link(folder / NAME, folder / "other")
    scramble(pool)
    assert all(set_pages(store, pool))
    assert (folder / "other").read_bytes() == before != (folder / NAME).read_bytes()


def test_a_file_system_that_cannot_do_it_is_an_error_of_the_configuration(make_store, folder, monkeypatch):
    really_open = os.open

    def refusing(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return really_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(ConfigError, match=r"sync: .* \(Operation not supported\); ext4"):
        make_store(sync=True)
    assert files_in(folder) == []


def test_another_process_may_store_the_same_page_meanwhile(tmp_path, monkeypatch):
    """Its file appears between the removal of the old name and the new link."""
    path, directory = tmp_path / "page", os.open(tmp_path, os.O_RDONLY)
    link, calls = durable._link, []

    def late(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            path.write_bytes(b"theirs")
        link(*arguments)

    monkeypatch.setattr(durable, "_link", late)
    fd = os.open(tmp_path, durable.UNNAMED, 0o600)
    os.write(fd, b"ours")
    durable.name([(fd, "page")], directory)
    os.close(fd)
    os.close(directory)
    assert path.read_bytes() == b"ours"
    assert files_in(tmp_path) == ["page"]
