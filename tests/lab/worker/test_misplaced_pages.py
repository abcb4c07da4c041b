"""A connector that puts bytes in the wrong place is noticed, also where it reads its own pages back without error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from hicache_nixl.config import LIFETIMES
from hicache_nixl.connector import HiCacheNixl
from hicache_nixl.host.pools import LAYOUTS
from hicache_nixl.lab.worker import server
from hicache_nixl.lab.worker.call import CallRow
from hicache_nixl.lab.worker.pages import SMALL_CALL, CheckedPages
from hicache_nixl.lab.worker.setup import Setup
from hicache_nixl.lab.worker.stored import Unknown
from hicache_nixl.transport.agent import load_nixl

PAGE, PAGES = 4096, 8
Replay = Callable[..., list[CallRow]]


@pytest.fixture
def replay_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Replay]:
    """Make calls in this process, where a test can change what the worker would measure."""
    agent_class = load_nixl("POSIX").nixl_agent
    for method in ("register_memory", "deregister_memory", "get_xfer_descs"):
        monkeypatch.setattr(agent_class, method, getattr(agent_class, method))  # restored at the end
    host = server.Host(str(tmp_path))

    def replay(
        lifetime: str = "scoped",
        calls: Any = (("set", PAGES), ("get", PAGES)),
        look_up: bool = True,
        **more: Any,
    ) -> Any:
        host.open(Setup(lifetime, page_bytes=PAGE, pages=PAGES, **more).as_message())
        return [CallRow(**host.call(operation, keys, look_up=look_up)) for operation, keys in calls]

    yield replay
    host.end_connector()
    logging.getLogger().removeHandler(host.log)


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Put another class in the place of the connector."""
    return lambda mutated: monkeypatch.setattr(server, "HiCacheNixl", mutated)


class OneIndex(HiCacheNixl):
    """Takes the first page's place in the pool, and goes on from there."""

    def _from_the_first(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(indices)) + min(int(indices[0]), self.mem_pool_host.size - len(indices))

    def batch_set_v1(self, keys: Any, host_indices: Any, extra_info: Any = None) -> list[bool]:
        return super().batch_set_v1(keys, self._from_the_first(host_indices))

    def batch_get_v1(self, keys: Any, host_indices: Any, extra_info: Any = None) -> list[bool]:
        return super().batch_get_v1(keys, self._from_the_first(host_indices))


class SwappedPlanes(HiCacheNixl):
    """Stores values as keys and keys as values, and loads them in the same way."""

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        described = mem_pool_host.get_page_buffer_meta

        def swapped(indices: torch.Tensor) -> tuple[list[int], list[int]]:
            addresses, sizes = described(indices)
            return [
                address for k, v in zip(addresses[::2], addresses[1::2], strict=True) for address in (v, k)
            ], sizes

        mem_pool_host.get_page_buffer_meta = swapped
        super().register_mem_pool_host(mem_pool_host)


class RegistersTwice(HiCacheNixl):
    """Registers the host pool again."""

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        buffer = mem_pool_host.kv_buffer
        region = (buffer.data_ptr(), buffer.numel() * buffer.element_size(), 0, "")
        self.twice = self.lifetime.registration.agent.register_memory([region], "DRAM")


class WritesBeside(HiCacheNixl):
    """A get also changes the page before the first one that it was asked for, or the one behind it."""

    def batch_get_v1(self, keys: Any, host_indices: Any, extra_info: Any = None) -> list[bool]:
        results, page = super().batch_get_v1(keys, host_indices), self.mem_pool_host.page_size
        asked = set(host_indices.tolist())
        beside = (place for index in asked for place in (index - page, index + page) if place not in asked)
        beside = next(place for place in beside if 0 <= place < self.mem_pool_host.size)
        self.mem_pool_host.set_from_flat_data_page(
            beside // page * page, self.mem_pool_host.get_dummy_flat_data_page()
        )
        return results


def finds(change: int) -> type[HiCacheNixl]:
    """Return a connector whose ``batch_exists`` is off by some pages."""

    class Miscounts(HiCacheNixl):
        def batch_exists(self, keys: Any, extra_info: Any = None) -> int:
            return super().batch_exists(keys) + change

    return Miscounts


class TestNoticed:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_host_indices_that_are_ignored_after_the_first(self, replay_here, connector, layout):
        connector(OneIndex)
        stored, loaded = replay_here(layout=layout)
        assert stored.pages_ok < PAGES
        assert loaded.pages_ok < PAGES

    @pytest.mark.parametrize("lifetime", LIFETIMES)
    @pytest.mark.parametrize("layout", ["page_first", "page_first_direct"])
    def test_keys_and_values_that_are_swapped(self, replay_here, connector, lifetime, layout):
        """The page comes back as it was, so only its files tell."""
        connector(SwappedPlanes)
        stored, loaded = replay_here(lifetime, layout=layout)
        assert stored.pages_ok < PAGES
        assert loaded.pages_ok == PAGES
        assert "the set stored other bytes than those of" in stored.log[0]

    @pytest.mark.parametrize("mla", [False, True])
    def test_a_page_at_another_offset_of_its_segment(self, replay_here, monkeypatch, mla):
        """``pooled`` reads it back at that offset."""
        agent_class = load_nixl("POSIX").nixl_agent
        original = agent_class.get_xfer_descs

        def shifted(agent: Any, descs: Any, mem_type: Any = None, *args: Any, **more: Any) -> Any:
            if mem_type == "FILE":
                descs = descs.copy()
                descs[:, 0] += np.uint64(512)
            return original(agent, descs, mem_type, *args, **more)

        monkeypatch.setattr(agent_class, "get_xfer_descs", shifted)
        stored, loaded = replay_here("pooled", mla=mla)
        assert stored.pages_ok < PAGES
        assert "is stored: other bytes than were stored" in stored.log[0]
        assert loaded.pages_ok == PAGES

    @pytest.mark.parametrize("mla", [False, True])
    def test_a_page_at_another_offset_of_its_file(self, replay_here, monkeypatch, mla):
        """``leaky`` reads it back at that offset; ``scoped`` refuses a file of another size."""
        agent_class = load_nixl("POSIX").nixl_agent
        original = agent_class.get_xfer_descs

        def shifted(agent: Any, descs: Any, mem_type: Any = None, *args: Any, **more: Any) -> Any:
            if mem_type == "FILE":
                descs = [(offset + 512, *rest) for offset, *rest in descs]
            return original(agent, descs, mem_type, *args, **more)

        monkeypatch.setattr(agent_class, "get_xfer_descs", shifted)
        stored, loaded = replay_here("leaky", mla=mla)
        assert stored.pages_ok < PAGES
        assert "bytes of" in stored.log[0]
        assert loaded.pages_ok == PAGES

    def test_a_pool_that_is_registered_twice(self, replay_here, connector):
        once = [row.registrations for row in replay_here()]
        connector(RegistersTwice)
        twice = [row.registrations for row in replay_here()]
        assert (once, twice) == ([1, 1], [2, 2])

    @pytest.mark.parametrize("mla", [False, True])
    @pytest.mark.parametrize("change", [-1, 1])
    def test_an_answer_of_exists_that_is_off_by_one(self, replay_here, connector, mla, change):
        connector(finds(change))
        stored, _ = replay_here(mla=mla)
        assert stored.pages_ok == PAGES - 1
        assert stored.log == [
            f"batch_exists finds {SMALL_CALL + change} leading pages, expected {SMALL_CALL}"
        ]

    def test_unless_nothing_is_looked_up_after_a_set(self, replay_here, connector):
        connector(finds(1))
        rows = replay_here(look_up=False)
        assert [(row.pages_ok, row.log) for row in rows] == [(PAGES, [])] * 2

    def test_a_get_that_changes_another_page(self, replay_here, connector):
        connector(WritesBeside)
        rows = replay_here(calls=[("set", PAGES), *[("get", PAGES)] * 5])
        assert [row.pages_ok for row in rows] == [PAGES] + [PAGES - 1] * 5

    @pytest.mark.parametrize(
        ("lifetime", "says"), [("scoped", "_k'"), ("pooled", " is stored: it is not in the index")]
    )
    def test_a_set_that_stores_nothing_and_says_that_it_did(self, replay_here, connector, lifetime, says):
        class Forgets(HiCacheNixl):
            def batch_set_v1(self, keys: Any, host_indices: Any, extra_info: Any = None) -> list[bool]:
                return [True] * len(keys)

        connector(Forgets)
        stored, _ = replay_here(lifetime, [("set", 2), ("set", 2)])
        assert stored.pages_ok == 0
        assert stored.log[0].startswith("the set says that ")
        assert stored.log[0].endswith(says)


class TestNothingToNotice:
    @pytest.mark.parametrize("mla", [False, True], ids=["multi_head", "mla"])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_connector_as_it_is(self, replay_here, layout, mla):
        calls = [("set", PAGES), ("get", PAGES), ("set", 1), ("set", 3), ("get", 5), ("exists", 8)]
        for lifetime in LIFETIMES:
            rows = replay_here(lifetime, calls, layout=layout, mla=mla)
            assert [row.pages_ok for row in rows] == [keys for _, keys in calls]
            assert [row.log for row in rows] == [[]] * len(calls)


class TestPlaces:
    @pytest.fixture
    def pages(self) -> CheckedPages:
        return CheckedPages(Setup(page_bytes=PAGE, pages=64), Unknown())

    def test_no_page_lies_behind_the_one_before_it(self, pages):
        for count in (1, 2, 3, 64):
            places = pages.to_set(count).places
            assert len(set(places)) == count
            assert not [place for place, next_one in pairwise(places) if next_one == place + 1]

    def test_a_get_has_none_of_its_pages_where_the_set_had_it(self, pages):
        stored = pages.to_set(64)
        pages.was_set(stored, [True] * 64)
        loaded = pages.to_get(64)
        assert loaded.keys == stored.keys
        assert not [
            place for place, before in zip(loaded.places, stored.places, strict=True) if place == before
        ]

    def test_the_indices_are_those_of_all_tokens_of_the_places(self, pages):
        batch, size = pages.to_set(3), pages.pool.page_size
        assert batch.indices.tolist() == [
            place * size + token for place in batch.places for token in range(size)
        ]

    def test_the_same_seed_gives_the_same_places(self):
        setups = [Setup(page_bytes=PAGE, pages=64, seed=seed) for seed in (0, 0, 1)]
        first, same, other = (CheckedPages(setup, Unknown()).to_set(64).places for setup in setups)
        assert first == same != other
