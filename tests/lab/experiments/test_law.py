"""How many descriptors a call leaves, and which line opened them."""

from __future__ import annotations

from hicache_nixl.lab.experiments.law import left_by_calls, traced_set
from hicache_nixl.lab.worker.setup import Setup


def test_every_kind_of_page_is_called_with_every_size(tmp_path):
    law = left_by_calls(Setup("leaky"), (1, 3), storage_dir=tmp_path)
    assert len(law) == 6 * 2 * 2
    assert (law.left == law.files_per_key * law["keys"]).all()
    assert law.groupby("kind").files_per_key.first().value_counts().to_dict() == {1: 4, 2: 2}


def test_what_is_left_is_measured(tmp_path):
    law = left_by_calls(Setup("try_finally"), (1, 3), storage_dir=tmp_path)
    assert law.left.unique().tolist() == [0]


def test_a_traced_set_names_the_lines_that_opened_what_is_open(tmp_path):
    descriptors, opened = traced_set(Setup("leaky", page_bytes=4096), 2, storage_dir=tmp_path)
    assert (descriptors.kind == "storage file").sum() == len(opened) == 4
    assert opened.opened_by.str.contains("files_to_nixl_tuples").all()
    assert list(tmp_path.iterdir()) == []
