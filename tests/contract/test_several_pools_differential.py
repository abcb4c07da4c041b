"""The v2 interface beside SGLang's own ``file`` backend: the same pages found, and the same bytes."""

from __future__ import annotations

import pytest
from support import TESTS, answer_of, run_python

from hicache_nixl.config import LIFETIMES
from hicache_nixl.lab.worker.releases import fetch

RELEASE = "0.5.23"
EXAMPLES = 60  # per layout


@pytest.mark.parametrize("lifetime", LIFETIMES)
def test_what_is_found_and_loaded_is_what_the_file_backend_finds_and_loads(released, lifetime):
    released(f"sglang=={RELEASE}")
    script = str(TESTS / "scripts" / "several_pools.py")
    assert answer_of(run_python(script, str(fetch(RELEASE)), lifetime, str(EXAMPLES))) >= 3 * EXAMPLES
