"""An interrupt at any moment leaves nothing behind: no running call, descriptor, registration or handle; no crash."""

from __future__ import annotations

import json
import signal
import sys
import threading

import pytest
import torch
from several import register, several_pools, transfer, transfers_of
from support import LEFT, TESTS, files_in, keys_of, make_pool, names_open, run_python, storage_config

from hicache_nixl import HiCacheNixl
from hicache_nixl.config import HiCacheStorageConfig
from hicache_nixl.contract import PoolTransfer
from hicache_nixl.interrupts import deferred
from hicache_nixl.lifetimes.pooled import transfers

PACKAGES = ("/hicache_nixl/", "/nixl_cu", "/contextlib.py", "/threading.py", "/concurrent/futures/")
RELEASING = pytest.mark.parametrize("lifetime", ["scoped", "pooled"])  # whose calls leave nothing
CALLS = {
    "batch_set_v1": lambda store, pool: store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)),
    "batch_get_v1": lambda store, pool: store.batch_get_v1(keys_of(2), pool.page_indices(0, 2)),
    "batch_exists": lambda store, pool: store.batch_exists(keys_of(2)),
    "batch_set_v2": lambda store, pool: store.batch_set_v2([transfer("kv", pool, keys_of(2))]),
    "batch_get_v2": lambda store, pool: store.batch_get_v2([transfer("kv", pool, keys_of(2))]),
    "batch_exists_v2": lambda store, pool: store.batch_exists_v2(keys_of(2), [PoolTransfer("kv")]),
    "set": lambda store, pool: store.set("value", torch.zeros(4)),
    "get": lambda store, pool: store.get("value", torch.zeros(4)),
    "register_mem_pool_host": lambda store, pool: store.register_mem_pool_host(pool),
    "clear": lambda store, pool: store.clear(),
}


@pytest.fixture(autouse=True)
def handlers():
    """Give back the handlers, and see that each test does."""
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    after = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


# -- the calls -------------------------------------------------------------------------------------------


def interrupted_at(line, call):
    """Run a call, and interrupt it at the given line of ours or NIXL's; return whether it has so many lines."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if not any(package in frame.f_code.co_filename for package in PACKAGES):
            return None
        lines += event == "line"
        if event == "line" and lines == line:
            signal.raise_signal(signal.SIGINT)  # its handler runs here, and may raise here
        return trace

    try:
        sys.settrace(trace)
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return lines >= line


@RELEASING
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_each_line_of_a_call_leaves_nothing(
    make_store, folder, regions_alive, monkeypatch, lifetime, name
):
    monkeypatch.setattr(transfers, "LARGE", 1)  # bytes from which its second thread takes part
    pool = make_pool(False, "page_first")
    one_segment = {"segment_mb": 64, "capacity_gb": 0.2} if lifetime == "pooled" else {}
    store = make_store(lifetime, pool=pool, **one_segment)
    for call in CALLS.values():  # what is opened once is open, and the second thread runs
        call(store, pool)
    before, alive = (names_open(folder), threading.active_count()), regions_alive(store)
    for line in range(1, 10_000, 3):
        if not interrupted_at(line, lambda: CALLS[name](store, pool)):
            break
        assert store._calls._running == set()
    assert 50 < line < 9_000
    assert (names_open(folder), threading.active_count()) == before
    assert alive["FILE_SEG"] == alive["DRAM_SEG"] == 0  # the pool was registered before
    assert store.batch_set_v1(keys_of(2), pool.page_indices(0, 2)) == [True, True]
    store.close()
    assert names_open(folder) == []


@RELEASING
def test_an_interrupt_at_each_line_of_construction_and_close(folder, lifetime):
    made = []

    def construct():
        made.append(HiCacheNixl(storage_config(lifetime), str(folder)))

    def use():
        with HiCacheNixl(storage_config(lifetime), str(folder)) as store:
            assert store.set("value", torch.zeros(4))
            store.clear()

    threads = threading.active_count()
    for call in (construct, use):
        for line in range(1, 10_000, 61):  # an agent takes some milliseconds
            more = interrupted_at(line, call)
            made.clear()  # also one that is not closed
            assert (names_open(folder), threading.active_count()) == ([], threads)
            if not more:
                break
    assert files_in(folder) == ["pooled"] * LEFT[lifetime].one_record


def test_an_interrupt_of_construction_waits_for_its_end(make_store, monkeypatch):
    """In pydantic's C code it would be swallowed: "Exception ignored in: 'cls_name'" and no KeyboardInterrupt."""
    checked, ended = HiCacheStorageConfig.checked, []

    def interrupted(config):
        signal.raise_signal(signal.SIGINT)
        ended.append(checked(config))
        return ended[0]

    monkeypatch.setattr(HiCacheStorageConfig, "checked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_store()
    assert ended


@RELEASING
def test_an_interrupt_waits_for_all_pools_of_a_call(make_store, replace_method, lifetime):
    store, pools = make_store(lifetime), several_pools()
    register(store, pools)
    moved, looked_up = [], []

    def interrupted(noted, method):
        def call(*args):
            if not noted:
                signal.raise_signal(signal.SIGINT)
            noted.append(method)
            return method(*args)

        return call

    replace_method(store.lifetime, "store", interrupted(moved, store.lifetime.store))
    replace_method(store.lifetime, "present", interrupted(looked_up, store.lifetime.present))
    with pytest.raises(KeyboardInterrupt):
        store.batch_set_v2(transfers_of(pools, keys_of(2)))
    assert len(moved) == len(pools)
    with pytest.raises(KeyboardInterrupt):
        store.batch_exists_v2(keys_of(2), [PoolTransfer(name) for name in pools if name != "kv"])
    assert len(looked_up) == len(pools)
    assert all(map(all, store.batch_get_v2(transfers_of(pools, keys_of(2))).values()))


def test_an_interrupt_ends_the_wait_of_close_for_a_call_that_hangs(make_store, run_together):
    store, go_on, started = make_store(), threading.Event(), threading.Event()

    def hang():
        started.set()
        assert go_on.wait(10)

    hanging = threading.Thread(target=store._calls.run, args=(hang,))
    hanging.start()
    assert started.wait(10)
    threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        store.close()
    go_on.set()
    hanging.join(10)
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("queue", ["libaio", "posix_aio"])
@RELEASING
def test_thousands_of_interrupts_at_random_moments(tmp_path, seed, queue, lifetime):
    """Before, the count of running calls stayed up in all such runs, and most ended in a segmentation fault."""
    ran = run_python(str(TESTS / "scripts" / "interrupts.py"), str(tmp_path), str(seed), queue, lifetime)
    assert (ran.returncode, ran.stderr) == (0, "")
    answer = json.loads(ran.stdout)
    assert answer.pop("interrupts") >= 100
    assert answer == {
        "running": 0,
        "descriptors": 0,
        "registrations": 0,
        "handles": 0,
        "threads": 0,
        "files": ["pooled"] * LEFT[lifetime].one_record,
        "works": True,
    }


# -- the deferral ------------------------------------------------------------------------------------------


def test_the_answer_and_the_error_of_an_action_pass():
    assert deferred(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        deferred(divmod, 7, 0)


def test_every_signal_that_arrived_is_handled_once_and_after_the_action():
    events = []

    def note(number, frame):
        events.append(signal.Signals(number).name)
        raise ValueError(number)

    def action():
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2):
            signal.raise_signal(number)
        events.append("end of the action")

    before = signal.signal(signal.SIGUSR2, note), signal.signal(signal.SIGUSR1, note)
    with pytest.raises(ValueError, match=r"\d"):
        deferred(deferred, action)
    signal.signal(signal.SIGUSR2, before[0]), signal.signal(signal.SIGUSR1, before[1])
    assert events[0] == "end of the action"
    assert sorted(events[1:]) == ["SIGUSR1", "SIGUSR2"]


def test_a_handler_that_the_action_sets_stays():
    def ignore(number, frame):
        pass

    before = signal.getsignal(signal.SIGINT)
    deferred(signal.signal, signal.SIGINT, ignore)
    assert signal.getsignal(signal.SIGINT) is ignore
    signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    deferred(signal.raise_signal, signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN


def test_a_deferral_that_an_interrupt_kept_in_place_passes_signals_on():
    before, left = signal.getsignal(signal.SIGINT), []
    deferred(lambda: left.append(signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, left[0])
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        deferred(signal.raise_signal, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_an_action_in_another_thread_just_runs(run_together):
    handlers = []
    run_together(lambda: deferred(lambda: handlers.append(signal.getsignal(signal.SIGINT))))
    assert handlers == [signal.default_int_handler]
