"""environment.yml, pyproject.toml and requirements.lock say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCK = [
    line
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
EXTRAS = ("lab", "objectstore", "sweep", "dev")
REQUIREMENTS = PROJECT["dependencies"] + [
    requirement for extra in EXTRAS for requirement in PROJECT["optional-dependencies"][extra]
]
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]


def pins():
    return {
        canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in LOCK)
    }


def of_conda(name):
    """Return the entries of environment.yml for a package of conda's."""
    return [
        entry
        for entry in ENVIRONMENT["dependencies"]
        if isinstance(entry, str) and re.split(r"[=<>! ]", entry)[0] == name
    ]


def makefile_variable(name):
    return re.search(rf"^{name} := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]


def test_the_makefile_installs_the_torch_of_the_lock():
    assert makefile_variable("TORCH") in LOCK


def test_the_makefile_tests_every_supported_python_besides_that_of_the_lock():
    assert ["3.11", *makefile_variable("OTHER_PYTHONS").split()] == ["3.11", "3.12", "3.13"]


def test_every_line_of_the_lock_is_a_plain_pin():
    """No URL, no path of somebody's machine, no local version such as +cpu, no range, no marker."""
    plain = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!]+")
    assert LOCK
    assert [line for line in LOCK if not plain.fullmatch(line)] == []


def test_the_lock_pins_nothing_twice_and_not_the_project():
    names = [canonicalize_name(line.split("==")[0]) for line in LOCK]
    assert sorted(names) == sorted(set(names))
    assert canonicalize_name(PROJECT["name"]) not in names


def test_every_requirement_of_the_project_is_satisfied_by_a_pin():
    pinned = pins()
    for requirement in map(Requirement, REQUIREMENTS + BUILD):
        assert canonicalize_name(requirement.name) in pinned
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_extras_are_those_that_are_checked_here():
    assert set(PROJECT["optional-dependencies"]) == set(EXTRAS)


def test_conda_brings_python_and_pip_and_nothing_else():
    others = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
    assert len(of_conda("python")) == len(of_conda("pip")) == 1
    assert len(others) == 2


def test_pip_installs_the_lock_and_the_project_and_nothing_else():
    (section,) = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict)]
    assert list(section) == ["pip"]
    index, lock, project = section["pip"]
    assert lock == "-r requirements.lock"
    assert index == f"--extra-index-url {makefile_variable('TORCH_INDEX')}"
    match = re.fullmatch(r"(?:-e )?\.(?:\[([a-z,]+)\])?", project)
    assert match, project
    assert set((match[1] or "").split(",")) - {""} <= set(EXTRAS)


def test_channels_are_conda_forge_alone():
    assert ENVIRONMENT["channels"] == ["conda-forge", "nodefaults"]


def test_python_of_conda_is_one_that_the_project_and_the_lock_are_for():
    (entry,) = of_conda("python")
    python = entry.split("=")[-1]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    first_line = (ROOT / "requirements.lock").read_text().splitlines()[0]
    assert f"Python {python}" in first_line


def test_the_project_takes_python_3_11_to_3_13():
    admitted = SpecifierSet(PROJECT["requires-python"])
    tried = ("3.10.14", "3.11.0", "3.11.9", "3.12.4", "3.13.1", "3.14.0")
    assert [version for version in tried if admitted.contains(version)] == list(tried[1:-1])
    classified = [
        entry.rsplit(" ", 1)[1] for entry in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", entry)
    ]
    assert classified == ["3.11", "3.12", "3.13"]
