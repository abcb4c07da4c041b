"""mypy accepts the package, and knows the types of names that are loaded lazily."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("hicache_nixl", "hicache_nixl.lab", "hicache_nixl.watch")
USE = """
from hicache_nixl import HiCacheNixl
from hicache_nixl.lab import Schedule, replay
from hicache_nixl.watch import Watch

reveal_type(HiCacheNixl)
reveal_type(Schedule.steady(4, 2))
reveal_type(replay)
reveal_type(Watch())
from hicache_nixl.lab import no_such_name
"""


def mypy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first run has no cache
def test_mypy_has_no_errors():
    done = mypy()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lazy_names_have_their_types(tmp_path):
    (tmp_path / "use.py").write_text(USE)
    lines = mypy(str(tmp_path / "use.py")).stdout.splitlines()
    revealed = [line.partition("Revealed type is ")[2] for line in lines if "Revealed type" in line]
    assert len(revealed) == 4
    assert "HiCacheNixl" in revealed[0]
    assert "lab.worker.schedule.Schedule" in revealed[1]
    assert "baseline_fds" in revealed[2]
    assert "watch.verdict.Watch" in revealed[3]
    assert sum('has no attribute "no_such_name"' in line for line in lines) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_every_lazy_name_can_be_loaded(package):
    module = importlib.import_module(package)
    assert module.__all__
    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []
    assert set(module.__all__) <= set(dir(module))
