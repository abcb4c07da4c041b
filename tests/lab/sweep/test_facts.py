"""The facts of hosts, and how they differ."""

from __future__ import annotations

from hicache_nixl.lab.sweep.facts import FREE, differences, facts_of, of_folder, unusual

HOSTS = {
    "a": {"NIXL": "1.5.1", "kernel": "6.1", FREE: "1 GB"},
    "b": {"NIXL": "1.5.1", "kernel": "6.1", FREE: "2 GB"},
    "c": {"NIXL": "1.5.0", "kernel": "6.1", FREE: "3 GB", "queue io_uring": "refused"},
}


def test_a_value_comes_with_the_hosts_that_have_it_the_most_frequent_first():
    found, _ = differences(HOSTS)
    assert {one.what: one.values for one in found} == {
        "NIXL": [("1.5.1", ["a", "b"]), ("1.5.0", ["c"])],
        "queue io_uring": [("nothing told", ["a", "b"]), ("refused", ["c"])],
    }


def test_what_all_share_is_apart_and_free_space_is_neither():
    assert differences(HOSTS)[1] == {"kernel": "6.1"}


def test_facts_of_a_disk_have_the_name_of_its_folder_where_a_sweep_has_several():
    hosts = {name: of_folder({**facts, "storage": name}, "/mnt/a") for name, facts in HOSTS.items()}
    found, shared = differences(hosts)
    assert [one.what for one in found] == ["NIXL", "storage of /mnt/a", "queue io_uring"]
    assert shared == {"kernel": "6.1"}


def test_the_unusual_value_is_marked_and_where_there_is_no_usual_one_every_value():
    assert unusual(HOSTS) == {("c", "NIXL"), ("c", "queue io_uring")}
    assert unusual({"a": {"NIXL": "1"}, "b": {"NIXL": "2"}}) == {("a", "NIXL"), ("b", "NIXL")}
    assert unusual({"a": {"NIXL": "1"}}) == set()


def test_those_of_this_host_are_short_texts_and_nothing_is_left(tmp_path):
    found = facts_of(str(tmp_path), own_folder=True)
    assert {"NIXL", "queues that work", "storage", "open files", "kernel", "SGLang"} <= {*found["facts"]}
    assert all(isinstance(value, str) and value for value in found["facts"].values())
    assert found["facts"]["queues that work"].startswith("libaio")
    assert found["diagnosis"]["usable"] is True
    assert list(tmp_path.iterdir()) == []
