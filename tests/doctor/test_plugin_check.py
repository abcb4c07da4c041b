"""Which plugins load, and the reason for each that does not; whatever one does, the others are asked."""

from __future__ import annotations

import signal

import psutil
import pytest
from processes import have_ended, wait_until
from support import answer_of, run_python

from hicache_nixl.doctor import plugin_check, plugin_probe
from hicache_nixl.doctor.finding import NO, NOTE, OK
from hicache_nixl.doctor.plugin_check import Build


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
                assert build.plugin(gds).reason.startswith(("libcudart.so", "libcufile.so"))

    def test_obj_can_be_created_from_the_build_for_cuda_12_alone(self, builds):
        assert builds["nixl_cu12"].plugin("OBJ").state == OK
        assert builds["nixl_cu13"].plugin("OBJ").reason == "libcuobjclient.so.1 is not installed"

    def test_a_plugin_that_only_wants_settings_is_no_failure(self, builds):
        azure = builds["nixl_cu13"].plugin("AZURE_BLOB")
        assert (azure.state, azure.reason) == (NOTE, "needs the setting AZURE_STORAGE_CONTAINER_NAME")

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
            (1, "", NO, "no reason was logged"),
            (1, "x.cpp:3] Failed to load plugin from /a b/libplugin_X.so: libx.so.1: cannot open shared object file: No", NO, "libx.so.1 is not installed"),
            (1, "x.cpp:3] Failed to load plugin from /a/libplugin_X.so: undefined symbol: y", NO, "undefined symbol: y"),
            (1, "x.h:1] Failed to create engine: \x1b[32mno server\x1b[0m\nERR", NO, "no server"),
            (1, "x.h:1] Failed to create engine: Missing config entry 'A'\nERR", NOTE, "needs the setting A"),
            (1, "Traceback:\n  File x\nnixl_cu13._bindings.nixlBackendError: NIXL_ERR_BACKEND\n", NO, "NIXL_ERR_BACKEND"),
        ],
    )  # fmt: skip
    def test_the_reason_is_the_most_specific_line(self, ended, log, state, reason):
        assert plugin_check.outcome_of(ended, log) == (state, reason)


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
    def test_how_it_ended_and_what_it_printed_are_returned(self, work, ended, log):
        """In a fresh interpreter: pytest has streams and threads of its own, which a fork would copy."""
        code = f"""
import json, os, signal, time
from hicache_nixl.doctor.plugin_probe import in_a_fork
result = in_a_fork({work}, 3)
try:
    os.waitpid(-1, os.WNOHANG)
    left = True
except ChildProcessError:
    left = False
print(json.dumps([*result, left]))
"""
        exit_code, printed, left = answer_of(run_python("-c", code))
        assert exit_code == ended
        assert printed.endswith(log)
        assert bool(printed) == bool(log)
        assert not left
