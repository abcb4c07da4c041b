"""The loops are compiled once, and who waits for it is told why."""

from __future__ import annotations

import os
import subprocess
import sys

from hicache_nixl.lifetimes.pooled.compiled import Number, Words, compiled
from hicache_nixl.lifetimes.pooled.pieces import copy

IMPORT = "import hicache_nixl.lifetimes.pooled.pieces"


def test_the_first_process_says_what_takes_so_long_and_the_next_one_does_not_wait(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, check=True
        ).stderr
        for _ in range(2)
    ]
    assert said[0].count("compiling the loops of pooled") == 1
    assert said[1] == ""


def test_a_function_without_a_file_is_compiled_all_the_same():
    source = "def first(words: Words) -> Number:\n    return len(words)\n"
    names = {"Words": Words, "Number": Number}
    exec(source, names)
    assert len(compiled(names["first"]).signatures) == 1


def test_every_argument_has_one_type():
    assert len(copy.signatures) == 1
