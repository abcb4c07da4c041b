"""Notebook 09: nothing of it fails where there is no object store, and its run keeps no secret of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hicache_nixl.lab import execute as reproduction

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # most cells of a notebook, with real stores
SMALL = {"page_sweep": [4096], "keys_sweep": [4], "clients": [1], "volumes": [1]}
SECRET = "known-secret-of-a-test"
# What Python imports when the kernel starts: weed is not found, and the secrets of a store are known.
WITHOUT_WEED = "import sys; sys.executable = '/nowhere/python'"
WITH_KNOWN_SECRET = f"import secrets; secrets.token_urlsafe = lambda size=None: {SECRET!r}"

Begin = Callable[..., reproduction.Reproduction]


@pytest.fixture
def begin(tmp_path, monkeypatch) -> Iterator[Begin]:
    """Run the notebook with a line of Python that its kernel begins with."""
    made: list[reproduction.Reproduction] = []

    def run(first: str, **parameters: object) -> reproduction.Reproduction:
        (tmp_path / "sitecustomize.py").write_text(first)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        made.append(reproduction.execute(["09"], parameters=parameters, run=f"objects-{tmp_path.name}"))
        return made[-1]

    yield run
    for result in made:
        shutil.rmtree(result.folder)


def test_without_a_store_every_part_is_not_run_with_the_reason(begin):
    result = begin(WITHOUT_WEED)
    assert result.errors() == []
    assert "pip install 'hicache-nixl[objectstore]'" in result.not_run["SeaweedFS"]
    assert set(result.outcomes[0].claims.verdict) == {"not applicable"}
    assert "Not run: no object store could be started" in result.page.read_text()


def test_its_claims_hold_with_small_pages_and_the_folder_of_its_run_has_no_secret(begin):
    result = begin(WITH_KNOWN_SECRET, **SMALL)
    assert result.errors() == []
    assert set(result.outcomes[0].claims.verdict) <= {"holds", "inconclusive"}
    assert [path for path in files_of(result.folder) if SECRET.encode() in path.read_bytes()] == []
    assert [path for path in files_of(result.folder) if b"secret_key" in path.read_bytes()] == []


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
