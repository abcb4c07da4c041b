"""Several processes on one store: no wrong byte, nothing recycled that is read, and none waits for a stopped one."""

from __future__ import annotations

import pytest
import torch
from support import TESTS, answer_of, as_bytes, keys_of, make_pool, run_python, scramble

PAGES = 8
SMALL = {"capacity_gb": 4 / 1024, "segment_mb": 1, "min_free_gb": 0}


@pytest.fixture
def processes(folder):
    """Return a function: what processes of the script answer."""

    def run(*arguments: str):
        return answer_of(run_python(str(TESTS / "scripts" / "pooled_processes.py"), str(folder), *arguments))

    return run


@pytest.mark.parametrize(
    "seconds", [pytest.param(2, id="short"), pytest.param(30, marks=pytest.mark.slow, id="long")]
)
def test_processes_that_set_the_same_and_other_keys_see_whole_pages_of_each_other(processes, seconds):
    for found in processes("together", str(seconds)):
        wrong = ("other bytes", "of another writer", "older", "refused", "died")
        assert {name: found.get(name, 0) for name in wrong} == dict.fromkeys(wrong, 0)
        assert found["loaded"] > 100
        assert found["of others"] > 50
        assert found["recycled"] > 3


def test_a_segment_is_not_recycled_while_a_stopped_process_reads_it(processes):
    found = processes("stopped_reader")
    assert found["loaded"] == {str(key): [1] for key in range(16)}
    assert (found["refused"], found["kept while stopped"], found["kept later"]) == (0, 1, 0)


def test_a_process_that_was_stopped_while_it_changed_the_index_makes_others_answer_false_and_go_on(processes):
    found = processes("stopped_holder")
    assert found["set"] == 0
    assert 0.5 <= found["seconds"] < 5
    (line,) = found["lines"]
    assert "WRITE of 16, first 'page0'" in line
    assert "another process has held a lock for 0.5 s; was it stopped?" in line
    assert (found["loaded"], found["set later"]) == (16, 16)  # loads need no lock of the index


def test_ranks_of_an_mla_model_share_pages_and_others_do_not(make_store):
    for mla in (True, False):
        pool = make_pool(mla, "page_first")
        first, second = (
            make_store("pooled", mla=mla, pool=pool, tp_rank=rank, tp_size=2, **SMALL) for rank in (0, 1)
        )
        expected = as_bytes(pool.kv_buffer).clone()
        assert all(first.batch_set_v1(keys_of(PAGES), pool.page_indices(0, PAGES)))
        scramble(pool)
        assert second.batch_get_v1(keys_of(PAGES), pool.page_indices(0, PAGES)) == [mla] * PAGES
        assert torch.equal(as_bytes(pool.kv_buffer), expected) == mla
