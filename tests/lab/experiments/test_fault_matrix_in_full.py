"""Each step of a call is made to fail in each kind, on real files: what each connector leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
import pytest

from hicache_nixl.lab.experiments import fault_matrix
from hicache_nixl.lab.experiments.fault_matrix import every_fault
from hicache_nixl.lab.worker.client import RefusedError, Worker
from hicache_nixl.lab.worker.faults import KINDS, STEPS
from hicache_nixl.lab.worker.setup import Setup

KEYS = 2
FILES = 2 * KEYS
STEP = ["operation", "step", "nth", "kind"]


@pytest.fixture(scope="module")
def leaky() -> pd.DataFrame:
    return every_fault("leaky", keys=KEYS)


@pytest.fixture(scope="module")
def try_finally() -> pd.DataFrame:
    return every_fault("try_finally", keys=KEYS)


@pytest.fixture(scope="module")
def scoped() -> pd.DataFrame:
    return every_fault("scoped", keys=KEYS)


@pytest.fixture(scope="module")
def release(released: Callable[[str], str]) -> pd.DataFrame:
    return every_fault(released("sglang==0.5.12"), keys=KEYS)


@pytest.fixture(params=["leaky", "try_finally", "scoped", pytest.param("release", marks=pytest.mark.slow)])
def faults(request: pytest.FixtureRequest) -> pd.DataFrame:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["leaky", "try_finally", "scoped"])
def faults_of_ours(request: pytest.FixtureRequest) -> pd.DataFrame:
    return request.getfixturevalue(request.param)


def reached(faults: pd.DataFrame, operation: str) -> dict[str, int]:
    """Return how often each step is reached, but for polls, whose number is a matter of speed."""
    times = faults[(faults.operation == operation) & (faults.step != "poll")].groupby("step", sort=False)
    return times["nth"].max().to_dict()


def registered_before(fault: pd.Series) -> int:
    """Return how many regions a call has registered when a step fails: files, buffers, buffers again."""
    by_nth = {"register": (0, FILES), "descriptor list": (0, 0, FILES, FILES, 2 * FILES, 2 * FILES)}
    if fault.step == "open":
        return 0
    if fault.step == "initialize" and fault.kind != "interrupt":
        return 3 * FILES
    return by_nth[fault.step][fault.nth - 1] if fault.step in by_nth else 2 * FILES


def open_between(fault: pd.Series) -> int:
    """Return how many files are open when an interrupt comes between two opens; a set creates them first."""
    created = FILES if fault.operation == "set" else 0
    interrupted = fault.step == "open" and fault.kind == "interrupt"
    return max(fault.nth - created - 1, 0) if interrupted else 0


def differing(faults: pd.DataFrame, **expected: Callable[[pd.Series], object]) -> pd.DataFrame:
    """Return the faults that left something else than expected; a failure shows their rows."""
    wrong = pd.Series(False, index=faults.index)
    for column, law in expected.items():
        wrong |= faults[column] != faults.apply(law, axis=1)
    return faults.loc[wrong, [*STEP, *expected]]


class TestAnyConnector:
    def test_every_step_fails_at_every_time_and_in_every_kind(self, faults):
        assert not faults[STEP].duplicated().any()
        assert (faults.groupby(["operation", "step", "nth"]).kind.nunique() == len(KINDS)).all()
        for _, times in faults.groupby(["operation", "step"]):
            assert sorted(times.nth.unique()) == list(range(1, times.nth.max() + 1))
        assert faults.step.drop_duplicates().tolist() == list(STEPS)

    def test_the_next_call_works_after_each(self, faults):
        assert faults[STEP][~faults.next_call_works.astype(bool)].empty

    def test_nothing_is_closed_twice(self, faults):
        assert faults[STEP][faults.most_closes > 1].empty

    def test_an_interrupt_is_raised_and_an_error_never(self, faults):
        assert set(faults.answer[faults.kind == "interrupt"]) == {"KeyboardInterrupt"}
        assert set(faults.answer[faults.kind == "error"]) <= {"True", "False"}


class TestOurs:
    def test_the_steps_of_a_call_are_those_of_its_outline(self, leaky, try_finally, scoped):
        """A set of a release creates its files first; register asks for a list of its own, once more."""
        as_released = {"open": FILES, "register": 2, "descriptor list": 6, "initialize": 1, "post": 1}
        for faults in (leaky, try_finally):
            assert reached(faults, "get") == as_released
            assert reached(faults, "set") == {**as_released, "open": 2 * FILES}
        for operation in ("set", "get"):
            assert reached(scoped, operation) == {**as_released, "register": 1, "descriptor list": 4}

    @pytest.mark.parametrize("lifetime", ["leaky", "try_finally", "scoped"])
    def test_each_but_an_interrupt_answers_false_and_logs_why(self, request, lifetime):
        """Only ``scoped`` tries a transfer that failed again, page by page, and then all are there."""
        faults = request.getfixturevalue(lifetime)
        again = faults.step.isin(["post", "poll"]) & (lifetime == "scoped")
        answered = faults[(faults.kind != "interrupt") & ~again]
        assert answered[STEP][answered.answer != "False"].empty
        assert answered[STEP][answered.logged == ""].empty
        assert set(faults.answer[again & (faults.kind != "interrupt")]) <= {"True"}

    def test_an_open_that_fails_is_logged_with_its_errno(self, faults_of_ours):
        opens = faults_of_ours[(faults_of_ours.step == "open") & (faults_of_ours.kind == "error")]
        assert opens.logged.str.contains("[Errno 24] Too many open files", regex=False).all()

    def test_no_line_of_the_log_names_the_folder_of_this_run(self, faults_of_ours):
        assert not faults_of_ours.logged.str.contains("hicache-nixl-").any()

    def test_no_handle_is_left(self, faults_of_ours):
        assert faults_of_ours[STEP][faults_of_ours.handles_left != 0].empty

    def test_leaky_leaves_every_file_that_it_opened_open(self, leaky):
        def law(fault: pd.Series) -> int:
            return open_between(fault) if fault.step == "open" else FILES

        assert differing(leaky, fds_left=law).empty

    def test_try_finally_leaves_files_only_for_an_interrupt_between_two_opens(self, try_finally):
        assert differing(try_finally, fds_left=open_between).empty
        assert try_finally.fds_left.max() == FILES - 1

    def test_leaky_and_try_finally_leave_every_registration_that_they_made(self, leaky, try_finally):
        assert differing(leaky, registrations_left=registered_before).empty
        assert differing(try_finally, registrations_left=registered_before).empty


def assert_nothing_is_left(faults: pd.DataFrame) -> None:
    assert set(faults.step) >= {"open", "register", "descriptor list", "initialize", "post"}
    columns = ["fds_left", "registrations_left", "handles_left"]
    assert faults.loc[(faults[columns] != 0).any(axis=1), [*STEP, *columns]].empty
    assert faults[STEP][(faults.most_closes > 1) | ~faults.next_call_works.astype(bool)].empty


class TestScopedLeavesNothing:
    def test_on_libaio(self, scoped):
        assert_nothing_is_left(scoped)

    @pytest.mark.slow
    @pytest.mark.usefixtures("needs_io_uring")
    def test_on_io_uring(self):
        assert_nothing_is_left(every_fault("scoped", keys=KEYS, queue="io_uring"))

    @pytest.mark.slow
    def test_on_posix_aio(self):
        assert_nothing_is_left(every_fault("scoped", keys=KEYS, queue="posix_aio"))

    @pytest.mark.slow
    def test_with_copies_of_mla_pages(self):
        assert_nothing_is_left(every_fault("scoped", keys=KEYS, layout="layer_first", mla=True))


@pytest.mark.slow
class TestRelease:
    """SGLang 0.5.12 itself, beside ``try_finally``, which stands for it."""

    @pytest.fixture
    def pairs(self, release: pd.DataFrame, try_finally: pd.DataFrame) -> pd.DataFrame:
        """The same fault in both; the files of a set are created by ``open()``, which is out of reach."""
        created = (try_finally.operation == "set") & (try_finally.step == "open")
        opens = try_finally.assign(nth=try_finally.nth - FILES * created)
        return release.merge(opens, on=STEP, suffixes=("", "_ours"))

    def test_it_leaves_as_many_files_open_at_every_step(self, pairs):
        assert set(pairs.step) >= {"open", "register", "descriptor list", "initialize", "post"}
        assert pairs.loc[pairs.fds_left != pairs.fds_left_ours, [*STEP, "fds_left", "fds_left_ours"]].empty

    def test_it_leaves_as_many_registrations(self, pairs):
        """Of descriptor lists the third to fifth are others: SGLang lists its buffers, then registers them."""
        same = pairs[(pairs.step != "descriptor list") | ~pairs.nth.isin([3, 4, 5])]
        columns = [*STEP, "registrations_left", "registrations_left_ours"]
        assert same.loc[same.registrations_left != same.registrations_left_ours, columns].empty

    def test_an_exception_that_it_does_not_expect_escapes_from_a_descriptor_list_alone(self, release):
        escaped = release[release.answer == "ZeroDivisionError"]
        assert set(escaped.step) == {"descriptor list"}
        assert set(release.answer) == {"True", "False", "ZeroDivisionError", "KeyboardInterrupt"}

    def test_it_drops_its_handle_when_a_post_fails_or_a_wait_is_interrupted(self, release):
        dropped = release[(release.step == "post") | ((release.step == "poll") & (release.kind != "error"))]
        assert dropped.handles_left.tolist() == [1] * len(dropped)
        assert release.handles_left.sum() == len(dropped)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(Setup(page_bytes=4096, pages=KEYS)) as worker:
        yield worker


def test_a_fault_that_does_not_take_place_is_not_in_the_table(monkeypatch):
    chosen = [("open", 1, "error"), ("open", 99, "error"), ("register", 1, "error"), ("poll", 99, "error")]
    monkeypatch.setattr(fault_matrix, "_faults", lambda steps: iter(chosen))
    table = every_fault("try_finally", keys=KEYS)
    assert list(zip(table.operation, table.step, table.nth, strict=True)) == [
        (operation, step, 1) for operation in ("set", "get") for step in ("open", "register")
    ]


def test_a_row_says_whether_its_fault_took_place(worker):
    worker.open(Setup(page_bytes=4096, pages=KEYS))
    struck = worker.call("set", KEYS, fault=["open", 1, "error"])
    missed = worker.call("set", KEYS, fault=["open", 99, "error"])
    assert (struck.fired, struck.pages_ok) == (True, 0)
    assert (missed.fired, missed.pages_ok) == (False, KEYS)
    assert worker.call("set", KEYS).fired is None


def test_a_watched_call_has_no_fault_and_its_row_counts_the_steps(worker):
    worker.open(Setup("scoped", page_bytes=4096, pages=KEYS))
    row = worker.call("set", KEYS, watch=True)
    assert row.pages_ok == KEYS
    assert row.steps["open"] == FILES
    assert (row.fired, row.most_closes, row.handles_left) == (False, 1, 0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (["flood", 1, "error"], f"step 'flood' is unknown; expected one of {', '.join(STEPS)}"),
        (["open", 1, "fire"], f"kind 'fire' is unknown; expected one of {', '.join(KINDS)}"),
    ],
    ids=["step", "kind"],
)
def test_an_unknown_fault_is_refused_and_the_worker_still_works(worker, fault, message):
    worker.open(Setup(page_bytes=4096, pages=KEYS))
    with pytest.raises(RefusedError) as caught:
        worker.call("set", KEYS, fault=fault)
    assert str(caught.value) == message
    assert worker.call("set", KEYS).pages_ok == KEYS
