"""Fixtures of the tests of sweeps: tiny notebooks, and a folder of runs away from the project's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sweeps import TinyNotebooks, no_facts

from hicache_nixl.lab import execute
from hicache_nixl.lab.sweep import record, remote, sweep


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patched:
        yield patched


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> TinyNotebooks:
    """Notebooks of a few cells in the place of the project's."""
    made = TinyNotebooks(tmp_path_factory.mktemp("tiny"))
    patch.setattr(sweep, "notebooks", made.known)
    for place in (execute, record):
        patch.setattr(place, "runs_folder", lambda: made.runs)
    patch.setattr(remote, "_lock_of_machine", lambda: made.folder / "lock")  # tests run beside each other
    return made


@pytest.fixture(autouse=True)
def no_time_for_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for the facts of hosts in sweeps of whole modules only."""
    monkeypatch.setattr(sweep, "_facts_jobs", no_facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sweep"
