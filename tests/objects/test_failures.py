"""An object store that refuses, is away, dies or takes its time: False in a bounded time, nothing left, and then on."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from conftest import TIMEOUT
from support import as_bytes, keys_of, make_pool, scramble

from hicache_nixl.errors import StoreError
from hicache_nixl.transport import objects

PAGES = 24
SLOW = TIMEOUT + 3  # seconds; a call that waited, on a machine with other work


def timed(call, *args):
    start = time.monotonic()
    answer = call(*args)
    return answer, time.monotonic() - start


def everything_fails(store, pool):
    """Make each call once; return the longest time, in seconds."""
    keys, indices = keys_of(PAGES), pool.page_indices(0, PAGES)
    longest = 0.0
    for call, args, failed in (
        (store.batch_set_v1, (keys, indices), [False] * PAGES),
        (store.batch_get_v1, (keys, indices), [False] * PAGES),
        (store.batch_exists, (keys,), 0),
        (store.set, ("value", torch.zeros(4)), False),
    ):
        answer, seconds = timed(call, *args)
        assert answer == failed
        longest = max(longest, seconds)
    return longest


def everything_works(store, pool):
    keys, indices = keys_of(PAGES, "again"), pool.page_indices(0, PAGES)
    before = as_bytes(pool.kv_buffer)[:, : PAGES * pool.page_size].clone()
    assert store.batch_set_v1(keys, indices) == [True] * PAGES
    assert store.batch_exists(keys) == PAGES
    scramble(pool)
    assert store.batch_get_v1(keys, indices) == [True] * PAGES
    assert torch.equal(as_bytes(pool.kv_buffer)[:, : PAGES * pool.page_size], before)


def left(store):
    """Return how many requests and registrations of calls a store still has."""
    late = requests_of(store)._lanes._late
    return sum(len(lane.running) for lane in late), len(late)


def requests_of(store):
    return store.lifetime._objects if hasattr(store.lifetime, "_objects") else store.lifetime._requests


def until_it_works(store, pool, seconds=40.0):
    """Wait until the store takes requests again; return how long that took."""
    start = time.monotonic()
    while not all(store.batch_set_v1(keys_of(1), pool.page_indices(0, 1))):
        assert time.monotonic() - start < seconds
        time.sleep(0.1)
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"secret_key": "wrong"}, "SignatureDoesNotMatch"),
        ({"access_key": "nobody"}, "InvalidAccessKeyId"),
    ],
    ids=["secret", "access key"],
)
def test_wrong_credentials_are_refused_and_never_logged(open_store, lifetime, pool, log, wrong, says):
    store = open_store(lifetime, **wrong)
    assert everything_fails(store, pool) < TIMEOUT
    lines = log.lines()
    assert len(lines) == 4, "one for each call"
    assert says in lines[0]
    assert not any(secret in line for line in lines for secret in ("wrong", "nobody"))
    assert left(store) == (0, 0)


def test_without_a_store_every_call_fails_in_time(open_store, lifetime, pool, log):
    store = open_store(lifetime, url="http://127.0.0.1:9")
    assert everything_fails(store, pool) < SLOW
    lines = log.lines()
    assert len(lines) == 4
    assert all("the object store at http://127.0.0.1:9 cannot be reached" in line for line in lines)


def test_a_store_that_dies_and_comes_back_is_used_again(open_store, lifetime, pool, between, log):
    store = open_store(lifetime, url=between.url)
    everything_works(store, pool)
    between.die()
    assert everything_fails(store, pool) < SLOW
    between.come_back()
    until_it_works(store, pool)
    everything_works(store, pool)
    assert left(store) == (0, 0)


@pytest.mark.parametrize("operation", ["set", "get"])
def test_a_store_that_dies_in_the_middle_of_a_batch_fails_it_in_time(
    open_store, lifetime, pool, between, operation
):
    store, answers = open_store(lifetime, url=between.url), []
    keys, indices = keys_of(PAGES), pool.page_indices(0, PAGES)
    assert all(store.batch_set_v1(keys, indices))
    call = store.batch_set_v1 if operation == "set" else store.batch_get_v1
    between.hold()  # the first requests are on their way
    thread = threading.Thread(target=lambda: answers.append(timed(call, keys, indices)))
    thread.start()
    time.sleep(0.3)
    between.die()
    thread.join(30)
    between.go_on()
    ((answer, seconds),) = answers
    assert answer == [False] * PAGES
    assert seconds < SLOW
    between.come_back()
    until_it_works(store, pool)
    everything_works(store, pool)


def test_a_store_that_does_not_answer_fails_one_call_in_time_and_the_next_ones_at_once(
    open_store, lifetime, pool, between, log
):
    store = open_store(lifetime, url=between.url)
    everything_works(store, pool)
    keys, indices = keys_of(PAGES), pool.page_indices(0, PAGES)
    between.hold()
    answer, seconds = timed(store.batch_set_v1, keys, indices)
    assert answer == [False] * PAGES
    assert TIMEOUT <= seconds < SLOW
    assert "did not answer for 1.5 s" in log.lines()[0]
    assert everything_fails(store, pool) < TIMEOUT, "no call waits for a store that is known to be away"
    assert any("has not answered" in line for line in log.lines())
    assert left(store)[0] > 0
    between.go_on()
    until_it_works(store, pool)
    assert left(store) == (0, 0)
    everything_works(store, pool)


def test_a_get_that_is_not_answered_takes_no_longer_than_it_may(open_store, lifetime, pool, between, log):
    store = open_store(lifetime, url=between.url)
    keys, indices = keys_of(PAGES), pool.page_indices(0, PAGES)
    assert all(store.batch_set_v1(keys, indices))
    assert all(store.batch_get_v1(keys, indices))
    between.hold()
    answer, seconds = timed(store.batch_get_v1, keys, indices)
    between.go_on()
    assert answer == [False] * PAGES
    assert TIMEOUT <= seconds < 1.9 * TIMEOUT
    assert "did not answer for 1.5 s" in log.line()


def test_keys_that_are_given_are_not_mixed_with_a_token_of_the_environment(
    open_store, lifetime, pool, between, monkeypatch
):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-other-keys")
    store = open_store(lifetime, url=between.url)
    everything_works(store, pool)
    assert b"x-amz-date" in between.asked.lower()
    assert b"token-of-other-keys" not in between.asked


def test_an_answer_that_is_late_changes_nothing_in_the_pool(open_store, lifetime, pool, between):
    """The pages of a get that was given up have other owners by then."""
    store = open_store(lifetime, url=between.url)
    keys, indices = keys_of(PAGES), pool.page_indices(0, PAGES)
    assert all(store.batch_set_v1(keys, indices))
    between.hold()
    assert store.batch_get_v1(keys, indices) == [False] * PAGES
    scramble(pool)
    others = pool.kv_buffer.clone()
    between.go_on()
    until_it_works(store, pool)
    assert torch.equal(as_bytes(pool.kv_buffer), as_bytes(others))


def test_a_page_that_is_stored_late_has_the_bytes_of_its_call(open_store, lifetime, pool, between):
    """The host memory has other pages by the time that a slow store reads the request."""
    store = open_store(lifetime, url=between.url)
    assert store.set("warm up", torch.zeros(4))
    page = torch.arange(512)
    expected = page.clone()
    between.hold()
    assert store.set("late", page) is False
    page.random_()
    between.go_on()
    until_it_works(store, pool)
    found = store.get("late", torch.zeros_like(page))
    assert found is None or torch.equal(found, expected)


def test_a_slow_store_is_waited_for_as_long_as_it_answers(open_store, lifetime, pool, between, monkeypatch):
    monkeypatch.setattr(objects, "IN_FLIGHT", 4)
    store = open_store(lifetime, url=between.url)
    between.delay = TIMEOUT / 10
    everything_works(store, pool)


def test_an_object_is_not_asked_for_again_while_another_one_of_its_call_is_late(
    open_store, pool, monkeypatch
):
    """The second request would take the place of the late one in the lane, which is then lent with it."""
    store = open_store("scoped")
    requests, run, calls = store.lifetime._objects, objects.ObjectRequests.run, []
    small = torch.arange(8)
    assert store.set("short", small)

    def late(self, direction, lane, parts):
        errors = run(self, direction, lane, parts)
        calls.append(len(parts))
        lane.running[0] = Handle(done)
        return [StoreError("late"), *errors[1:]]

    done, check = threading.Event(), requests._registration.agent.check_xfer_state
    agent = requests._registration.agent
    monkeypatch.setattr(
        agent,
        "check_xfer_state",
        lambda handle: handle.state() if isinstance(handle, Handle) else check(handle),
    )
    release = agent.release_xfer_handle
    monkeypatch.setattr(
        agent, "release_xfer_handle", lambda handle: None if isinstance(handle, Handle) else release(handle)
    )
    monkeypatch.setattr(objects.ObjectRequests, "run", late)
    into = torch.zeros(64, dtype=torch.int64)
    names = [f"{name}{store.names.suffix}" for name in ("late", "short")]
    errors = requests.get(names, [(into.data_ptr(), 64), (into.data_ptr() + 64, 128)])
    assert calls == [2]
    assert all(isinstance(error, StoreError) for error in errors)
    assert [len(lane.running) for lane in requests._lanes._late] == [1]
    done.set()
    requests.check()
    assert requests._lanes._late == []


class Handle:
    """A request that is not answered until an event is set."""

    def __init__(self, done):
        self._done = done

    def state(self):
        return "DONE" if self._done.is_set() else "PROC"


def test_close_does_not_wait_for_a_store_that_does_not_answer(open_store, lifetime, pool, between, log):
    store = open_store(lifetime, url=between.url)
    everything_works(store, pool)
    between.hold()
    assert store.batch_set_v1(keys_of(4), pool.page_indices(0, 4)) == [False] * 4
    _, seconds = timed(store.close)
    assert seconds < objects.CLOSING + 3
    between.go_on()
    deadline = time.monotonic() + 40
    while any(thread.name.startswith("hicache-nixl-late") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert store.lifetime.registration.agent is None, "the agent ends with the last answer"


def test_hundreds_of_objects_do_not_wait_for_each_other_when_nobody_listens(open_store, lifetime, log):
    store = open_store(lifetime, url="http://127.0.0.1:9")
    many = make_pool(False, "page_first", 512)
    store.register_mem_pool_host(many)
    answer, seconds = timed(store.batch_set_v1, keys_of(512), many.page_indices(0, 512))
    assert answer == [False] * 512
    assert seconds < SLOW
    assert "of 512" in log.line()


def test_calls_of_several_threads_never_use_a_number_of_an_object_twice(
    open_store, lifetime, pool, run_together
):
    store, numbers = open_store(lifetime), []
    registration, lock = store.lifetime.registration, threading.Lock()
    make = registration.objects_to_nixl_tuples

    def noted(names, sizes):
        tuples = make(names, sizes)
        with lock:
            numbers.extend(number for _, _, number, _ in tuples)
        return tuples

    registration.objects_to_nixl_tuples = noted

    def calls(prefix):
        indices = pool.page_indices(0, PAGES)
        for turn in range(3):
            keys = keys_of(PAGES, f"{prefix}{turn}-")
            assert all(store.batch_set_v1(keys, indices))
            assert all(store.batch_get_v1(keys, indices))

    run_together(*[lambda prefix=prefix: calls(prefix) for prefix in "abc"])
    assert len(numbers) == len(set(numbers)) > 0


def test_no_log_line_error_or_repr_shows_a_secret(open_store, lifetime, pool, between, caplog):
    secret = "a-secret-that-nobody-may-see"
    caplog.set_level("DEBUG")
    store = open_store(lifetime, secret_key=secret, obj={"session_token": f"token-{secret}"})
    everything_fails(store, pool)
    with pytest.raises(ValueError, match=r"obj.secret_key: expected a string.*got a value of type list"):
        open_store(lifetime, obj={"secret_key": [secret]})
    assert secret not in caplog.text
    assert secret not in repr(store)


def test_a_new_server_whose_store_lists_segments_but_sends_none_says_so_and_finds_them_later(
    open_store, pool, between, log
):
    keys = keys_of(PAGES)
    assert all(open_store("pooled").batch_set_v1(keys, pool.page_indices(0, PAGES)))
    store = open_store("pooled", url=between.url)
    requests_of(store).bucket = requests_of(open_store("pooled")).bucket  # not through the proxy
    between.hold()
    found, seconds = timed(store.batch_exists, keys)
    assert found == 0
    assert TIMEOUT <= seconds < SLOW
    assert "did not answer for 1.5 s" in log.line()
    found, seconds = timed(store.batch_exists, keys)
    assert found == 0
    assert seconds < TIMEOUT
    between.go_on()
    start = time.monotonic()
    while store.batch_exists(keys) < PAGES:
        assert time.monotonic() - start < 40
        time.sleep(0.1)


def test_segments_that_cannot_be_loaded_are_said_once_and_hide_no_other_ones(
    open_store, pool, monkeypatch, log
):
    writer, reader = open_store("pooled"), open_store("pooled")
    assert all(writer.batch_set_v1(keys_of(2, "good"), pool.page_indices(0, 2)))
    assert reader.batch_exists(keys_of(2, "good")) == 2
    assert all(writer.batch_set_v1(keys_of(2, "bad"), pool.page_indices(0, 2)))
    refused = [StoreError("the request failed in NIXL: state ERR")]
    with monkeypatch.context() as patched:
        patched.setattr(objects.ObjectRequests, "run", lambda self, direction, lane, parts: refused)
        for _ in range(3):
            assert reader.batch_exists(keys_of(2, "bad")) == 0
    assert "the object store lists objects that NIXL cannot load" in log.line()
    assert reader.batch_exists([*keys_of(2, "good"), *keys_of(1, "bad")]) == 2
