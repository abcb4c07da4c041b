"""Fixtures of the tests of lifetimes."""

from __future__ import annotations

import os

import pytest
from support import TESTS, answer_of, run_python, unshare


@pytest.fixture
def left_by_cuts(tmp_path):
    """Return a function: what is left of pages by 40 power cuts, as a script tells."""
    try:
        prefix = unshare()
    except OSError as error:
        pytest.skip(str(error))  # the disk that is cut off has to be mounted
    if os.geteuid() != 0 or not (os.path.exists("/dev/fuse") and os.path.exists("/dev/loop-control")):
        pytest.skip("needs root, FUSE and loop devices, for a disk that logs what is written to it")

    def left(script: str, *arguments: str) -> dict[str, int]:
        return answer_of(
            run_python(str(TESTS / "scripts" / script), str(tmp_path), *arguments, prefix=prefix)
        )

    return left
