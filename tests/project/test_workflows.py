"""The workflows are valid and safe, and agree with pyproject.toml and the Makefile."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ZIZMOR = Path(sys.executable).with_name("zizmor")
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
PYTHONS = [entry.rsplit(" ", 1)[1] for entry in CLASSIFIERS if re.search(r":: 3\.\d+$", entry)]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[Any, Any]:
    return yaml.safe_load(request.param.read_text())


def audit(*paths: Path) -> subprocess.CompletedProcess[str]:
    """Check workflows against the schema of GitHub Actions and for unsafe settings, without network access."""
    command = [ZIZMOR, "--offline", "--strict-collection", "--no-progress", *paths]
    return subprocess.run(command, capture_output=True, text=True)


def test_zizmor_has_no_findings():
    done = audit(ROOT / ".github")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("valid", "changed", "told"),
    [
        ("runs-on:", "runs-onn:", "expected validation schema"),
        ("contents: read", "contents: write", "excessive-permissions"),
        ("run: make test-all", "run: make test-all ${{ github.head_ref }}", "template-injection"),
    ],
)
def test_zizmor_finds_a_mistake(tmp_path, valid, changed, told):
    path = tmp_path / ".github/workflows/test.yml"
    path.parent.mkdir(parents=True)
    path.write_text((ROOT / ".github/workflows/test.yml").read_text().replace(valid, changed))
    done = audit(path)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr


def test_every_make_target_exists(workflow):
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    targets = [run.split()[1] for step in steps if (run := step.get("run", "")).startswith("make ")]
    assert targets
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_every_matrix_is_the_supported_pythons_and_is_used(workflow):
    matrices = [job for job in workflow["jobs"].values() if "strategy" in job]
    assert matrices
    for job in matrices:
        assert job["strategy"]["matrix"] == {"python": PYTHONS}
        used = set(re.findall(r"\$\{\{ matrix\.(\w+) \}\}", yaml.safe_dump(job)))
        assert used == {"python"}


def test_every_job_has_a_time_limit(workflow):
    assert all(job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())


def test_what_the_nightly_run_uploads_is_the_folder_that_it_writes():
    nightly = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text())
    steps = nightly["jobs"]["reproduce"]["steps"]
    (name,) = [match[1] for step in steps if (match := re.search(r"--run (\w+)", step.get("run", "")))]
    (upload,) = [step for step in steps if "upload-artifact" in step.get("uses", "")]
    assert upload["with"]["path"] == f"runs/{name}/"
    assert upload["if"] == "always()"
