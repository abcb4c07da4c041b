"""Fixtures of the tests of figures."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest


@pytest.fixture
def closed_figures() -> Iterator[None]:
    """Close every figure that the test drew."""
    yield
    plt.close("all")
