"""How a connector ends where pages are files: its folder, NIXL's descriptors, transfers under way."""

from __future__ import annotations

import threading

import pytest
import torch
from support import _open_fds, files_in, make_pool

from hicache_nixl.config import QUEUES
from hicache_nixl.errors import RegistrationError


def test_clear_keeps_other_files_and_folders(make_store, folder, log):
    store = make_store()
    (folder / "notes.txt").touch()
    (folder / "subfolder_org-model_0_1").mkdir()
    kept = files_in(folder)
    assert store.set("value", torch.zeros(4))
    store.clear()
    assert files_in(folder) == kept
    assert log.lines() == []


def test_clear_when_the_folder_is_gone_is_one_line(store, folder, log):
    folder.rmdir()
    store.clear()
    line = log.line()
    assert "clear" in line
    assert str(folder) in line
    assert "[Errno 2]" in line


@pytest.mark.parametrize("queue", QUEUES)
def test_close_gives_back_what_nixl_itself_opened(make_store, queue):
    """io_uring has a descriptor for each queue, which lives as long as the agent."""
    before = _open_fds()
    for _ in range(3):
        store = make_store(posix={"queue": queue})
        assert store.set("key", torch.zeros(4))
        store.close()
    assert _open_fds() == before


def test_close_waits_for_a_transfer_of_another_thread(make_store, folder, replace_method):
    """SGLang closes at detach, while its threads may be in a transfer."""
    store, pool = make_store(), make_pool(False, "page_first")
    store.register_mem_pool_host(pool)
    agent, polled, go_on, answers = (
        store.lifetime.registration.agent,
        threading.Event(),
        threading.Event(),
        [],
    )
    poll = agent.check_xfer_state

    def slow_poll(handle):
        polled.set()
        assert go_on.wait(10)
        return poll(handle)

    replace_method(agent, "check_xfer_state", slow_poll)
    setting = threading.Thread(
        target=lambda: answers.append(store.batch_set_v1(["a"], pool.page_indices(0, 1)))
    )
    closing = threading.Thread(target=store.close)
    setting.start()
    assert polled.wait(10)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    go_on.set()
    setting.join(10)
    closing.join(10)
    assert answers == [[True]]
    assert store.batch_set_v1(["b"], pool.page_indices(0, 1)) == [False]


def test_a_pool_that_cannot_be_registered_leaves_the_names_of_the_one_before(make_store, replace_method):
    """Else pages of the one layout would be stored under the names of the other."""
    store = make_store("scoped", pool=make_pool(False, "page_first"))
    names = store.names.of_pages(["key"], True).names

    def refused(*args):
        raise RegistrationError("made to fail")

    replace_method(store.lifetime, "register_pool", refused)
    with pytest.raises(RegistrationError):
        store.register_mem_pool_host(make_pool(False, "page_first_direct"))
    assert store.names.of_pages(["key"], True).names == names
    assert store.mem_pool_host.layout == "page_first"
