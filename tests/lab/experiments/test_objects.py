"""Pages in a real object store: what stays, how many requests a page takes, and what the costs come to on paper."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pandas as pd
import pytest
from kept_objects import grown, turns
from shared_store import through

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.connectors import available
from hicache_nixl.lab.execute import CELL_TIMEOUT
from hicache_nixl.lab.experiments import object_cluster, object_costs, objects
from hicache_nixl.lab.object_store import Endpoint, ObjectStoreError, weed
from hicache_nixl.lab.runs.claims import NOT_APPLICABLE, never
from hicache_nixl.lab.worker.schedule import Schedule
from hicache_nixl.lab.worker.setup import Setup

HERE = pd.DataFrame({"connector": [objects.STORE], "status": ["available"]})
NOWHERE = HERE.assign(status="SeaweedFS's program weed is missing")
RACK = {"model": "Llama-3.1-8B", "prompts_per_second": 20.0, "tokens_per_prompt": 8192, "loaded_share": 0.5}
MACHINE = {"cores": 32, "network_gbit": 100.0, "disk_gbyte": 10.0}
LIFETIMES = ["leaky", "try_finally", "scoped", "pooled"]


@pytest.mark.slow
class TestOnAStore:
    def test_no_lifetime_leaves_a_storage_descriptor_and_two_leave_registrations(self, monkeypatch, tmp_path):
        monkeypatch.setattr(Schedule, "pr24671", lambda: Schedule.steady(4, 4))
        table = objects.object_counts(HERE, LIFETIMES, Setup(page_bytes=4096), storage_dir=tmp_path)
        kept = table[table.kept == "OBJ"]
        assert not kept.storage_files.any()
        last = table[table.call == 4].set_index(["connector", "kept"])
        assert last.storage_files["leaky", "FILE"] == 4 * 4 * 2
        assert [last.registrations[name, "OBJ"] for name in LIFETIMES[:2]] == [64, 64]
        assert all(last.registrations[name, "OBJ"] <= 2 for name in LIFETIMES[2:])
        assert (table[table.call > 0].pages_ok == 4).all()
        before = table[table.call == 0].set_index(["connector", "kept"]).sockets
        assert all(
            last.sockets[name, "OBJ"] <= before[name, "OBJ"] + objects.most_sockets(name)
            for name in LIFETIMES
        )
        assert list(tmp_path.iterdir()) == []

    def test_scoped_makes_a_request_for_each_piece_and_pooled_one_for_a_segment(self, tmp_path):
        table = objects.object_turns(HERE, Setup(), [4096], [8], repeats=2, storage_dir=tmp_path)
        assert len(table) == 2 * 3 * 2
        each = objects.requests_per_page(table).set_index("arm")
        assert each["set"].to_dict() == {"pooled, OBJ": 1 / 8, "scoped, OBJ": 2}
        assert each["get"]["pooled, OBJ"] == 1 / 8
        assert each["get"]["scoped, OBJ"] >= 2
        assert table[table.arm == "scoped, FILE"].requests.isna().all()
        assert list(tmp_path.iterdir()) == []

    def test_every_number_of_clients_and_servers_moves_its_pages(self, tmp_path):
        setup, what = Setup("pooled", page_bytes=4096), {"keys": 4, "rounds": 1, "storage_dir": tmp_path}
        table = object_costs.object_growth(HERE, setup, [1, 2], [1, 2], **what)
        assert table.pages.tolist() == [4, 16, 8, 32] * 2
        assert (table.pages_per_second > 0).all()
        assert table.waiting.between(0, 1).all()
        assert list(tmp_path.iterdir()) == []

    def test_a_store_that_works_is_available(self):
        assert available(objects.object_stores()) == [objects.STORE]


class TestWithoutAStore:
    def test_the_reason_is_told_on_one_line(self, monkeypatch):
        def missing() -> str:
            raise ConfigError("weed is missing\nand more")

        monkeypatch.setattr(weed, "program", missing)
        assert objects.object_stores().status.tolist() == ["weed is missing"]

    def test_a_store_that_does_not_start_is_told_too(self, monkeypatch):
        def ended(*args: object, **more: object) -> None:
            raise ObjectStoreError("the s3 of the object store ended with 1:")

        monkeypatch.setattr(objects, "ObjectStore", ended)
        assert objects.object_stores().status.tolist() == ["the s3 of the object store ended with 1:"]

    def test_every_table_is_empty_with_its_columns(self):
        assert list(objects.object_counts(NOWHERE, LIFETIMES, Setup())) == objects.COUNTS
        table = objects.object_turns(NOWHERE, Setup(), [4096], [8], repeats=6)
        assert (len(table), list(table)) == (0, objects.TURNS)
        assert objects.requests_per_page(table).empty
        growing = object_costs.object_growth(NOWHERE, Setup(), [1], [1], keys=4)
        assert object_costs.shares(growing).empty
        assert object_cluster.cluster_faults(NOWHERE, ["pooled"]).empty
        assert object_cluster.shared_ranks(NOWHERE, ["pooled"]).empty
        costs = object_costs.cpu_costs(table)
        plan = object_costs.rack(costs, **RACK, **MACHINE)
        assert plan.empty
        assert object_costs.first_limit(plan) == "Nothing was measured, so nothing is worked out."


def test_the_acknowledged_pages_of_a_fault_are_those_of_the_last_get_of_all():
    table = pd.concat([through("001"), through("001").assign(lifetime="scoped")])
    assert object_cluster.acknowledged(table).began.tolist() == [15.5, 15.5]


def test_the_loads_while_a_server_is_away_are_neither_sets_nor_calls_with_all_servers():
    table = through("001")
    table.loc[table.operation == "set", "wrong"] = 1
    table.loc[table.away == "", "wrong"] = 1
    loads = object_cluster.loads_while_away(table)
    assert loads.began.tolist() == [5.5, 6.5, 7.5, 8.5, 9.0, 9.5]
    assert not loads.wrong.any()
    nothing = object_cluster.loads_while_away(object_cluster.cluster_faults(NOWHERE, ["pooled"]))
    assert never("wrong", "None is wrong.", len(nothing), int(nothing.wrong.sum()), "gets").verdict == (
        NOT_APPLICABLE
    )


class StartedError(Exception):
    """A worker would be started; its arguments are those of this error."""

    def __init__(self, setup: Setup, **how: object):
        super().__init__(how)


@pytest.fixture
def no_worker(monkeypatch) -> None:
    """Start neither a store nor a worker."""

    def started(*args: object, **how: object) -> None:
        raise StartedError(*args, **how)

    store = SimpleNamespace(endpoint=Endpoint("http://h", "b", access_key="a", secret_key="s"))
    for module in (objects, object_costs):
        monkeypatch.setattr(module, "object_store", lambda *args, **how: nullcontext(store))
        monkeypatch.setattr(module, "Worker", started)


MEASUREMENTS = {
    "counts": lambda **disk: objects.object_counts(HERE, ["scoped"], Setup(), **disk),
    "turns": lambda **disk: objects.object_turns(HERE, Setup(), [4096], [8], repeats=6, **disk),
    "growth": lambda **disk: object_costs.object_growth(HERE, Setup(), [1], [1], keys=4, **disk),
}


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_a_worker_has_as_long_as_a_cell_of_a_notebook(measure, tmp_path):
    with pytest.raises(StartedError) as raised:
        measure(storage_dir=tmp_path)
    (how,) = raised.value.args
    assert how["timeout"] > CELL_TIMEOUT
    assert how["storage_dir"] == tmp_path


def test_nothing_is_looked_up_after_a_set_that_is_measured():
    """It would take requests, and processor time of the store."""
    asked = []

    class Recorder:
        def call(self, operation: str, keys: int, **more: object) -> SimpleNamespace:
            asked.append(more)
            return SimpleNamespace(pages_ok=keys, seconds=1.0, bytes=1, process_seconds=0.5)

    objects._turn(Recorder(), "set", 4, None)
    object_costs._together([Recorder()], "set", 4, 1)
    assert asked == [{"look_up": False}] * 2


class TestOnPaper:
    def test_the_fit_finds_the_costs_of_a_request_and_of_a_byte(self):
        costs = object_costs.cpu_costs(turns(ms_per_request=1, ms_per_mib=2))
        assert costs.side.tolist() == ["client", "store"] * 2
        assert costs.ms_per_request.tolist() == pytest.approx([0.5, 1] * 2)
        assert costs.ms_per_mib.tolist() == pytest.approx([1, 2] * 2)
        assert costs.explained.tolist() == pytest.approx([1] * 4)

    def test_a_rack_is_the_load_divided_by_one_machine(self):
        """2560 pages of 8 MiB a second: 20480 MiB, each of 2 ms, and a request of 1 ms for each page."""
        plan = object_costs.rack(object_costs.cpu_costs(turns()), **RACK, **MACHINE)
        needed = plan.set_index(["machine", "limit"]).needed
        assert needed["store", "processors"] == pytest.approx(2560 * (1 + 8 * 2) / 1e3)
        assert needed["client", "processors"] == pytest.approx(2560 * (0.5 + 8) / 1e3)
        assert needed["store", "network"] == pytest.approx(8 * 2560 * 8 * 2**20 / 1e9)
        assert needed["store", "disk"] == pytest.approx(2560 * 8 * 2**20 / 1e9)

    def test_small_pages_share_a_request(self):
        costs = object_costs.cpu_costs(turns(ms_per_mib=0))
        small = object_costs.rack(costs, **{**RACK, "model": "DeepSeek-V2-Lite"}, **MACHINE)
        pages = 2560 / (4 * 2**20 // (64 * 27 * 576 * 2))
        assert small.needed[small.machine == "store"].iloc[0] == pytest.approx(pages / 1e3)

    @pytest.mark.parametrize(
        ("slow", "limit"),
        [({"cores": 1}, "processors"), ({"network_gbit": 1.0}, "network"), ({"disk_gbyte": 0.1}, "disk")],
        ids=["processors", "network", "disk"],
    )
    def test_the_first_limit_is_that_of_which_most_machines_are_needed(self, slow, limit):
        plan = object_costs.rack(object_costs.cpu_costs(turns()), **RACK, **{**MACHINE, **slow})
        told = object_costs.first_limit(plan)
        assert told.startswith(
            "With costs fitted to the CPU times of this run on this machine, the rack needs "
        )
        assert f"the first limit of a store is its {limit}" in told
        assert object_costs.LIFTED[limit] in told

    @pytest.mark.parametrize(
        "wrong",
        [{"model": "no such model"}, {"loaded_share": 1.5}, {"loaded_share": -0.1}],
        ids=["model", "above 1", "below 0"],
    )
    def test_a_load_that_cannot_be_is_refused(self, wrong):
        with pytest.raises(ConfigError, match=r"expected|unknown"):
            object_costs.rack(object_costs.cpu_costs(turns()), **{**RACK, **wrong}, **MACHINE)

    def test_the_share_of_the_store_is_its_cpu_of_all(self):
        table = object_costs.shares(grown())
        assert table.store_share_of_cpu.tolist() == pytest.approx([1.01 / 1.41] * 16)
        assert table.cpu_ms_per_page.tolist() == pytest.approx([1.41] * 16)
