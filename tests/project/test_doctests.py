"""The examples in public docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import hicache_nixl

FOUND = [module.name for module in pkgutil.walk_packages(hicache_nixl.__path__, "hicache_nixl.")]
MODULES = [name for name in FOUND if not name.endswith(".__main__")]  # importing one runs the command


def examples_of(name: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    result = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert result.failed == 0


def test_the_heart_of_the_package_has_examples():
    with_examples = {name.removeprefix("hicache_nixl.") for name in MODULES if examples_of(name)}
    assert {
        "config",
        "connector",
        "host.geometries",
        "lab.worker.schedule",
        "lab.experiments.replay",
    } <= with_examples
