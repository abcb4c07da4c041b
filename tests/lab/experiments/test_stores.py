"""Experiments on the store of ``pooled``: what is evicted, a day of traffic, growth, where time goes."""

from __future__ import annotations

import os

import pytest

from hicache_nixl.lab.experiments.anatomy import STEPS, anatomy
from hicache_nixl.lab.experiments.conversations import conversations
from hicache_nixl.lab.experiments.eviction import FIFO, LRU, RENEWED, evictions
from hicache_nixl.lab.experiments.growth import CALLS, OPENINGS, growth
from hicache_nixl.lab.experiments.traffic import traffic

TRACE = conversations(400, 60)


class TestConversations:
    def test_a_request_repeats_the_conversation_before_it_and_adds_pages(self):
        longest = max(TRACE, key=len)
        earlier = [request for request in TRACE if request[-1] in longest and request is not longest]
        assert earlier
        assert all(request == longest[: len(request)] for request in earlier)

    def test_the_trace_depends_on_the_seed_only(self):
        assert conversations(50, 10, seed=3) == conversations(50, 10, seed=3) != conversations(50, 10, seed=4)

    def test_keys_are_those_of_sglang(self):
        assert {len(key) for request in TRACE for key in request} == {64}
        assert all(bytes.fromhex(key) for key in TRACE[0])


class TestEvictions:
    def test_with_room_for_all_every_policy_loads_what_was_stored_before(self):
        different = len({key for request in TRACE for key in request})
        table = evictions(TRACE, [2 * different], 8)
        assert table.hit_rate.nunique() == 1
        assert table.hit_rate[0] == pytest.approx(1 - different / sum(map(len, TRACE)))
        assert (table.rewritten == 0).all()

    def test_renewing_lies_between_the_oldest_segment_and_the_least_recently_used_page(self):
        different = len({key for request in TRACE for key in request})
        rates = evictions(TRACE, [different // 4], 32).set_index("policy").hit_rate
        assert rates[FIFO] < rates[RENEWED] < rates[LRU]

    @pytest.mark.parametrize("policy", [LRU, FIFO, RENEWED])
    def test_a_larger_store_loads_more(self, policy):
        table = evictions(TRACE, [64, 256, 1024], 16)
        assert table[table.policy == policy].hit_rate.is_monotonic_increasing


class TestTraffic:
    def test_the_real_store_loads_as_many_pages_as_the_simulation(self, tmp_path):
        table = traffic(TRACE, 4, storage_dir=tmp_path)
        expected = evictions(TRACE, [4 * 256], 4).set_index("policy").hit_rate[RENEWED]
        assert table.asked.tolist() == list(map(len, TRACE))
        assert table.loaded.sum() / table.asked.sum() == pytest.approx(expected, abs=0.03)
        assert table.recycled.iloc[-1] > 0
        assert table.wrong.sum() == 0
        assert table.open_fds.iloc[-1] == table.open_fds.max()
        assert os.listdir(tmp_path) == []


class TestGrowth:
    def test_every_call_is_a_row_and_good(self, tmp_path):
        table = growth([500, 20_000], storage_dir=tmp_path)
        counts = table.groupby(["stored", "operation"]).size().unstack()
        assert (counts[["set", "exists", "get"]] == CALLS).all(axis=None)
        assert (counts.open == OPENINGS).all()
        assert table.good.all()
        assert table[table.operation != "open"].open_fds.nunique() == 1
        assert os.listdir(tmp_path) == []


class TestAnatomy:
    def test_the_steps_are_told_apart(self, tmp_path):
        table = anatomy(["scoped", "pooled"], 4096, storage_dir=tmp_path)
        assert (table.groupby(["lifetime", "operation"]).step.apply(list).map(tuple) == STEPS).all()
        seconds = table.set_index(["lifetime", "operation", "step"]).seconds
        assert seconds["scoped", "set", "open and close"] > seconds["pooled", "set", "open and close"]
        assert seconds["pooled", "get", "checksum"] > 0 == seconds["scoped", "get", "checksum"]
        shares = seconds / seconds.groupby(["lifetime", "operation"]).transform("sum")
        assert shares["pooled", "get", "index"] > shares["scoped", "get", "index"]
        rest = table[table.step == "rest"].seconds.sum() / table.seconds.sum()
        assert rest < 0.4
        assert os.listdir(tmp_path) == []
