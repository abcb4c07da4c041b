"""A state that is truncated under an open store: errors, where a store to its memory would end the process."""

from __future__ import annotations

from pathlib import Path

from support import answer_of, run_python

TRUNCATED = """
import json, os, sys
from pathlib import Path
from small_store import SmallStore
folder = Path(sys.argv[1])
with SmallStore(folder) as store:
    assert all(store.set(range(8)))
    for path in (folder / "pooled").iterdir():
        os.truncate(path, 0)
    answers = [store.set(range(4)), store.get(range(4)), store.connector.batch_exists(["a"])]
print(json.dumps(answers))
"""


def test_every_call_fails_and_the_store_closes(folder: Path):
    answer = answer_of(run_python("-c", TRUNCATED, str(folder)))
    assert answer == [[False] * 4, [False] * 4, 0]
