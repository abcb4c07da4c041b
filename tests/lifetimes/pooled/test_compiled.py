"""The loops are compiled once, and who waits for it is told why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hicache_nixl.lifetimes.pooled import compiled as sources
from hicache_nixl.lifetimes.pooled.compiled import Number, Words, compiled
from hicache_nixl.lifetimes.pooled.pieces import copy

SUM = "import hicache_nixl.lifetimes.pooled.pieces as p; print(p.MOST_BYTES)"


def run(folder, **more):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), **more}
    return subprocess.run([sys.executable, "-c", SUM], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What the first process leaves for the next ones."""
    folder = tmp_path_factory.mktemp("cache")
    first = run(folder)
    assert (
        first.stderr.count("the loops of pooled are compiled, which takes some 10 s, and kept for later") == 1
    )
    return folder


def test_the_next_process_does_not_wait(cache):
    assert run(cache).stderr == ""


def test_files_of_the_cache_are_named_after_all_that_they_depend_on(cache):
    names = [path.name for path in cache.rglob("*.nb?")]
    assert names
    assert all(compiled.__globals__["_version"]() in name for name in names)


def test_they_depend_on_every_module_with_compiled_functions():
    folder = Path(sources.__file__).parent
    with_some = {path.name for path in folder.glob("*.py") if "from .compiled import" in path.read_text()}
    assert with_some <= set(sources.SOURCES)


def test_a_damaged_cache_is_compiled_past(cache):
    for path in cache.rglob("*"):
        if path.suffix in (".nbi", ".nbc"):
            path.write_bytes(b"")
    again = run(cache)
    assert again.stdout == "1048576\n"
    assert again.stderr.count("each time, since Numba's cache cannot be used") == 1


def test_without_its_compiler_it_says_what_to_do(cache):
    answer = run(cache, NUMBA_DISABLE_JIT="1")
    assert "pooled needs Numba's compiler; unset NUMBA_DISABLE_JIT" in answer.stderr.splitlines()[-1]


def test_a_function_without_a_file_is_compiled_all_the_same():
    source = "def first(words: Words) -> Number:\n    return len(words)\n"
    names = {"Words": Words, "Number": Number}
    exec(source, names)
    assert len(compiled(names["first"]).signatures) == 1


def test_every_argument_has_one_type():
    assert len(copy.signatures) == 1
