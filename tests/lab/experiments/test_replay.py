"""Replays: what a row holds, that counts meet the prediction, and what is refused before it starts."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pandas as pd
import pytest

from hicache_nixl.config import STORAGE_DIR_VARIABLE, ConfigError
from hicache_nixl.host.pools import LAYOUTS
from hicache_nixl.lab.experiments.replay import replay
from hicache_nixl.lab.worker.client import Worker, WorkerError
from hicache_nixl.lab.worker.descriptors import fd_table
from hicache_nixl.lab.worker.observers import RegistrationCounter
from hicache_nixl.lab.worker.schedule import Schedule, ScheduleError, files_per_key, predicted_fds
from hicache_nixl.lab.worker.setup import Setup, queue_params

PAGE = 4096  # bytes
COLUMNS = (
    "call, operation, keys, files, bytes, seconds, open_fds, storage_fds, registrations, registration_seconds, "
    "rss_bytes, pages_ok, errno"
)
PR = Schedule.pr24671()
KEYS = [call.keys for call in PR]


@dataclass(frozen=True)
class Surroundings:
    """A replay of the PR's calls, and what it did to everything around it."""

    table: pd.DataFrame
    storage_dir: Path
    servers_dir: Path
    descriptors_before: pd.DataFrame
    descriptors_after: pd.DataFrame


@pytest.fixture(scope="module")
def before_the_fix(tmp_path_factory: pytest.TempPathFactory, shared_worker: Worker) -> Surroundings:
    """The PR's calls on ``leaky``, while the environment names the folder of a server.

    The shared worker is there first: the fork server, which the first worker starts, keeps a socket.
    """
    storage_dir, servers_dir = tmp_path_factory.mktemp("storage"), tmp_path_factory.mktemp("server")
    (servers_dir / "page_replayed-model_0_1_k").write_bytes(b"a page of the server's")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORAGE_DIR_VARIABLE, str(servers_dir))
        before = fd_table()
        table = replay(PR, "leaky", storage_dir=storage_dir, page_bytes=PAGE, baseline_fds=135)
        after = fd_table()
    return Surroundings(table, storage_dir, servers_dir, before, after)


@pytest.fixture(scope="module")
def after_the_fix() -> pd.DataFrame:
    return replay(PR, "try_finally", page_bytes=PAGE, baseline_fds=135)


@pytest.fixture(scope="module")
def shared_worker() -> Iterator[Worker]:
    with Worker(Setup(page_bytes=PAGE, pages=8)) as worker:
        yield worker


@pytest.fixture
def worker(shared_worker: Worker) -> Worker:
    """A worker with a new connector and a folder without pages."""
    shared_worker.open(Setup(page_bytes=PAGE, pages=8))
    return shared_worker


class TestBeforeTheFix:
    def test_the_columns_are_those_of_the_issue_in_their_order(self, before_the_fix):
        assert ", ".join(before_the_fix.table.columns) == COLUMNS

    def test_the_three_recorded_counts_are_met(self, before_the_fix):
        counts = before_the_fix.table.set_index("call").open_fds
        assert counts[[1, 10, 21]].tolist() == [167, 1351, 4167]

    def test_every_count_is_the_predicted_one(self, before_the_fix):
        predicted, _ = predicted_fds(PR, 2, 135)
        assert before_the_fix.table.open_fds.tolist() == predicted

    def test_what_grows_is_storage_files_alone(self, before_the_fix):
        table = before_the_fix.table
        assert (table.open_fds - table.storage_fds).unique().tolist() == [135]

    def test_rows_follow_the_schedule(self, before_the_fix):
        table = before_the_fix.table
        assert table.call.tolist() == list(range(1, len(PR) + 1))
        assert list(zip(table.operation, table["keys"], strict=True)) == [(c.operation, c.keys) for c in PR]
        assert table.files.tolist() == [2 * keys for keys in KEYS]

    def test_every_page_arrives_and_is_counted_in_bytes(self, before_the_fix):
        table = before_the_fix.table
        assert table.pages_ok.tolist() == KEYS
        assert table.bytes.tolist() == [PAGE * keys for keys in KEYS]
        assert table.errno.unique().tolist() == [0]

    def test_four_registrations_per_key_stay_alive(self, before_the_fix):
        """A file and a host buffer, for K and for V."""
        assert before_the_fix.table.registrations.tolist() == [4 * keys for keys in accumulate(KEYS)]

    def test_times_and_memory_are_measured(self, before_the_fix):
        assert (before_the_fix.table.seconds > 0).all()
        assert (before_the_fix.table.rss_bytes > 10 * 2**20).all()

    def test_registering_is_a_part_of_the_time_of_every_call(self, before_the_fix):
        table = before_the_fix.table
        assert (table.registration_seconds > 0).all()
        assert (table.registration_seconds < table.seconds).all()

    def test_the_folder_that_it_created_is_removed(self, before_the_fix):
        assert list(before_the_fix.storage_dir.iterdir()) == []

    def test_the_folder_of_a_server_in_the_environment_is_not_touched(self, before_the_fix):
        (page,) = before_the_fix.servers_dir.iterdir()
        assert page.read_bytes() == b"a page of the server's"

    def test_this_process_has_the_same_descriptors_as_before(self, before_the_fix):
        named = ["fd", "kind", "target"]
        before, after = before_the_fix.descriptors_before, before_the_fix.descriptors_after
        assert after[named].values.tolist() == before[named].values.tolist()


class TestAfterTheFix:
    def test_the_count_never_leaves_the_baseline(self, after_the_fix):
        assert after_the_fix.open_fds.tolist() == [135] * len(PR)
        assert after_the_fix.storage_fds.tolist() == [0] * len(PR)

    def test_every_page_arrives(self, after_the_fix):
        assert after_the_fix.pages_ok.tolist() == KEYS
        assert after_the_fix.errno.unique().tolist() == [0]

    def test_as_many_registrations_stay_alive_as_before_it(self, after_the_fix):
        assert after_the_fix.registrations.tolist() == [4 * keys for keys in accumulate(KEYS)]


def test_a_setup_and_its_fields_describe_the_same_replay():
    schedule = Schedule.steady(2, 3)
    columns = ["open_fds", "registrations", "bytes", "pages_ok"]
    tables = [
        replay(schedule, "try_finally", page_bytes=PAGE, mla=True)[columns],
        replay(schedule, Setup("try_finally", page_bytes=2 * PAGE, mla=True, pages=1), page_bytes=PAGE)[
            columns
        ],
    ]
    assert tables[0].equals(tables[1])
    assert tables[0].bytes.tolist() == [3 * PAGE] * 2


def test_the_limit_is_met_at_the_predicted_call_and_nothing_works_from_then_on():
    """The sixth call fills the limit to the last descriptor; the full form names the plugin."""
    schedule = Schedule.steady(10, 16)
    limits = {"baseline_fds": 64, "nofile_limit": 256}
    plugin = {"plugin": {"posix": {"active": True, "queue": "libaio", "ios_pool_size": 128}}}
    table = replay(schedule, "leaky", page_bytes=PAGE, plugin_params=plugin, **limits)
    predicted, first_failure = predicted_fds(schedule, 2, 64, 256)
    assert table.open_fds.tolist() == predicted
    assert predicted[5] == 256
    assert first_failure == 7
    assert table.errno.tolist() == [0] * 6 + [errno.EMFILE] * 4
    assert table.pages_ok.tolist() == [16] * 6 + [0] * 4
    assert table.bytes.tolist() == [16 * PAGE] * 6 + [0] * 4
    assert table.registrations.tolist()[6:] == [6 * 64] * 4


class TestKindsOfPages:
    @pytest.mark.parametrize("mla", [False, True], ids=["multi_head", "mla"])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_sets_and_gets_keep_as_many_as_the_law_says(self, shared_worker, layout, mla):
        shared_worker.open(Setup(page_bytes=PAGE, pages=8, layout=layout, mla=mla))
        rows = [
            shared_worker.call(operation, keys) for operation, keys in (("set", 8), ("get", 5), ("set", 1))
        ]
        per_key = files_per_key(layout, mla)
        assert [row.files for row in rows] == [8 * per_key, 5 * per_key, per_key]
        assert [row.storage_fds for row in rows] == [8 * per_key, 13 * per_key, 14 * per_key]
        assert [row.registrations for row in rows] == [16 * per_key, 26 * per_key, 28 * per_key]
        assert [row.pages_ok for row in rows] == [8, 5, 1]

    @pytest.mark.parametrize("page_bytes", [8, 24, 4104, 65536])
    def test_a_page_may_have_any_multiple_of_8_bytes(self, shared_worker, page_bytes):
        shared_worker.open(Setup(page_bytes=page_bytes, pages=2))
        rows = [shared_worker.call(operation, 2) for operation in ("set", "get")]
        assert [row.pages_ok for row in rows] == [2, 2]
        assert [row.bytes for row in rows] == [2 * page_bytes] * 2
        sizes = {path.stat().st_size for path in shared_worker.folder.iterdir()}
        assert sizes == {page_bytes // 2}


class TestCalls:
    def test_a_get_of_more_keys_than_are_stored_begins_again_with_the_first(self, worker):
        worker.call("set", 3)
        row = worker.call("get", 8)
        assert (row.pages_ok, row.storage_fds, row.files) == (8, 22, 16)

    def test_an_exists_finds_its_pages_and_keeps_nothing(self, worker):
        worker.call("set", 8)
        row = worker.call("exists", 8)
        assert (row.pages_ok, row.bytes, row.storage_fds) == (8, 0, 16)

    def test_a_page_that_comes_back_with_one_bit_changed_is_not_right(self, worker):
        worker.call("set", 4)
        file = sorted(worker.folder.glob("*_k"))[0]
        content = bytearray(file.read_bytes())
        content[100] ^= 1
        file.write_bytes(content)
        assert worker.call("get", 4).pages_ok == 3

    def test_a_new_connector_begins_without_pages_descriptors_and_registrations(self, worker):
        worker.call("set", 8)
        worker.open(Setup("try_finally", page_bytes=PAGE, pages=2))
        assert list(worker.folder.iterdir()) == []
        row = worker.call("set", 2)
        assert (row.storage_fds, row.registrations) == (0, 8)

    def test_the_lines_that_leave_files_open_are_named(self, worker):
        worker.trace()
        worker.call("set", 2)
        opened = worker.opened_by()
        assert len(opened) == 4
        frames = [line.split(" < ") for line in opened.opened_by]
        functions = {tuple(frame.split(" ")[1] for frame in line) for line in frames}
        assert functions == {("open_file", "files_to_nixl_tuples", "_execute_transfer")}
        assert set(worker.fds().query("kind == 'storage file'").target) == set(opened.target)


class TestRegistrationSeconds:
    def test_deregistering_is_in_it_and_a_call_that_registers_nothing_has_none(self, worker):
        worker.open(Setup("scoped", page_bytes=PAGE, pages=8))
        rows = [worker.call(operation, 8) for operation in ("set", "exists", "get", "exists")]
        spent = [row.registration_seconds for row in rows]
        assert [seconds > 0 for seconds in spent] == [True, False, True, False]
        assert spent[1] == spent[3] == 0.0
        assert [row.registrations for row in rows] == [1] * 4

    def test_both_ends_of_a_registration_are_timed_and_taken_once(self):
        class Regions:
            def descCount(self):  # noqa: N802
                return 3

        class Agent:
            def register_memory(self, regions):
                time.sleep(0.02)
                return regions

            def deregister_memory(self, regions):
                time.sleep(0.01)

        counter, agent = RegistrationCounter(), Agent()
        counter.count(Agent)
        kept = agent.register_memory(Regions())
        assert counter.alive == 3
        assert counter.take_seconds() >= 0.02
        agent.deregister_memory(kept)
        assert counter.alive == 0
        assert counter.take_seconds() >= 0.01
        assert counter.take_seconds() == 0.0

    def test_what_the_setting_up_registers_is_no_part_of_the_first_call(self, worker):
        worker.open(Setup("scoped", page_bytes=PAGE, pages=8))
        assert worker.call("exists", 8).registration_seconds == 0.0


class TestQueues:
    @pytest.mark.parametrize(
        "plugin_params",
        [
            queue_params("posix_aio"),
            {"queue": "posix_aio"},
            {"plugin": {"gds": {"active": False}, "POSIX": {"active": True, "use_posix_aio": True}}},
            {"use_aio": "true", "ios_pool_size": "64", "kernel_queue_size": 32},
        ],
        ids=["flag", "name", "full form", "sizes"],
    )
    def test_every_form_of_the_parameters_moves_pages(self, shared_worker, plugin_params):
        shared_worker.open(Setup(plugin_params=plugin_params, page_bytes=PAGE, pages=8))
        assert [shared_worker.call(operation, 8).pages_ok for operation in ("set", "get")] == [8, 8]

    def test_io_uring_moves_pages_or_says_that_it_is_refused(self, shared_worker, io_uring_fd):
        setup = Setup(queue="io_uring", page_bytes=PAGE, pages=8)
        if io_uring_fd is None:
            with pytest.raises(WorkerError, match="io_uring is refused in many containers"):
                shared_worker.open(setup)
        else:
            shared_worker.open(setup)
            assert [shared_worker.call(operation, 8).pages_ok for operation in ("set", "get")] == [8, 8]
            assert "io_uring" in set(shared_worker.fds().kind)


class TestRefusedBeforeAnyProcess:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"connector": "leeky"},
                r"'leeky' is unknown; expected one of leaky, try_finally, scoped, pooled, a release such as sglang==",
            ),
            (
                {"connector": "sglang==newest"},
                "sglang==newest is not a version; expected one such as 0.5.11; known to work: ",
            ),
            ({"direct": True}, "use_direct_io: lifetime leaky .* no such option; use lifetime scoped"),
            (
                {"connector": "sglang==0.5.12", "direct": True},
                r"direct: sglang==0\.5\.12 has no such option; expected scoped, pooled, or sglang==0\.5\.13",
            ),
            ({"layout": "page_last"}, "'page_last' .* layer_first, page_first, page_first_direct"),
            (
                {"plugin_params": {"plugin": {"tape": {"active": True}}}},
                "'TAPE' .* 3FS, POSIX, GDS_MT, GDS, OBJ",
            ),
            ({"plugin_params": {"plugin": {"posix": {}}}}, "none of posix is active"),
            (
                {"plugin_params": {"plugin": {"posix": {"active": True, "queue": "fast"}}}},
                "queue.*'libaio', 'io_uring' or 'posix_aio'",
            ),
            ({"plugin_params": {"queue": "fast"}}, "queue.*libaio.*io_uring.*posix_aio"),
            ({"page_bytes": 4097}, "page_bytes: 4097 .* multiple of 8"),
            ({"page_bytes": 0}, "page_bytes: 0 .* multiple of 8"),
            ({"page_bytes": -8}, "page_bytes: -8 .* multiple of 8"),
        ],
        ids=[
            "connector",
            "release",
            "O_DIRECT of a lifetime",
            "O_DIRECT of a release",
            "layout",
            "plugin",
            "no active plugin",
            "queue in the full form",
            "queue in the flat form",
            "page of no multiple of 8",
            "page of 0",
            "page of less than 0",
        ],
    )
    def test_what_cannot_work_names_what_is_allowed(self, monkeypatch, arguments, message):
        monkeypatch.setattr(Worker, "_start", lambda self: pytest.fail("a process was started"))
        with pytest.raises(ConfigError, match=message):
            replay(Schedule.steady(2, 2), **{"page_bytes": PAGE, **arguments})

    @pytest.mark.parametrize(("name", "reason"), [("missing", "No such file"), ("file", "Not a directory")])
    def test_a_storage_dir_that_is_no_folder(self, monkeypatch, tmp_path, name, reason):
        monkeypatch.setattr(Worker, "_start", lambda self: pytest.fail("a process was started"))
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=f"storage_dir {tmp_path / name}: {reason}.*existing, writable"):
            replay(Schedule.steady(2, 2), page_bytes=PAGE, storage_dir=tmp_path / name)

    def test_a_schedule_without_calls(self, monkeypatch):
        monkeypatch.setattr(Worker, "_start", lambda self: pytest.fail("a process was started"))
        with pytest.raises(ScheduleError, match="has no calls"):
            replay(Schedule.of([]), page_bytes=PAGE)

    def test_an_unknown_queue_names_the_three(self):
        with pytest.raises(
            ConfigError, match="'uring' is unknown; expected one of libaio, io_uring, posix_aio"
        ):
            queue_params("uring")
