"""A store that counts, and the values that it counts."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY
from support import (
    MODEL,
    make_pool,
)

from hicache_nixl.config import LIFETIMES


@pytest.fixture(params=LIFETIMES)
def lifetime(request):
    return request.param


@pytest.fixture
def pool():
    return make_pool(False, "page_first")


@pytest.fixture
def store(make_store, lifetime, pool):
    return make_store(lifetime, pool=pool, metrics=True)


@pytest.fixture
def value(lifetime):
    """Return the value of a metric of this lifetime; 0 where there is none."""

    def read(name, **labels):
        own = {"lifetime": lifetime, "model_name": MODEL, "tp_rank": "0"}
        return REGISTRY.get_sample_value(f"hicache_nixl_{name}", own | labels) or 0

    return read
