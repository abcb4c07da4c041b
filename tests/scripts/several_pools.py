"""Compare the v2 interface with that of the ``file`` backend of a release of SGLang; print the number of examples.

In a separate process, where empty packages stand in for the rest of SGLang.  As in a server, the connector takes its
base class and the classes of the v2 interface from the release, so it is imported after it.
``several_pools.py WHEEL LIFETIME EXAMPLES``
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from itertools import count
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hicache_nixl.lab.worker import releases

wheel, lifetime, examples = sys.argv[1], sys.argv[2], int(sys.argv[3])
file_backend, file_config = releases.file_backend(wheel)
sglang = sys.modules[file_backend.__module__]
several, support = importlib.import_module("several"), importlib.import_module("support")

POLICIES = [sglang.PoolHitPolicy.ALL_PAGES, sglang.PoolHitPolicy.TRAILING_PAGES]
NAMES = {name: sglang.PoolName(name) for name in ("kv", "mamba", "swa", "indexer", "draft")}
numbers = count()


def run(data: st.DataObject, ours: object, theirs: object, pools: dict) -> None:
    """Set, look up and get random pages of random pools with both."""
    pages = data.draw(st.integers(1, several.PAGES), "pages")
    keys, present = several.hashed(pages, f"example {next(numbers)} "), {}
    for name in NAMES:
        some = data.draw(st.sets(st.integers(0, pages - 1)), f"pages of {name}")
        present[name] = sorted({*range(pages)} - some if name == "kv" else some)

    def transfers(chosen: dict[str, list[int]], **more: object) -> list:
        return [
            sglang.PoolTransfer(
                NAMES[name],
                host_indices=several.indices_of(pools[name], which),
                keys=[keys[page] for page in which],
                **more,
            )
            for name, which in chosen.items()
        ]

    several.scramble_all(pools)
    stored = {name: [several.page_of(pools[name], page) for page in range(pages)] for name in NAMES}
    answers = [backend.batch_set_v2(transfers(present)) for backend in (theirs, ours)]
    assert answers[0] == answers[1] == {name: [True] * len(which) for name, which in present.items()}

    asked = [
        sglang.PoolTransfer(
            NAMES[name],
            keys=data.draw(st.sampled_from([None, [], keys[:1], keys[:2], keys]), f"window of {name}"),
            hit_policy=data.draw(st.sampled_from(POLICIES), f"policy of {name}"),
        )
        for name in data.draw(st.lists(st.sampled_from([*NAMES]), max_size=4, unique=True), "asked")
    ]
    prefix = keys[data.draw(st.integers(0, pages), "from") :] + several.hashed(1, "never stored")
    found = [backend.batch_exists_v2(prefix, asked) for backend in (theirs, ours)]
    assert type(found[0]) is type(found[1])
    assert found[0] == found[1]

    which = data.draw(st.lists(st.integers(0, pages - 1), max_size=pages, unique=True), "get")
    loaded = []
    for backend in (theirs, ours):
        several.scramble_all(pools)
        loaded.append(backend.batch_get_v2(transfers(dict.fromkeys(NAMES, which))))
        for name, good in loaded[-1].items():
            bytes_now = [several.page_of(pools[name], page) for page in which]
            expected = [stored[name][page] for page in which]
            assert [now == then for now, then in zip(bytes_now, expected, strict=True)] == good, name
    together = support.LEFT[lifetime].fails_together  # as in SGLang's connector for NIXL
    assert loaded[1] == {
        name: [all(good)] * len(good) if together else good for name, good in loaded[0].items()
    }


def compared(folder: Path, layout: str) -> int:
    """Run the examples with pools of one layout; return how many there were."""
    pools, done = several.several_pools(layout), count()
    config = support.storage_config(lifetime)
    shared = {name: value for name, value in vars(config).items() if name != "extra_config"}
    theirs = file_backend(file_config(**shared), str(folder / "theirs"))
    with several.opened(lifetime, folder / "ours") as ours:
        assert isinstance(ours, sglang.HiCacheStorage)
        for backend in (theirs, ours):
            several.register(backend, {NAMES[name]: pool for name, pool in pools.items()})

        @settings(max_examples=examples, deadline=None, database=None)
        @given(st.data())
        def compare(data: st.DataObject) -> None:
            run(data, ours, theirs, pools)
            next(done)

        compare()
    return next(done)


with tempfile.TemporaryDirectory() as base:
    total = sum(
        compared(Path(base, layout), layout) for layout in ("page_first", "page_first_direct", "layer_first")
    )
sys.stdout.write(json.dumps(total) + "\n")
