"""Which job runs where and when: one measurement on a machine at a time, and what comes of workers that die."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError

from hicache_nixl.lab.sweep import lanes as module
from hicache_nixl.lab.sweep.fleet import FleetLostError, Host
from hicache_nixl.lab.sweep.lanes import BUSY, DISCONNECTED, MOST_DEATHS, Answer, Job, Lanes

ENDED = json.dumps({"state": "ended"}).encode() + b"\n"


class FakeFuture:
    """A task that ends when the test says so."""

    def __init__(self, key: str):
        self.key, self.status, self.value = key, "pending", b""
        self.error: Exception | None = None
        self.ended: list[Callable[[Any], None]] = []

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        self.ended.append(call)

    def end(self, status: str = "finished", value: bytes = ENDED, error: Exception | None = None) -> None:
        self.status, self.value, self.error = status, value, error
        for call in self.ended:
            call(self)

    def result(self, timeout: float) -> bytes:
        if self.error is not None:
            raise self.error
        return self.value

    def exception(self) -> Exception | None:
        return self.error

    def release(self) -> None:
        self.status = "cancelled"


class FakeFleet:
    """Hosts that come and go as the test says, and the tasks that were given to them."""

    def __init__(self, *names: str, shares: int = 2):
        self.present = {name: self.host(name, shares) for name in names}
        self.client = self
        self.tasks: list[tuple[str, dict[str, Any], FakeFuture]] = []

    @staticmethod
    def host(name: str, shares: int = 2, machine: str = "", busy: bool = False) -> Host:
        return Host(name, machine or name, {f"tcp://{name}": name}, f"tcp://{name}", shares, busy)

    def hosts(self) -> dict[str, Host]:
        return dict(self.present)

    def submit(
        self, function: Any, request: dict[str, Any], *, key: str, workers: list[str], **how: Any
    ) -> FakeFuture:
        future = FakeFuture(key)
        self.tasks.append((request["slug"], {"workers": workers, **how}, future))
        return future

    def run(self, function: Any, keys: list[str], *, workers: list[str], **how: Any) -> dict[str, list[str]]:
        if any(host.busy and host.worker in workers for host in self.present.values()):
            return {worker: [] for worker in workers}
        for _, _, future in self.tasks:
            if future.key in keys and future.status == "pending":
                future.end(value=b'{"state": "interrupted"}\n')
        return dict.fromkeys(workers, keys)

    def running(self) -> list[str]:
        return [slug for slug, _, future in self.tasks if future.status == "pending"]

    def end(self, slug: str, **how: Any) -> None:
        next(future for name, _, future in self.tasks if name == slug and future.status == "pending").end(
            **how
        )


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.001)
    monkeypatch.setattr(module, "GRACE", 0.05)


def job(slug: str, host: str | None = None, exclusive: bool = True) -> Job:
    return Job(slug, {"slug": slug}, host, exclusive)


def look(lanes: Lanes) -> list[Answer]:
    """Let the lanes look once."""
    hosts = lanes.fleet.hosts()
    found = [*lanes._lost(hosts), *lanes._away(hosts)]
    for host in hosts.values():
        lanes._start(host, hosts)
    while not lanes._done.empty():
        answer = lanes._take(lanes._done.get())
        found += [answer] if answer is not None else []
    for host in hosts.values():
        lanes._start(host, hosts)
    return found


def test_a_machine_has_one_measurement_at_a_time():
    fleet = FakeFleet("a", "b")
    lanes = Lanes(fleet, [job("1"), job("2"), job("3")])
    look(lanes)
    assert fleet.running() == ["1", "2"]
    fleet.end("1")
    (answer,) = look(lanes)
    assert (answer.job.slug, answer.host, answer.told["state"]) == ("1", "a", "ended")
    assert fleet.running() == ["2", "3"]


def test_a_measurement_asks_for_all_shares_of_the_machine_and_a_count_for_one():
    fleet = FakeFleet("a", "b", shares=4)
    look(Lanes(fleet, [job("1"), job("2", exclusive=False)]))
    assert [how["resources"] for _, how, _ in fleet.tasks] == [{"hicache-nixl": 4}, {"hicache-nixl": 1}]


def test_counts_share_a_machine_up_to_its_shares_and_never_with_a_measurement():
    fleet = FakeFleet("a")
    lanes = Lanes(
        fleet, [*(job(name, exclusive=False) for name in "123"), job("4"), job("5", exclusive=False)]
    )
    look(lanes)
    assert fleet.running() == ["1", "2"]
    fleet.end("1")
    look(lanes)
    assert fleet.running() == ["2", "3"]
    fleet.end("2")
    look(lanes)
    assert fleet.running() == ["3"]  # the measurement waits for it, and nothing overtakes
    fleet.end("3")
    look(lanes)
    assert fleet.running() == ["4"]
    fleet.end("4")
    look(lanes)
    assert fleet.running() == ["5"]


def test_two_names_of_one_machine_share_it():
    fleet = FakeFleet()
    fleet.present = {name: FakeFleet.host(name, machine="one") for name in ("a", "b")}
    look(Lanes(fleet, [job("1"), job("2")]))
    assert fleet.running() == ["1"]


def test_a_job_of_a_host_runs_there():
    fleet = FakeFleet("a", "b")
    look(Lanes(fleet, [job("1", "b"), job("2", "b")]))
    assert [(slug, how["workers"]) for slug, how, _ in fleet.tasks] == [("1", ["tcp://b"])]


def test_the_job_of_a_worker_that_died_runs_elsewhere():
    fleet = FakeFleet("a", "b")
    lanes = Lanes(fleet, [job("1")])
    look(lanes)
    del fleet.present["a"]
    assert look(lanes) == []
    assert [how["workers"] for _, how, _ in fleet.tasks] == [["tcp://a"], ["tcp://b"]]
    fleet.end("1")
    (answer,) = look(lanes)
    assert (answer.host, answer.job.deaths) == ("b", ["a"])


@pytest.mark.parametrize("how", ["process", "KilledWorker"])
def test_a_job_that_kills_its_worker_each_time_fails_after_a_bound(how):
    fleet = FakeFleet("a", "b")
    lanes = Lanes(fleet, [job("1")])
    killed = type("KilledWorker", (Exception,), {})()
    answers: list[Answer] = []
    for _ in range(MOST_DEATHS):
        assert answers == []
        look(lanes)
        if how == "process":
            fleet.end("1", value=b'{"state": "died", "reason": "its process was ended by SIGKILL"}\n')
        else:
            fleet.end("1", status="error", error=killed)
        answers = look(lanes)
    assert answers[0].told["state"] == "failed"
    assert "(3 deaths: a, b)" in answers[0].told["reason"]
    assert not lanes.waiting
    assert fleet.running() == []


@pytest.mark.parametrize(
    "error", [TimeoutError(), FutureCancelledError("1", None), FutureCancelledError("1", "lost dependencies")]
)
def test_a_worker_that_dies_before_its_answer_has_come_has_its_job_run_elsewhere(error):
    fleet = FakeFleet("a", "b")
    lanes = Lanes(fleet, [job("1")])
    look(lanes)
    fleet.end("1", error=error)
    assert look(lanes) == []
    assert [how["workers"] for _, how, _ in fleet.tasks] == [["tcp://a"], ["tcp://b"]]
    fleet.end("1")
    assert [answer.job.deaths for answer in look(lanes)] == [["a"]]


def test_a_client_that_had_to_connect_again_has_its_jobs_run_again_and_no_worker_has_died():
    fleet = FakeFleet("a")
    lanes = Lanes(fleet, [job("1")])
    look(lanes)
    for _ in range(MOST_DEATHS):
        fleet.end("1", status="cancelled", error=FutureCancelledError("1", DISCONNECTED))
        assert look(lanes) == []
    fleet.end("1")
    assert [(answer.told["state"], answer.job.deaths) for answer in look(lanes)] == [("ended", [])]


@pytest.mark.parametrize(
    "error", [CommClosedError("closed"), AttributeError("gather")], ids=["gone", "closed"]
)
def test_a_scheduler_that_goes_away_while_an_answer_comes_is_lost(error):
    fleet = FakeFleet("a")
    lanes = Lanes(fleet, [job("1")])
    look(lanes)
    fleet.end("1", error=error)
    with pytest.raises(FleetLostError, match="the scheduler does not answer any more"):
        look(lanes)


def test_an_error_of_the_worker_is_the_reason_and_is_not_tried_again():
    fleet = FakeFleet("a")
    lanes = Lanes(fleet, [job("1")])
    look(lanes)
    fleet.end("1", status="error", error=ModuleNotFoundError("no module"))
    (answer,) = look(lanes)
    assert answer.told == {"state": "failed", "reason": "ModuleNotFoundError: no module"}


def test_a_host_that_stays_away_fails_its_jobs_and_those_of_others_go_on():
    fleet = FakeFleet("a")
    lanes = Lanes(fleet, [job("1", "gone"), job("2", "a")])

    def ending() -> Iterator[Answer]:
        for answer in lanes.answers():
            yield answer
            fleet.end("2") if "2" in fleet.running() else None

    (first, second) = ending()
    assert (first.job.slug, first.told["reason"]) == ("1", "host gone has left the cluster")
    assert second.told["state"] == "ended"


def test_a_worker_that_is_started_again_has_its_job_again_however_long_that_has_run():
    fleet = FakeFleet("a")
    lanes = Lanes(fleet, [job("1", "a")])
    look(lanes)
    time.sleep(2 * module.GRACE)
    look(lanes)
    host = fleet.present.pop("a")
    assert look(lanes) == []
    fleet.present["a"] = host
    assert look(lanes) == []
    assert fleet.running() == ["1"]


def test_without_any_host_everything_fails_after_a_while():
    lanes = Lanes(FakeFleet(), [job("1")])
    assert [answer.told["reason"] for answer in lanes.answers()] == ["every host has left the cluster"]


def test_at_an_end_a_job_that_waits_for_another_sweep_on_its_host_is_dropped_at_once():
    fleet = FakeFleet("a", "b")
    lanes = Lanes(fleet, [job("1"), job("2")])
    look(lanes)
    fleet.present["b"] = FakeFleet.host("b", busy=True)
    begun = time.monotonic()
    assert list(lanes.end()) == []
    assert time.monotonic() - begun < 10
    assert fleet.running() == []


def test_what_runs_where_is_told_once_for_each_change():
    fleet = FakeFleet("a")
    told: list[dict[str, str]] = []

    def tell(running: dict[str, str]) -> None:
        told.append(running)
        fleet.present["a"] = FakeFleet.host("a", busy=len(told) == 1)
        if len(told) == 3:
            fleet.end("1")

    assert len(list(Lanes(fleet, [job("1")], tell).answers())) == 1
    assert told == [{"1": "a"}, {"1": f"a{BUSY}"}, {"1": "a"}]


def test_at_an_end_what_waits_is_dropped_and_what_ended_before_is_kept():
    fleet = FakeFleet("a", "b")
    lanes = Lanes(fleet, [job("1"), job("2"), job("3")])
    look(lanes)
    fleet.end("1")
    assert [answer.job.slug for answer in lanes.end()] == ["1"]
    assert fleet.running() == []
    assert [slug for slug, _, _ in fleet.tasks] == ["1", "2"]
