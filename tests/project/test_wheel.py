"""The wheel contains what a user of the package needs."""

from __future__ import annotations

import os
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling import build

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hicache_nixl"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder, before = tmp_path_factory.mktemp("wheel"), Path.cwd()
    os.chdir(ROOT)  # hatchling builds the project of the current folder
    try:
        path = folder / build.build_wheel(str(folder))
    finally:
        os.chdir(before)
    return zipfile.ZipFile(path)


def test_every_file_of_the_package_is_in_it(wheel):
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    missing = {str(path.relative_to(ROOT)) for path in files} - set(wheel.namelist())
    assert missing == set()
    assert "hicache_nixl/py.typed" in wheel.namelist()


@pytest.mark.parametrize("folder", ["data", "notebooks"])
def test_the_data_and_the_notebooks_are_in_it(wheel, folder):
    files = [path for path in (ROOT / folder).iterdir() if path.is_file()]
    assert {f"hicache_nixl/{folder}/{path.name}" for path in files} <= set(wheel.namelist())


def test_its_metadata_name_the_license_and_contain_its_text(wheel):
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    assert Parser().parsestr(wheel.read(metadata).decode())["License-Expression"] == "Apache-2.0"
    (text,) = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    assert wheel.read(text) == (ROOT / "LICENSE").read_bytes()
