"""A shared object store: nothing is lost with a server that is killed, and all ranks read what one has stored."""

from __future__ import annotations

import pandas as pd
import pytest
from shared_store import through

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.experiments.object_cluster import cluster_faults, shared_ranks
from hicache_nixl.lab.experiments.objects import STORE
from hicache_nixl.lab.experiments.sharing import SERVER_COLUMNS, one_writes_eight_read, two_servers
from hicache_nixl.lab.experiments.store_faults import (
    FAULT_COLUMNS,
    READ_ALL,
    S3,
    VOLUME,
    through_a_fault,
    through_faults,
)

HERE = pd.DataFrame({"connector": [STORE], "status": ["available"]})
SMALL = {"batches": 2, "pages": 8, "page_bytes": 16384}
LONGEST = 60.0  # seconds; 5 on an idle machine
CONNECTIONS = 16  # that NIXL's eight threads and the client that lists keep, at most

slow = pytest.mark.slow


def check(table: pd.DataFrame) -> None:
    """What holds whatever is killed: no other bytes, bounded calls, and nothing is lost in the end."""
    assert list(table.columns) == FAULT_COLUMNS
    assert [event for event in table.event if event] == ["killed", "back"] * 2
    sets = table.operation == "set"
    assert not table.wrong[~sets].any()
    assert not table.wrong[sets & (table.away == "")].any(), "a part killed after a set cannot answer"
    assert table.seconds.max() < LONGEST
    assert (table.lines[table.failed > 0] > 0).all(), "a failure is logged"
    assert table.registrations.nunique() == 1
    last = table.iloc[-1]
    assert (last.operation, last.away, last.failed) == (READ_ALL, "", 0)
    assert last.pages == (table.pages - table.failed)[sets].sum()


@slow
@pytest.mark.parametrize("lifetime", ["pooled", "scoped"])
def test_with_two_copies_no_page_fails_while_a_volume_server_is_killed(lifetime, tmp_path):
    table = through_a_fault(lifetime, "001", storage_dir=tmp_path, **SMALL)
    check(table)
    assert list(tmp_path.iterdir()) == []
    assert set(table.away) == {"", f"{VOLUME} 1", f"{VOLUME} 2"}
    assert table.failed.sum() == 0


@slow
def test_with_one_copy_pages_of_the_killed_server_fail_and_are_there_again_with_it():
    table = through_a_fault("pooled", "000", **SMALL)
    check(table)
    summed = through_faults(table)
    assert summed.part.tolist() == ["none away", f"{VOLUME} 1", f"{VOLUME} 2"]
    assert summed.unread.iloc[0] == 0


def test_calls_with_all_parts_are_summed_up_by_name():
    assert through_faults(through("001")).part.tolist() == ["none away", "1"]


@slow
def test_without_the_endpoint_all_pages_are_false_and_descriptors_are_as_before_when_it_is_back():
    table = through_a_fault("pooled", fault=S3, **SMALL)
    check(table)
    ends = table.event.replace("", None).ffill()  # what happened last
    killed = (table.event == "killed").cumsum()
    read = table[table.operation == READ_ALL].groupby(killed).began.first()  # S3 is started after that
    inside = table[(ends == "killed") & (table.event == "") & (table.began <= killed.map(read))]
    assert inside.right.sum() == 0
    assert {"set", "get", READ_ALL} <= set(inside.operation)
    assert table.open_fds.max() <= table.open_fds.iloc[0] + CONNECTIONS


@slow
@pytest.mark.parametrize(("lifetime", "objects"), [("pooled", 1), ("scoped", 8)])
def test_all_ranks_of_a_model_with_mla_read_the_objects_of_one(lifetime, objects):
    table = one_writes_eight_read(lifetime, ranks=3, pages=8, page_bytes=16384)
    assert (table.right == 8).all()
    assert set(table.objects) == {objects}, "no rank stores its own"
    alone = table[(table.turn == "alone") & (table.operation == "get")]
    assert alone["rank"].tolist() == [0, 1, 2]
    first = table[table.operation == "set"].iloc[0]
    assert (first["get"], first["list"]) == (0, 0), "nothing is counted beside the set itself"
    assert (alone.put == 0).all()
    assert (alone["get"] <= objects + 3).all(), "few requests beside one for each object"
    assert (table.turn == "together").sum() == 3


MEASUREMENTS = {
    "faults": lambda **disk: cluster_faults(HERE, ["pooled"], **disk),
    "ranks": lambda **disk: shared_ranks(HERE, ["pooled"], **disk),
}


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_objects_are_on_the_disk_to_measure(measure, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/missing/"):
        measure(storage_dir=tmp_path / "missing")


def test_an_unknown_fault_is_refused():
    with pytest.raises(ConfigError, match="expected 'volume server' or 'S3'"):
        through_a_fault("pooled", fault="disk")


def test_without_a_release_no_server_is_started():
    table = two_servers(pd.DataFrame(columns=["connector", "status"]))
    assert table.empty
    assert list(table.columns) == SERVER_COLUMNS
