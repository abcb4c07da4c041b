"""What the doctor finds: on this machine as it is, and on one that lacks something."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path
from typing import Any

import pytest
from findings import MOUNT, asked, found
from processes import workers_of
from support import unshare

from hicache_nixl.config import QUEUES
from hicache_nixl.doctor import diagnosis as doctor
from hicache_nixl.doctor import machine, plugin_check, storage_check
from hicache_nixl.doctor import verdicts as can_run
from hicache_nixl.doctor.finding import NO, NOTE, OK, Finding
from hicache_nixl.doctor.plugin_check import Build
from hicache_nixl.lab.worker.releases import CACHE_VARIABLE, known_releases


@pytest.fixture(scope="module")
def builds() -> dict[str, Build]:
    with plugin_check.probing() as answer:
        return {build.name: build for build in answer()}


class TestOpenFiles:
    @pytest.mark.parametrize(
        ("soft", "state", "expected"),
        [
            (64, NO, "a call of 128 pages opens 256 more"),
            (390, NO, "a server has about 135 open"),
            (391, NOTE, "gets 391: a connector that leaks uses them up after 128 pages"),
            (
                1024,
                NOTE,
                "SGLang asks for 65535 and gets 1024: a connector that leaks uses them up after 444 pages",
            ),
        ],
    )
    def test_a_limit_comes_with_what_it_means_to_a_server(self, soft, state, expected):
        code = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, 4096)); tell([machine.descriptor_finding()])"
        (finding,) = asked(code)
        assert finding.state == state
        assert finding.detail.startswith(f"soft {soft}, hard 4096, at most ")
        assert expected in finding.detail
        assert finding.advice.startswith("Raise it: ulimit -n")

    @pytest.mark.parametrize("soft", [1024, 65535])
    def test_a_server_gets_the_limit_that_it_asks_for_up_to_the_hard_limit(self, monkeypatch, soft):
        """Only root could raise the hard limit of a real process so far."""
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, 70000))
        finding = machine.descriptor_finding()
        assert (finding.state, finding.advice) == (OK, "")
        assert "SGLang gets 65535: a connector that leaks uses them up after 32700 pages" in finding.detail


# Lets the kernel refuse io_uring_setup (425) with EPERM, as seccomp profiles of containers do.
WITHOUT_IO_URING = """
import ctypes, struct
code = b"".join(struct.pack("HBBI", *line) for line in (
    (0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)))
kept = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(kept)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
"""


class TestQueues:
    def test_each_that_works_moves_pages_and_leaves_nothing(self, tmp_path, io_uring_fd):
        findings = machine.queue_findings(storage_check.find(str(tmp_path)))
        assert [finding.what for finding in findings] == [f"queue {queue}" for queue in QUEUES]
        assert [finding.state for finding in findings] == [OK, NO if io_uring_fd is None else OK, OK]
        assert findings[0].detail == "moves pages"
        assert list(tmp_path.iterdir()) == []
        assert workers_of() == []

    def test_an_io_uring_that_is_refused_says_why_and_the_others_work(self, tmp_path):
        code = f"tell(machine.queue_findings(storage_check.find({str(tmp_path)!r})))"
        libaio, io_uring, posix_aio = asked(WITHOUT_IO_URING + code)
        assert (libaio.state, posix_aio.state) == (OK, OK)
        assert io_uring.state == NO
        assert "plugin POSIX cannot be created with {'use_uring': 'true'}" in io_uring.detail
        assert "disabled in many containers" in io_uring.detail
        if Path("/proc/sys/kernel/io_uring_disabled").exists():  # from Linux 6.6 on
            assert io_uring.advice.startswith("kernel.io_uring_disabled is ")

    def test_without_a_storage_folder_they_are_tried_elsewhere_and_it_says_so(self, tmp_path):
        findings = machine.queue_findings(storage_check.find(f"{tmp_path}/missing"))
        assert findings[0] == Finding(
            "queue libaio", OK, "moves pages (tried in the folder for temporary files)"
        )

    def test_without_any_folder_they_are_not_tried_and_nothing_is_raised(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", f"{tmp_path}/missing")
        findings = machine.queue_findings(storage_check.find(f"{tmp_path}/missing"))
        assert [finding.state for finding in findings] == [NO] * len(QUEUES)
        assert "No such file or directory" in findings[0].detail


QUEUES_OK = [Finding(f"queue {queue}", OK, "moves pages") for queue in QUEUES]
QUEUES_BAD = [Finding(f"queue {queue}", NO, "refused") for queue in QUEUES]


def verdicts(storage_dir: Path, queues: list[Finding], builds: dict[str, Build]) -> Any:
    storage = storage_check.find(str(storage_dir))
    return can_run.verdicts(storage, queues, machine.storage_findings(storage), list(builds.values()))


class TestVerdicts:
    def test_each_thing_that_can_run_has_one(self, tmp_path, builds):
        can_do = verdicts(tmp_path, QUEUES_OK, builds)
        assert found(can_do, "pages in files").detail == "on libaio, io_uring, posix_aio"
        assert found(can_do, "files, O_DIRECT").detail == "bypasses the page cache"
        assert found(can_do, "pages in S3 (OBJ)").detail == "nixl_cu12 can create it; not tried with a page"
        assert found(can_do, "GPU storage (GDS)").detail.startswith("needs an NVIDIA GPU")
        assert found(can_do, "pages in 3FS").state == NO

    def test_one_queue_is_enough(self, tmp_path, builds):
        can_do = verdicts(tmp_path, [QUEUES_BAD[0], QUEUES_BAD[1], QUEUES_OK[2]], builds)
        assert found(can_do, "pages in files").detail == "on posix_aio"

    @pytest.mark.parametrize(
        ("name", "queues", "reason"),
        [(".", QUEUES_BAD, "no queue works"), ("missing", QUEUES_OK, "no storage folder")],
    )
    def test_what_needs_the_connector_cannot_run_without_it(self, tmp_path, builds, name, queues, reason):
        can_do = verdicts(tmp_path / name, queues, builds)
        for what in ("pages in files", "files, O_DIRECT", "notebooks, quick", "notebooks, full"):
            assert found(can_do, what) == Finding(what, NO, reason)

    @pytest.mark.parametrize(
        ("hard", "quick", "full"), [(6143, NO, NO), (6144, OK, NO), (16499, OK, NO), (16500, OK, OK)]
    )
    def test_the_notebooks_need_descriptors(self, tmp_path, builds, monkeypatch, hard, quick, full):
        """As README says; a process that takes more than the hard limit of this machine cannot be made."""
        monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
        can_do = verdicts(tmp_path, QUEUES_OK, builds)
        assert (found(can_do, "notebooks, quick").state, found(can_do, "notebooks, full").state) == (
            quick,
            full,
        )

    def test_the_notebooks_need_space(self, tmp_path):
        code = (
            f"storage = storage_check.find({str(tmp_path)!r})\n"
            "queues = [Finding('queue libaio', 'ok', '')]\n"
            "tell(can_run.verdicts(storage, queues, machine.storage_findings(storage), []))"
        )
        can_do = asked(code, *unshare(), "sh", "-c", MOUNT, "tmpfs", "size=8m,mode=700", str(tmp_path))
        assert found(can_do, "notebooks, quick").detail == "needs 2 GB of space; 0.0 GB are free"

    def test_peers_are_looked_for_in_the_cache_and_nowhere_else(self, tmp_path, monkeypatch):
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
        names = list(known_releases())
        assert (
            can_run.peers_verdict().detail
            == f"downloaded with pip when they are compared: {', '.join(names)}"
        )
        for name in names[:-1]:
            (tmp_path / known_releases()[name].wheel).touch()
        expected = (
            f"downloaded: {', '.join(names[:-1])}; downloaded with pip when they are compared: {names[-1]}"
        )
        assert can_run.peers_verdict() == Finding("releases to compare", NOTE, expected)
        (tmp_path / known_releases()[names[-1]].wheel).touch()
        assert can_run.peers_verdict() == Finding(
            "releases to compare", OK, f"downloaded: {', '.join(names)}"
        )


class TestDiagnosis:
    def test_it_is_usable_in_seconds_as_data_and_leaves_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        steps: list[str] = []
        diagnosis = doctor.diagnose(str(tmp_path), progress=steps.append)
        assert diagnosis.usable
        assert len(steps) >= 4
        assert json.loads(json.dumps(dataclasses.asdict(diagnosis)))["usable"] is True
        assert list(tmp_path.iterdir()) == []
        assert workers_of() == []

    def test_a_package_that_is_not_installed_has_no_version(self, monkeypatch):
        monkeypatch.setattr(doctor, "PACKAGES", ("nixl", "no-such-package"))
        versions = doctor.versions()
        assert list(versions) == ["Python", "nixl", "no-such-package"]
        assert [name for name, version in versions.items() if version is None] == ["no-such-package"]
